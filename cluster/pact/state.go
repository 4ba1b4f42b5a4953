package pact

import (
	"cmp"
	"slices"
)

// State is everything that Raft decides. Its zero value is not usable; see NewState. It is not safe
// for concurrent use.
type State struct {
	index  uint64
	floor  Term // the highest term of any guest that was deleted: a later guest starts above it
	guests map[string]*record
	// lives remembers the IDs of the last Create and Delete commands, oldest first, so that a late
	// duplicate of a Create does not bring a deleted guest back.
	lives []memory
	out   []Out // the hosts that are kept out, by host and kind
}

type record struct {
	Assignment Assignment `json:"assignment"`
	// Recent remembers what became of the last commands, oldest first.
	Recent []memory `json:"recent,omitempty"`
}

// memory is what became of one command.
type memory struct {
	ID      string `json:"id"`
	Kind    Kind   `json:"kind"`
	Guest   string `json:"guest,omitempty"`
	By      Party  `json:"by,omitzero"`
	Index   uint64 `json:"index"`
	Term    Term   `json:"term,omitempty"` // of the assignment after it
	Refused string `json:"refused,omitempty"`
}

const (
	// recentMax bounds the memory of commands per guest. A duplicate comes within the seconds for which its
	// proposer goes on asking, and proposers have a handful under way; most of what is applied raises the
	// term, which bars a later one, but SetDesired and what is refused do not.
	recentMax = 128
	livesMax  = 256
)

// NewState is the state before the first command.
func NewState() *State { return &State{guests: map[string]*record{}} }

// Index is the Raft index of the last command.
func (s *State) Index() uint64 { return s.index }

// Guest returns a copy of a guest's assignment.
func (s *State) Guest(name string) (Assignment, bool) {
	g, ok := s.guests[name]
	if !ok {
		return Assignment{}, false
	}
	return g.Assignment.Clone(), true
}

// Guests returns copies of all assignments, by name.
func (s *State) Guests() []Assignment {
	all := make([]Assignment, 0, len(s.guests))
	for _, g := range s.guests {
		all = append(all, g.Assignment.Clone())
	}
	slices.SortFunc(all, func(a, b Assignment) int { return cmp.Compare(a.Guest, b.Guest) })
	return all
}

// Clone copies an assignment with all that it refers to.
func (a Assignment) Clone() Assignment {
	a.Unproven = slices.Clone(a.Unproven)
	a.Gone = slices.Clone(a.Gone)
	a.Spec = a.Spec.Clone()
	return a
}

// Clone copies a spec with all that it refers to.
func (s Spec) Clone() Spec {
	s.Hosts = slices.Clone(s.Hosts)
	s.Disks = slices.Clone(s.Disks)
	s.Nets = slices.Clone(s.Nets)
	return s
}

// IsGone says whether a party of the assignment is known to have ended.
func (a Assignment) IsGone(p Party) bool { return slices.Contains(a.Gone, p) }

// Runs says that the assignment lets its primary run the guest.
func (a Assignment) Runs() bool { return a.Mode == Solo || a.Mode == Protected }

func remember(list []memory, m memory, most int) []memory {
	if m.ID == "" {
		return list
	}
	if len(list) >= most {
		list = slices.Delete(list, 0, len(list)-most+1)
	}
	return append(list, m)
}

func recall(list []memory, id string) (memory, bool) {
	if id == "" {
		return memory{}, false
	}
	i := slices.IndexFunc(list, func(m memory) bool { return m.ID == id })
	if i < 0 {
		return memory{}, false
	}
	return list[i], true
}
