package quorum

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// voter is a machine with its Raft. What it has stored survives its crashes.
type voter struct {
	name string
	n    *network
	r    *record

	forgets uint64
	// unguarded: it votes even where it does not know of any vote that it has.
	unguarded bool

	mu      sync.Mutex
	lives   int
	id      raft.ServerID
	store   *raft.InmemStore
	snaps   *raft.InmemSnapshotStore
	raft    *raft.Raft // nil while it is down
	machine *machine
	trans   *transport
}

func newVoter(n *network, r *record, name string) *voter {
	v := &voter{name: name, n: n, r: r}
	v.blank()
	return v
}

// blank gives it storage without a log, and the ID that goes with it: who has promised things in a log never comes
// back without it under the same one.
func (v *voter) blank() {
	v.lives++
	v.id = raft.ServerID(fmt.Sprintf("%s-%d", v.name, v.lives))
	v.store, v.snaps = raft.NewInmemStore(), raft.NewInmemSnapshotStore()
}

func (v *voter) addr() raft.ServerAddress { return raft.ServerAddress(v.name) }

func (v *voter) start() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := raft.DefaultConfig()
	c.LocalID = v.id
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 60*time.Millisecond, 60*time.Millisecond, 50*time.Millisecond
	c.CommitTimeout = 5 * time.Millisecond
	c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = 50*time.Millisecond, 40, 20
	c.ShutdownOnRemove, c.NoLegacyTelemetry = false, true
	c.Logger = hclog.New(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	v.machine = &machine{voter: v.name, r: v.r, forgets: v.forgets, state: pact.NewState()}
	v.trans = v.n.join(v.addr())
	var err error
	v.raft, err = raft.NewRaft(c, v.machine, v.store, v.store, v.snaps, v.trans)
	if err != nil {
		return fmt.Errorf("start the voter %s: %w", v.id, err)
	}
	if !v.unguarded {
		r, id := v.raft, v.id
		v.n.mu.Lock()
		v.trans.mayVote = func() bool {
			f := r.GetConfiguration()
			return f.Error() == nil && slices.ContainsFunc(f.Configuration().Servers, func(s raft.Server) bool { return s.ID == id && s.Suffrage == raft.Voter })
		}
		v.n.mu.Unlock()
	}
	return nil
}

// crash ends it: what it has not stored is gone.
func (v *voter) crash() error {
	v.mu.Lock()
	r, t := v.raft, v.trans
	v.raft = nil
	v.mu.Unlock()
	if r == nil {
		return nil
	}
	_ = t.Close() // it always succeeds
	return r.Shutdown().Error()
}

func (v *voter) up() (*raft.Raft, *machine) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.raft, v.machine
}

func (v *voter) serverID() raft.ServerID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.id
}

// cluster is all voters: two hosts and a witness.
type cluster struct {
	n      *network
	r      *record
	voters []*voter
}

// newCluster founds a cluster. forgets: the deliberate mistake of its second voter, 0 none.
func newCluster(seed, forgets uint64) (*cluster, error) {
	c := &cluster{n: newNetwork(seed), r: newRecord()}
	var servers []raft.Server
	for _, name := range []string{"a", "b", "w"} {
		v := newVoter(c.n, c.r, name)
		if name == "b" {
			v.forgets = forgets
		}
		c.voters = append(c.voters, v)
		servers = append(servers, raft.Server{ID: v.id, Address: v.addr()})
	}
	for _, v := range c.voters {
		if err := v.start(); err != nil {
			return nil, err
		}
		if err := v.raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *cluster) close() {
	for _, v := range c.voters {
		_ = v.crash()
	}
}

// leader is who the given voter takes for the leader, where a message from there can reach it and come back.
func (c *cluster) leader(from *voter) *raft.Raft {
	r, _ := from.up()
	if r == nil {
		return nil
	}
	at, _ := r.LeaderWithID()
	for _, v := range c.voters {
		if v.addr() == at && c.n.reach(from.addr(), at) && c.n.reach(at, from.addr()) {
			l, _ := v.up()
			return l
		}
	}
	return nil
}

// replace has a voter that has lost its log come back under another ID, by membership changes that the others commit.
func (c *cluster) replace(v *voter, within time.Duration) error {
	if err := v.crash(); err != nil {
		return err
	}
	v.mu.Lock()
	v.blank()
	v.mu.Unlock()
	if err := v.start(); err != nil {
		return err
	}
	c.admit(v, within)
	return nil
}

// admit makes a voter part of the cluster under the ID that it has, and under no other. It reports whether that came to
// pass in time; if not, it may be tried again.
func (c *cluster) admit(v *voter, within time.Duration) bool {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	limit := time.NewTimer(within)
	defer limit.Stop()
	for {
		for _, o := range c.voters {
			if l := c.leader(o); l != nil && l.State() == raft.Leader && admitBy(l, v) {
				return true
			}
		}
		select {
		case <-limit.C:
			return false
		case <-again.C:
		}
	}
}

func admitBy(l *raft.Raft, v *voter) bool {
	f := l.GetConfiguration()
	if f.Error() != nil {
		return false
	}
	for _, s := range f.Configuration().Servers {
		switch {
		case s.ID == v.serverID():
			return true
		case s.Address == v.addr() && l.RemoveServer(s.ID, 0, time.Second).Error() != nil:
			return false
		}
	}
	return l.AddVoter(v.serverID(), v.addr(), 0, time.Second).Error() == nil
}
