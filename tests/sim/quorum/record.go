package quorum

import (
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/pact"
)

const guestName = "g"

// record is what was committed, as all voters together have shown it, and the rules that must hold of it.
type record struct {
	mu      sync.Mutex
	entries map[uint64]entry // by index
	newest  uint64
	primary map[pact.Term]pact.Party
	modes   map[pact.Mode]int
	failed  error
}

type entry struct {
	data  [sha256.Size]byte
	state [sha256.Size]byte // after it
	id    string
}

func newRecord() *record {
	return &record{entries: map[uint64]entry{}, primary: map[pact.Term]pact.Party{}, modes: map[pact.Mode]int{}}
}

func (r *record) fail(format string, args ...any) {
	if r.failed == nil {
		r.failed = fmt.Errorf(format, args...)
	}
}

func (r *record) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// applied notes an entry that a voter has applied, be it for the first time or again after a crash.
func (r *record) applied(voter string, index uint64, data []byte, c pact.Command, before, after pact.Assignment, snapshot []byte) {
	e := entry{sha256.Sum256(data), sha256.Sum256(snapshot), c.ID}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, known := r.entries[index]; known {
		switch {
		case old.data != e.data:
			r.fail("%s has applied another command at index %d than others (%s, %s)", voter, index, e.id, old.id)
		case old.state != e.state:
			r.fail("%s has come to another state at index %d than others, by the same command %s", voter, index, e.id)
		}
		return
	}
	r.entries[index] = e
	r.newest = max(r.newest, index)
	r.rules(c, before, after)
}

// rules are the pact's, as somebody outside would put them.
func (r *record) rules(c pact.Command, before, after pact.Assignment) {
	if after.Guest == "" {
		return
	}
	r.modes[after.Mode]++
	switch {
	case after.Term < before.Term:
		r.fail("%s leads from term %d back to %d", c.Kind, before.Term, after.Term)
	case after.Term == before.Term && (after.Mode != before.Mode || after.Primary != before.Primary || after.Replica != before.Replica) && before.Guest != "":
		r.fail("%s changes who may run the guest within term %d", c.Kind, before.Term)
	case after.Term > before.Term && c.Term != before.Term:
		r.fail("%s of term %d raises term %d", c.Kind, c.Term, before.Term)
	}
	if after.Primary != before.Primary && c.Kind != pact.Start && (before.Mode != pact.Protected || before.Replica != after.Primary) {
		r.fail("%s gives the guest to %v, which was not entitled (%s, replica %v)", c.Kind, after.Primary, before.Mode, before.Replica)
	}
	if after.Runs() {
		if who, ok := r.primary[after.Term]; ok && who != after.Primary {
			r.fail("term %d has two primaries, %v and %v", after.Term, who, after.Primary)
		}
		r.primary[after.Term] = after.Primary
	}
}

// restored notes a snapshot that a voter goes on from.
func (r *record) restored(voter string, index uint64, snapshot []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.entries[index]; ok && e.state != sha256.Sum256(snapshot) {
		r.fail("%s goes on from a snapshot that is not the state of index %d", voter, index)
	}
}

// answered notes that somebody was told that a command was committed at an index.
func (r *record) answered(c pact.Command, v pact.Verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[v.Index]
	switch {
	case !ok:
		r.fail("%s was said to be committed at index %d, and no voter has applied that", c.ID, v.Index)
	case e.id != c.ID:
		r.fail("%s was said to be committed at index %d, where %s is", c.ID, v.Index, e.id)
	}
}

// machine is a voter's state: the pact, and what the record is told of it.
type machine struct {
	voter string
	r     *record
	// forgets is a deliberate mistake: every so many entries one is not applied.
	forgets uint64

	mu    sync.Mutex
	state *pact.State
}

var _ raft.FSM = (*machine)(nil)

func (m *machine) Apply(l *raft.Log) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, err := pact.DecodeCommand(l.Data)
	if err != nil {
		return pact.Verdict{Reason: err.Error(), Index: l.Index}
	}
	before, _ := m.state.Guest(guestName)
	var v pact.Verdict
	if m.forgets == 0 || l.Index%m.forgets != 0 {
		v = m.state.Apply(c, l.Index)
	}
	after, _ := m.state.Guest(guestName)
	snapshot, err := m.state.Snapshot()
	if err != nil {
		m.r.mu.Lock()
		m.r.fail("%s: %v", m.voter, err)
		m.r.mu.Unlock()
	}
	m.r.applied(m.voter, l.Index, l.Data, c, before, after, snapshot)
	return v
}

func (m *machine) guest() (pact.Assignment, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, _ := m.state.Guest(guestName)
	return a, m.state.Index()
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := m.state.Snapshot()
	return snapshot(b), err
}

func (m *machine) Restore(in io.ReadCloser) error {
	defer in.Close()
	b, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	s, err := pact.Restore(b)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.state = s
	m.mu.Unlock()
	m.r.restored(m.voter, s.Index(), b)
	return nil
}

type snapshot []byte

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return err
	}
	return sink.Close()
}

func (s snapshot) Release() {}
