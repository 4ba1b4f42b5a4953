package link

// OrderDamage has a page of the copy's memory behave as if its hardware were damaged.
const OrderDamage = "damage"

// PageBytes is the size of a page of guest memory.
const PageBytes = 4096

// AnyPage stands for a page that the process chooses.
const AnyPage = -1

// What a page that is to be damaged must be, of a primary: the same as at the last checkpoint, or written since.
const (
	PageClean = "clean"
	PageDirty = "dirty"
)

// Damage says which page to damage.
type Damage struct {
	Page  int    `json:"page"`            // its index in the guest's memory, or AnyPage
	State string `json:"state,omitempty"` // PageClean, PageDirty; empty: as it is
	// Quiet says nothing of the error: whoever touches the page finds it. Otherwise it is reported at once, as the
	// kernel does with what its scrubbing finds.
	Quiet bool `json:"quiet,omitempty"`
}
