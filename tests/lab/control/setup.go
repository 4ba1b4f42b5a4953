package control

// SetupFile holds a Setup, in a lab host.
const SetupFile = "/lab.json"

// Setup is what a lab host does at its start.
type Setup struct {
	Name  string
	Cards []Card
	Disks []Disk
}

// Card is a network card.
type Card struct {
	MAC     string
	Name    string // that it gets
	Bridge  string // that it is put on; it then has the address
	Address string // with the length of the prefix
}

// Disk is a disk with an ext4 file system.
type Disk struct {
	Serial   string
	Mount    string // where; empty: nowhere
	ReadOnly bool
}
