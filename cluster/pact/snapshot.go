package pact

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// SnapshotVersion is the version of the snapshot's form. A reader refuses any other.
const SnapshotVersion = 1

// MaxCommandBytes bounds one encoded command.
const MaxCommandBytes = 256 << 10

var (
	// ErrSnapshot says that a snapshot can't be restored.
	ErrSnapshot = errors.New("pact snapshot")
	// ErrCommand says that a log entry is no command.
	ErrCommand = errors.New("pact command")
)

type snapshot struct {
	Version int       `json:"version"`
	Index   uint64    `json:"index"`
	Floor   Term      `json:"floor"`
	Guests  []*record `json:"guests"` // by name
	Lives   []memory  `json:"lives,omitempty"`
	Out     []Out     `json:"out,omitempty"`
}

// Snapshot encodes the state. Equal states give equal bytes.
func (s *State) Snapshot() ([]byte, error) {
	snap := snapshot{Version: SnapshotVersion, Index: s.index, Floor: s.floor, Lives: s.lives, Out: s.out, Guests: []*record{}}
	for _, a := range s.Guests() {
		snap.Guests = append(snap.Guests, s.guests[a.Guest])
	}
	b, err := json.Marshal(snap)
	if err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrSnapshot, err)
	}
	return b, nil
}

// Restore decodes a snapshot. It accepts only what Snapshot could have written.
func Restore(b []byte) (*State, error) {
	var snap snapshot
	if err := decodeStrict(b, &snap); err != nil {
		// A later version may have fields that this one does not know; say which version it is.
		var v struct {
			Version int `json:"version"`
		}
		if json.Unmarshal(b, &v) == nil && v.Version != SnapshotVersion {
			return nil, fmt.Errorf("%w: it has version %d, this program reads %d", ErrSnapshot, v.Version, SnapshotVersion)
		}
		return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	if snap.Version != SnapshotVersion {
		return nil, fmt.Errorf("%w: it has version %d, this program reads %d", ErrSnapshot, snap.Version, SnapshotVersion)
	}
	if len(snap.Lives) > livesMax {
		return nil, fmt.Errorf("%w: it remembers %d lives, at most %d are kept", ErrSnapshot, len(snap.Lives), livesMax)
	}
	if err := checkOut(snap.Out); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	s := &State{index: snap.Index, floor: snap.Floor, guests: make(map[string]*record, len(snap.Guests)), lives: snap.Lives, out: snap.Out}
	for i, g := range snap.Guests {
		if g == nil {
			return nil, fmt.Errorf("%w: guest %d is missing", ErrSnapshot, i)
		}
		name := g.Assignment.Guest
		if _, twice := s.guests[name]; twice {
			return nil, fmt.Errorf("%w: guest %q is in it twice", ErrSnapshot, name)
		}
		if err := g.Assignment.Check(); err != nil {
			return nil, fmt.Errorf("%w: guest %q: %w", ErrSnapshot, name, err)
		}
		if len(g.Recent) > recentMax {
			return nil, fmt.Errorf("%w: guest %q remembers %d commands, at most %d are kept", ErrSnapshot, name, len(g.Recent), recentMax)
		}
		s.guests[name] = g
	}
	return s, nil
}

// Check reports the first rule of an assignment's form that is broken.
func (a Assignment) Check() error {
	if !ValidGuestName(a.Guest) {
		return fmt.Errorf("%q is no guest's name", a.Guest)
	}
	if err := a.Spec.check(); err != nil {
		return err
	}
	if !a.Desired.valid() {
		return fmt.Errorf("desired %q", a.Desired)
	}
	has := func(p Party) bool { return p.Host != "" && p.Incarnation != 0 }
	switch a.Mode {
	case Stopped:
		if !a.Replica.IsZero() || len(a.Gone) > 0 {
			return errors.New("stopped, yet with a replica or parties that are gone")
		}
	case Solo:
		if !has(a.Primary) || !a.Replica.IsZero() {
			return fmt.Errorf("solo with primary %v and replica %v", a.Primary, a.Replica)
		}
	case Protected:
		if !has(a.Primary) || !has(a.Replica) || a.Primary.Host == a.Replica.Host {
			return fmt.Errorf("protected with primary %v and replica %v", a.Primary, a.Replica)
		}
	default:
		return fmt.Errorf("mode %q", a.Mode)
	}
	if a.Term == 0 && (a.Mode != Stopped || !a.Primary.IsZero()) {
		return errors.New("term 0, yet it was started")
	}
	if a.Term > 1<<62 {
		return fmt.Errorf("term %d leaves no room for later ones", a.Term)
	}
	for _, h := range []string{a.Primary.Host, a.Replica.Host, a.CurrentDisk.Host} {
		if h != "" && !slices.Contains(a.Spec.Hosts, h) {
			return fmt.Errorf("%s is not among the guest's hosts %v", h, a.Spec.Hosts)
		}
	}
	if a.CurrentDisk.Host == "" {
		return errors.New("no host has the current disk")
	}
	if a.Tenure > a.Term || a.CurrentDisk.Term > a.Term || a.BaseTerm > a.Term {
		return fmt.Errorf("tenure %d, current disk of term %d, base of term %d at term %d", a.Tenure, a.CurrentDisk.Term, a.BaseTerm, a.Term)
	}
	for i, p := range a.Gone {
		if (p != a.Primary && p != a.Replica) || p.IsZero() || slices.Contains(a.Gone[:i], p) {
			return fmt.Errorf("%v is recorded as gone", p)
		}
	}
	for i, c := range a.Unproven {
		if !has(c.Party) || c.Term > a.Term || !slices.Contains(a.Spec.Hosts, c.Party.Host) {
			return fmt.Errorf("claim of %v in term %d", c.Party, c.Term)
		}
		for _, d := range a.Unproven[:i] {
			if d.Party.Host == c.Party.Host || d.Term >= c.Term {
				return errors.New("claims out of order")
			}
		}
	}
	return nil
}

// EncodeCommand writes a command as a log entry.
func EncodeCommand(cmd Command) ([]byte, error) {
	b, err := json.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrCommand, err)
	}
	if len(b) > MaxCommandBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are possible", ErrCommand, len(b), MaxCommandBytes)
	}
	return b, nil
}

// DecodeCommand reads a log entry. An unknown field is an error: a voter must not apply half of what a
// later version means.
func DecodeCommand(b []byte) (Command, error) {
	if len(b) > MaxCommandBytes {
		return Command{}, fmt.Errorf("%w: %d bytes, at most %d are possible", ErrCommand, len(b), MaxCommandBytes)
	}
	var cmd Command
	if err := decodeStrict(b, &cmd); err != nil {
		return Command{}, fmt.Errorf("%w: %w", ErrCommand, err)
	}
	return cmd, nil
}

func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}
