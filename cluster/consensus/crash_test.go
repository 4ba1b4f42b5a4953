package consensus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/tests/crash/shim"
)

// counting is a state machine that knows which entries it has seen: 1, 2, 3 ...
type counting struct {
	last int
	err  error
}

func (c *counting) Apply(l *raft.Log) any {
	var n int
	if _, err := fmt.Sscanf(string(l.Data), "entry %d", &n); err != nil || n != c.last+1 {
		c.err = errors.Join(c.err, fmt.Errorf("entry %q after %d", l.Data, c.last))
	}
	c.last = n
	return nil
}

func (c *counting) Snapshot() (raft.FSMSnapshot, error) { return &counting{last: c.last}, nil }

func (c *counting) Restore(r io.ReadCloser) error {
	_, err := fmt.Fscanf(r, "%d", &c.last)
	return errors.Join(err, r.Close())
}

func (c *counting) Persist(sink raft.SnapshotSink) error {
	_, err := fmt.Fprintf(sink, "%d", c.last)
	return errors.Join(err, sink.Close())
}

func (c *counting) Release() {}

func countingConfig(id string) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID, c.Logger = raft.ServerID(id), raftLogger(zap.NewNop())
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	c.TrailingLogs, c.SnapshotThreshold = 4, 1<<20
	return c
}

func raftDir(dir string) string { return filepath.Join(dir, "state", "raft") }

// vote is the life of a voter who is alone: it is elected and stores entries, with snapshots in between. It
// notes "id X" and "entry N" when it relies on them.
func vote(dir string, note func(string)) error {
	const entries, every = 24, 7
	f, err := openFiles(raftDir(dir), pki.Role("host"), "a", zap.NewNop())
	if err != nil {
		return err
	}
	addr, trans := raft.NewInmemTransport("a")
	c := countingConfig(f.id)
	conf := raft.Configuration{Servers: []raft.Server{{ID: c.LocalID, Address: addr}}}
	if err := raft.BootstrapCluster(c, f.store, f.store, f.snaps, trans, conf); err != nil {
		return err
	}
	note("id " + f.id)
	leads := make(chan bool, 1)
	c.NotifyCh = leads
	fsm := &counting{}
	r, err := raft.NewRaft(c, fsm, f.store, f.store, f.snaps, trans)
	if err != nil {
		return err
	}
	for !<-leads {
	}
	for n := 1; n <= entries; n++ {
		if err := r.Apply(fmt.Appendf(nil, "entry %d", n), 0).Error(); err != nil {
			return err
		}
		note(fmt.Sprint("entry ", n))
		if n%every == 0 {
			if err := r.Snapshot().Error(); err != nil {
				return err
			}
		}
	}
	if err := r.Shutdown().Error(); err != nil {
		return err
	}
	return errors.Join(fsm.err, f.store.Close())
}

// checkVoter opens what a loss of power has left of the voter.
func checkVoter(dir string, notes []string) error {
	var id string
	want := 0
	for _, n := range notes {
		fmt.Sscanf(n, "id %s", &id)
		fmt.Sscanf(n, "entry %d", &want)
	}
	f, err := openFiles(raftDir(dir), pki.Role("host"), "a", zap.NewNop())
	if err != nil {
		return err
	}
	defer f.store.Close()
	if id != "" && f.id != id {
		return fmt.Errorf("the voter %s came back as %s", id, f.id)
	}
	fsm := &counting{}
	_, trans := raft.NewInmemTransport("a")
	// It restores the newest snapshot. What follows it is in the log.
	conf, err := raft.GetConfiguration(countingConfig(f.id), fsm, f.store, f.store, f.snaps, trans)
	if err != nil {
		return err
	}
	if id != "" && (len(conf.Servers) != 1 || string(conf.Servers[0].ID) != id) {
		return fmt.Errorf("Raft's configuration is %+v", conf)
	}
	first, err := f.store.FirstIndex()
	if err != nil {
		return err
	}
	end, err := f.store.LastIndex()
	if err != nil {
		return err
	}
	var term uint64
	for i := first; i <= end && first > 0; i++ {
		var l raft.Log
		if err := f.store.GetLog(i, &l); err != nil {
			return fmt.Errorf("entry at index %d: %w", i, err)
		}
		var n int
		if _, err := fmt.Sscanf(string(l.Data), "entry %d", &n); err == nil && n > fsm.last {
			fsm.Apply(&l)
		}
		term = l.Term
	}
	if now, err := f.store.GetUint64([]byte("CurrentTerm")); want > 0 && (err != nil || now < term) {
		return fmt.Errorf("the term is %d (%w), the log speaks of %d", now, err, term)
	}
	if fsm.err == nil && fsm.last < want {
		return fmt.Errorf("entry %d was acknowledged, %d is the last", want, fsm.last)
	}
	return fsm.err
}

// Whatever moment the power is lost at: a voter comes back under its id, with every entry that it has
// acknowledged, or it never was one.
func TestVoterSurvivesEveryCrash(t *testing.T) {
	shim.EveryCrash(t, shim.Record(t, vote), checkVoter)
}

// A log that can't be read names itself and the way out.
func TestDamagedLogIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "id"), []byte("host:a:0011\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "raft.db"), make([]byte, 16<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := openFiles(dir, pki.Role("host"), "a", zap.NewNop())
	if err == nil {
		t.Fatal("a log of zeros was opened")
	}
	for _, want := range []string{"raft.db", "move it away"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: nothing of %q", err, want)
		}
	}
}

// A log without the snapshot that it continues is an error with a way out, too.
func TestMissingSnapshotIsNamed(t *testing.T) {
	dir := t.TempDir()
	f, err := openFiles(dir, pki.Role("host"), "a", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.store.StoreLog(&raft.Log{Index: 7, Term: 2}), f.store.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := openFiles(dir, pki.Role("host"), "a", zap.NewNop()); err == nil || !strings.Contains(err.Error(), "begins with entry 7") {
		t.Fatalf("opened: %v", err)
	}
}
