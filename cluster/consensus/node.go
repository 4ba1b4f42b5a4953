package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

// Options is what a node needs.
type Options struct {
	Identity *pki.Identity
	Port     *wire.Port
	Client   *wire.Client
	// Self is this member. RaftID and Serial are filled in by Open.
	Self     Member
	Dir      string // of Raft's log
	Timeouts config.Timeouts
	// Found lets the node begin a log where there is none; Founded is called once that has been done.
	Found   bool
	Founded func() error
	// Seeds are asked where Raft's configuration names nobody yet.
	Seeds []pki.Seed
	// Changed is told of every assignment that an applied entry has touched, in the log's order; exists
	// is false when the guest is gone. It must not block.
	Changed func(a pact.Assignment, exists bool)
	// Joined is told that the roster has changed. It must not block.
	Joined func()
	Log    *zap.Logger
}

// Node is this member's part in Raft.
type Node struct {
	o     Options
	raft  *raft.Raft
	store *raftboltdb.BoltStore
	trans *transport
	fsm   *fsm
	log   *zap.Logger

	nudge chan struct{} // a decision was committed here: let the followers know
	wake  chan struct{} // something has changed that a leader acts upon
	// recheck: certificates may have been revoked.
	recheck chan struct{}
	renewed chan struct{} // this member has something new to register
	notify  chan bool
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	current bool // the log has been applied up to where the cluster was after the start
}

const (
	applyQueue     = 256
	snapshotRetain = 2
	trailingLogs   = 4096
	// commitTimeout is how often an idle leader tells followers the commit index. Decisions do not wait
	// for it: an empty entry follows each of them.
	commitTimeout = 50 * time.Millisecond
	warmEvery     = 10 * time.Second
)

// Open starts the node.
func Open(o Options) (*Node, error) {
	if o.Changed == nil {
		o.Changed = func(pact.Assignment, bool) {}
	}
	if o.Joined == nil {
		o.Joined = func() {}
	}
	n := &Node{
		o: o, log: o.Log, fsm: newFSM(),
		nudge: make(chan struct{}, 1), wake: make(chan struct{}, 1), recheck: make(chan struct{}, 1), renewed: make(chan struct{}, 1), notify: make(chan bool, 8),
	}
	n.fsm.changed = o.Changed
	n.fsm.joined = func() { poke(n.wake); poke(n.recheck); o.Joined() }
	if err := n.open(); err != nil {
		return nil, fmt.Errorf("start Raft in %s: %w", o.Dir, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.wg.Go(func() { n.tellFollowers(ctx) })
	n.wg.Go(func() { n.lead(ctx) })
	n.wg.Go(func() { n.register(ctx) })
	n.wg.Go(func() { n.catchUp(ctx) })
	n.wg.Go(func() { n.keepWarm(ctx) })
	return n, nil
}

func (n *Node) open() error {
	kept, err := openFiles(n.o.Dir, n.o.Self.Role, n.o.Self.Name, n.log)
	if err != nil {
		return err
	}
	id, snaps := kept.id, kept.snaps
	n.store = kept.store
	n.o.Self.RaftID, n.o.Self.Serial = id, n.o.Identity.Serial()
	if n.o.Self.Replaces, err = n.o.Identity.Replaces(); err != nil {
		return errors.Join(err, n.store.Close())
	}
	if err := n.o.Self.check(); err != nil {
		return errors.Join(err, n.store.Close())
	}
	cache, err := raft.NewLogCache(512, n.store)
	if err != nil {
		return errors.Join(err, n.store.Close())
	}
	logger := raftLogger(n.log)
	n.trans = newTransport(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: n.o.Port.Raft(dialTimeout), MaxPool: 3, Logger: logger,
		Timeout: max(time.Second, 2*n.o.Timeouts.RaftElection.D()),
	}))
	c := n.config(id)
	c.Logger = logger
	if n.o.Found {
		err := raft.BootstrapCluster(c, cache, n.store, snaps, n.trans, raft.Configuration{Servers: []raft.Server{{
			ID: raft.ServerID(id), Address: n.o.Self.at(),
		}}})
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return errors.Join(fmt.Errorf("begin the cluster's log: %w", err), n.trans.Close(), n.store.Close())
		}
	}
	if n.o.Found && n.o.Founded != nil {
		if err := n.o.Founded(); err != nil {
			return errors.Join(err, n.trans.Close(), n.store.Close())
		}
	}
	n.raft, err = raft.NewRaft(c, n.fsm, cache, n.store, snaps, n.trans)
	if err != nil {
		return errors.Join(err, n.trans.Close(), n.store.Close())
	}
	n.trans.mu.Lock()
	n.trans.leading = func() bool { return n.raft.State() == raft.Leader }
	n.trans.member = func() bool {
		return slices.ContainsFunc(n.servers(), func(s raft.Server) bool { return s.ID == c.LocalID })
	}
	n.trans.mu.Unlock()
	return nil
}

func (n *Node) config(id string) *raft.Config {
	t := n.o.Timeouts
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(id)
	c.HeartbeatTimeout = t.RaftHeartbeat.D()
	c.ElectionTimeout = t.RaftElection.D()
	c.LeaderLeaseTimeout = t.RaftLease.D()
	c.CommitTimeout = commitTimeout
	c.TrailingLogs = trailingLogs
	c.SnapshotThreshold = 2 * trailingLogs
	c.PreVoteDisabled = false
	c.ShutdownOnRemove = false
	c.NotifyCh = n.notify
	c.NoLegacyTelemetry = true
	return c
}

