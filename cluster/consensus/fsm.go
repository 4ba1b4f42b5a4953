package consensus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// entry is one log entry. Exactly one field is set.
type entry struct {
	Command *pact.Command `json:"command,omitempty"`
	Enter   *Member       `json:"enter,omitempty"`
	Leave   *leave        `json:"leave,omitempty"`
	// Issue says that a member is about to be given a new certificate.
	Issue *certificate `json:"issue,omitempty"`
	// Access changes who may use the API.
	Access *access.Change `json:"access,omitempty"`
}

type leave struct {
	Name     string `json:"name"`
	Operator string `json:"operator,omitempty"`
}

const maxEntryBytes = pact.MaxCommandBytes + 4096

var errEntry = errors.New("log entry")

func decodeEntry(b []byte) (entry, error) {
	if len(b) > maxEntryBytes {
		return entry{}, fmt.Errorf("%w: %d bytes, at most %d are possible", errEntry, len(b), maxEntryBytes)
	}
	var e entry
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return entry{}, fmt.Errorf("%w: %w", errEntry, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return entry{}, fmt.Errorf("%w: something follows its end", errEntry)
	}
	n := 0
	for _, set := range []bool{e.Command != nil, e.Enter != nil, e.Leave != nil, e.Issue != nil, e.Access != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return entry{}, fmt.Errorf("%w: it says %d things", errEntry, n)
	}
	return e, nil
}

// fsm is the state that the log makes.
type fsm struct {
	// changed is told of every assignment that was touched; exists is false when the guest is gone. It is
	// called in the log's order and must not block.
	changed func(a pact.Assignment, exists bool)
	// joined is told of every change of the roster. It must not block.
	joined func()

	mu     sync.RWMutex
	pact   *pact.State
	roster roster
	access access.Table
	// applied is the index of the last entry that is in the state: what the library calls applied may still be on its
	// way here. sure is false after a snapshot that did not say it, until the next entry.
	applied uint64
	sure    bool
}

func newFSM() *fsm {
	return &fsm{sure: true, pact: pact.NewState(), roster: newRoster(), changed: func(pact.Assignment, bool) {}, joined: func() {}}
}

// has says whether an entry, and all before it, is in the state.
func (f *fsm) has(index uint64) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.applied >= index || !f.sure
}

func (f *fsm) lastApplied() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.applied
}

// Apply carries out a committed entry. Its result is a pact.Verdict.
func (f *fsm) Apply(l *raft.Log) any {
	v := f.apply(l)
	f.mu.Lock()
	f.applied, f.sure = l.Index, true
	f.mu.Unlock()
	return v
}

func (f *fsm) apply(l *raft.Log) pact.Verdict {
	e, err := decodeEntry(l.Data)
	if err != nil {
		// All voters refuse the same bytes alike.
		return pact.Verdict{Reason: err.Error(), Index: l.Index}
	}
	if e.Access != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		refused := f.access.Apply(*e.Access)
		return pact.Verdict{Applied: refused == "", Reason: refused, Index: l.Index}
	}
	if e.Command == nil {
		return f.applyRoster(e, l.Index)
	}
	f.mu.Lock()
	v := f.pact.Apply(*e.Command, l.Index)
	f.mu.Unlock()
	if v.Applied && e.Command.Guest != "" {
		f.changed(v.Assignment, e.Command.Kind != pact.Delete)
	}
	return v
}

func (f *fsm) applyRoster(e entry, index uint64) pact.Verdict {
	f.mu.Lock()
	var refused string
	switch {
	case e.Enter != nil:
		refused = f.roster.enter(*e.Enter)
	case e.Issue != nil:
		refused = f.roster.issue(*e.Issue)
	default:
		refused = f.roster.leave(e.Leave.Name)
	}
	f.mu.Unlock()
	if refused == "" {
		f.joined()
	}
	return pact.Verdict{Applied: refused == "", Reason: refused, Index: index}
}

type image struct {
	Version int             `json:"version"`
	Pact    json.RawMessage `json:"pact"`
	Roster  roster          `json:"roster"`
	Access  access.Table    `json:"access,omitzero"`
	Index   uint64          `json:"index,omitempty"` // of the last entry that is in it; 0: an earlier version has written it
}

const imageVersion = 1

// Snapshot encodes the state; it is small, so that is done at once.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	p, err := f.pact.Snapshot()
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(image{Version: imageVersion, Pact: p, Roster: f.roster, Access: f.access, Index: f.applied})
	if err != nil {
		return nil, fmt.Errorf("encode the snapshot: %w", err)
	}
	return snapshotBytes(b), nil
}

type snapshotBytes []byte

func (s snapshotBytes) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return errors.Join(fmt.Errorf("write the snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (s snapshotBytes) Release() {}

const maxSnapshotBytes = 1 << 30

// Restore replaces the state with a snapshot's.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSnapshotBytes))
	if err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	var i image
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&i); err != nil {
		return fmt.Errorf("decode the snapshot: %w", err)
	}
	if i.Version != imageVersion {
		return fmt.Errorf("the snapshot has version %d, this program reads %d", i.Version, imageVersion)
	}
	p, err := pact.Restore(i.Pact)
	if err != nil {
		return err
	}
	if i.Roster.Members == nil {
		i.Roster.Members = map[string]Member{}
	}
	if err := i.Access.Check(); err != nil {
		return fmt.Errorf("the snapshot's users: %w", err)
	}
	f.mu.Lock()
	old := f.pact
	f.pact, f.roster, f.access = p, i.Roster, i.Access
	f.applied, f.sure = i.Index, i.Index > 0
	f.mu.Unlock()
	for _, a := range old.Guests() {
		if _, ok := p.Guest(a.Guest); !ok {
			f.changed(a, false)
		}
	}
	for _, a := range p.Guests() {
		f.changed(a, true)
	}
	f.joined()
	return nil
}

func (f *fsm) guest(name string) (pact.Assignment, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.pact.Guest(name)
}

func (f *fsm) guests() []pact.Assignment {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.pact.Guests()
}

func (f *fsm) members() []Member {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.roster.list()
}

func (f *fsm) member(name string) (Member, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	m, ok := f.roster.Members[name]
	return m, ok
}

func (f *fsm) removed() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return append([]string(nil), f.roster.Removed...)
}

func (f *fsm) revokedSerials() []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return append([]string(nil), f.roster.Revoked...)
}

func (f *fsm) revoked(serial string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, s := range f.roster.Revoked {
		if s == serial {
			return true
		}
	}
	return false
}
