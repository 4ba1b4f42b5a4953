// Package mark keeps the word that lies beside each disk copy: whether it may be the current one, and
// the marker (term, epoch) that its last primary made durable before it let anything out. A mark only
// forbids; permission to start from a disk comes from Raft.
package mark

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/pollux-ha/pollux/cluster/durable"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// State is what is known of a disk copy.
type State string

const (
	// None: no mark was ever written; the disk has not been used under Pollux.
	None State = ""
	// Current: the host ran the guest from it as of the marker, and knows of nobody who did later.
	Current State = "current"
	// Outdated: whole as of some epoch, but the guest went on elsewhere.
	Outdated State = "outdated"
	// Inconsistent: a synchronization has begun to overwrite it and has not come to an end.
	Inconsistent State = "inconsistent"
)

// Suffix is appended to a disk's path to get its mark's.
const Suffix = ".mark"

const format = 1

// Mark is the word on one disk copy.
type Mark struct {
	Format int    `json:"format"`
	Guest  string `json:"guest"`
	State  State  `json:"state"`
	// Term and Epoch are the durable marker: in this term the host went on from this epoch as the
	// guest's primary. They stay when the copy becomes outdated.
	Term  pact.Term  `json:"term"`
	Epoch pact.Epoch `json:"epoch"`
	// Since is the term that made it outdated or began the synchronization.
	Since pact.Term `json:"since,omitempty"`
}

// Errors of this package.
var (
	// ErrDamaged says that a mark can't be read. Its disk counts as inconsistent.
	ErrDamaged = errors.New("disk mark is damaged")
	// ErrForbidden says that a disk copy may not be started from without an operator's order.
	ErrForbidden = errors.New("disk copy is not known to be current")
)

// Path is where the mark of a disk lies.
func Path(disk string) string { return disk + Suffix }

// Read returns the mark of a disk; a disk without one has the state None. A mark that can't be
// understood is returned as Inconsistent together with ErrDamaged: it forbids.
func Read(disk string) (Mark, error) {
	b, err := os.ReadFile(Path(disk))
	if errors.Is(err, fs.ErrNotExist) {
		return Mark{}, nil
	}
	bad := Mark{State: Inconsistent}
	if err != nil {
		return bad, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var m Mark
	if err := json.Unmarshal(b, &m); err != nil {
		return bad, fmt.Errorf("%w: %s: %w", ErrDamaged, Path(disk), err)
	}
	if m.Format != format {
		return bad, fmt.Errorf("%w: %s has format %d, this program reads %d", ErrDamaged, Path(disk), m.Format, format)
	}
	switch m.State {
	case Current, Outdated, Inconsistent:
		return m, nil
	}
	return bad, fmt.Errorf("%w: %s has the unknown state %q", ErrDamaged, Path(disk), m.State)
}

// Write replaces the mark of a disk, atomically and durably: when it returns, the mark survives a
// loss of power.
func Write(disk string, m Mark) error {
	m.Format = format
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the mark of %s: %w", disk, err)
	}
	if err := durable.WriteFile(Path(disk), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the mark of %s: %w", disk, err)
	}
	return nil
}

// MayStart says whether a guest may start from a disk with this mark; order is what an operator has
// explicitly accepted (Current: nothing).
func (m Mark) MayStart(order State) error {
	switch {
	case m.State == None, m.State == Current:
		return nil
	case m.State == Outdated && (order == Outdated || order == Inconsistent):
		return nil
	case m.State == Inconsistent && order == Inconsistent:
		return nil
	}
	return fmt.Errorf("%w: it is %s since term %d (its own marker: term %d, epoch %d); only an operator's order that names the loss may start from it",
		ErrForbidden, m.State, m.Since, m.Term, m.Epoch)
}

// Worst returns the mark that forbids most among those of a guest's disks.
func Worst(marks []Mark) Mark {
	rank := map[State]int{Current: 1, Outdated: 2, Inconsistent: 3}
	var worst Mark
	for _, m := range marks {
		switch {
		case rank[m.State] > rank[worst.State]:
			worst = m
		case m.State == worst.State && m.Term < worst.Term:
			worst = m
		}
	}
	return worst
}