// at is the member's address as Raft's configuration has it: whoever dials it accepts no other name.
func (m Member) at() raft.ServerAddress {
	return raft.ServerAddress(wire.At(m.Name, m.ClusterAddress))
}

// Close ends the node. A leader hands its leadership on first, so that nobody has to wait for an election.
func (n *Node) Close() error {
	n.cancel()
	if n.raft.State() == raft.Leader && n.voters() > 1 {
		if err := n.raft.LeadershipTransfer().Error(); err != nil {
			n.log.Info("leadership could not be handed on", zap.Error(err))
		}
	}
	err := n.raft.Shutdown().Error()
	n.wg.Wait()
	return errors.Join(err, n.trans.Close(), n.store.Close())
}

func (n *Node) voters() int {
	count := 0
	for _, s := range n.servers() {
		if s.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

func (n *Node) servers() []raft.Server {
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

// Guest returns the assignment that this member's own log has led to.
func (n *Node) Guest(name string) (pact.Assignment, bool) { return n.fsm.guest(name) }

// Guests returns all assignments, by name.
func (n *Node) Guests() []pact.Assignment { return n.fsm.guests() }

// Members returns who belongs to the cluster, by name.
func (n *Node) Members() []Member { return n.fsm.members() }

// Member returns one of them.
func (n *Node) Member(name string) (Member, bool) { return n.fsm.member(name) }

// Self is this member.
func (n *Node) Self() Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.o.Self
}

// Renewed takes up a new certificate: the member registers anew. Until that is committed the cluster goes by the
// old one, and both are good.
func (n *Node) Renewed() error {
	replaces, err := n.o.Identity.Replaces()
	if err != nil {
		return fmt.Errorf("register with the new certificate: %w", err)
	}
	n.mu.Lock()
	n.o.Self.Serial, n.o.Self.Replaces = n.o.Identity.Serial(), replaces
	n.mu.Unlock()
	poke(n.renewed)
	return nil
}

// Revoked are the serial numbers of certificates that count no more.
func (n *Node) Revoked() []string { return n.fsm.revokedSerials() }

// Allowed turns away members whose certificate counts no more.
func (n *Node) Allowed(p pki.Peer) error {
	if n.fsm.revoked(p.Serial) {
		return fmt.Errorf("%s was removed from the cluster", p.Name)
	}
	return nil
}

// Current says that this member has once, since its start, had all that the cluster had decided. Before
// that, what it knows may be long past, and nobody is told to act on it.
func (n *Node) Current() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

// Voter is one server of Raft's configuration.
type Voter struct {
	Name   string `json:"name"`
	RaftID string `json:"raft_id"`
	Voter  bool   `json:"voter"`
	Leader bool   `json:"leader"`
}

// Status is the node's view of Raft.
type Status struct {
	State   string `json:"state"` // "Leader", "Follower", "Candidate", "Shutdown"
	Term    uint64 `json:"term"`
	Applied uint64 `json:"applied"`
	Commit  uint64 `json:"commit"`
	Last    uint64 `json:"last"`
	// Decided is the last entry that is in this member's state.
	Decided uint64 `json:"decided"`
	// Leader is the leader's name, and LeaderID its Raft id; empty: none is known.
	Leader   string  `json:"leader"`
	LeaderID string  `json:"leader_id"`
	RaftID   string  `json:"raft_id"`
	Voters   []Voter `json:"voters"` // with those that have no vote
}

// Status tells how things are.
func (n *Node) Status() Status {
	_, leader := n.raft.LeaderWithID()
	s := Status{
		State: n.raft.State().String(), Term: n.raft.CurrentTerm(),
		Applied: n.raft.AppliedIndex(), Commit: n.raft.CommitIndex(), Last: n.raft.LastIndex(), Decided: n.fsm.lastApplied(),
		LeaderID: string(leader), RaftID: n.o.Self.RaftID,
	}
	s.Leader, _, _ = splitRaftID(s.LeaderID)
	for _, v := range n.servers() {
		name, _, _ := splitRaftID(string(v.ID))
		s.Voters = append(s.Voters, Voter{Name: name, RaftID: string(v.ID), Voter: v.Suffrage == raft.Voter, Leader: v.ID == leader})
	}
	return s
}

// IsLeader says that this node believes to be the leader.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// tellFollowers commits an empty entry after decisions. A follower learns that an entry is committed
// only with the leader's next message; without this, that would be up to commitTimeout later, and a
// takeover would wait for it.
func (n *Node) tellFollowers(ctx context.Context) {
	b, err := encodeEntry(entry{Command: &pact.Command{Kind: pact.NoOp, ID: "noop"}})
	if err != nil {
		n.log.Error("encode the empty entry", zap.Error(err))
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.nudge:
		}
		if n.raft.State() == raft.Leader {
			_ = n.raft.Apply(b, time.Second).Error() // whoever leads next has the same duty
		}
	}
}

// keepWarm keeps a connection to each voter open, so that a proposal in an emergency does not wait for
// a handshake, and cuts off members who have been removed.
func (n *Node) keepWarm(ctx context.Context) {
	t := time.NewTicker(warmEvery)
	defer t.Stop()
	for {
		for _, s := range n.servers() {
			if s.Suffrage == raft.Voter && string(s.ID) != n.o.Self.RaftID {
				n.wg.Go(func() { _, _ = n.ask(ctx, "raft", string(s.Address), time.Second) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-n.recheck:
			n.o.Port.Recheck()
		case <-t.C:
		}
	}
}

// WaitApplied waits until this member has applied its log up to an index.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, n.o.Timeouts.Propose.D())
	defer cancel()
	for n.raft.AppliedIndex() < index || !n.fsm.has(index) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}
