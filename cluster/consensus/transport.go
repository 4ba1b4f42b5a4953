package consensus

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// transport spares a member that comes back the leader's retreat. The Raft library waits longer and longer
// between its attempts to send entries to a member that does not answer, up to ten seconds, and nothing
// cuts that short. Here an attempt that has failed does not return before the member answers heartbeats
// again, so that the library counts one failure and tries again at once.
type transport struct {
	*raft.NetworkTransport
	leading func() bool
	member  func() bool // this node is in the configuration that its own log has

	mu    sync.Mutex
	heard map[raft.ServerAddress]chan struct{} // closed at the next heartbeat that is answered

	beat  sync.RWMutex // held while a heartbeat is taken
	ended bool

	passed  chan raft.RPC // what the library gets of what others ask
	refused atomic.Uint64 // votes that this node must not give
	closed  chan struct{}
	done    chan struct{} // pass has returned
	once    sync.Once
}

const (
	awaitCheck = 100 * time.Millisecond
	awaitMax   = time.Minute
	// dialTimeout bounds one attempt to connect to a member.
	dialTimeout = 500 * time.Millisecond
)

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func newTransport(t *raft.NetworkTransport) *transport {
	n := &transport{
		NetworkTransport: t, leading: func() bool { return false }, member: func() bool { return false },
		heard:  map[raft.ServerAddress]chan struct{}{},
		passed: make(chan raft.RPC), closed: make(chan struct{}), done: make(chan struct{}),
	}
	go n.pass()
	return n
}

// errNoVote is the answer of a voter that must not vote.
var errNoVote = errors.New("no vote: this log does not know of its own member")

// Consumer is where the library hears what others ask of it.
func (t *transport) Consumer() <-chan raft.RPC { return t.passed }

// pass hands on what others ask, but for one thing. A voter that lost its log comes back as another member, yet
// a candidate that has not heard of that still asks at the same address, and the library of a node that knows
// nothing gives its vote to anybody: with the vote of who has forgotten an entry, somebody could lead who
// never had it. Whoever finds itself in its own log, as a voter or not yet, has been sent everything that was
// committed before it was entered there.
func (t *transport) pass() {
	defer close(t.done)
	for {
		select {
		case <-t.closed:
			return
		case rpc := <-t.NetworkTransport.Consumer():
			switch rpc.Command.(type) {
			case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
				t.mu.Lock()
				member := t.member
				t.mu.Unlock()
				if !member() {
					t.refused.Add(1)
					rpc.Respond(nil, errNoVote)
					continue
				}
			}
			select {
			case t.passed <- rpc:
			case <-t.closed:
				return
			}
		}
	}
}

// SetHeartbeatHandler makes heartbeats end with the node. The library takes them on the connection's own
// goroutine, which knows nothing of a shutdown and would write to a log that is closed.
func (t *transport) SetHeartbeatHandler(take func(raft.RPC)) {
	t.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		t.beat.RLock()
		defer t.beat.RUnlock()
		if t.ended {
			rpc.Respond(nil, raft.ErrRaftShutdown)
			return
		}
		take(rpc)
	})
}

// Close ends the transport; when it returns, no heartbeat is taken any more.
func (t *transport) Close() error {
	t.beat.Lock()
	t.ended = true
	t.beat.Unlock()
	t.once.Do(func() { close(t.closed) })
	<-t.done
	return t.NetworkTransport.Close()
}

// AppendEntries sends entries, or a heartbeat.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	heartbeat := len(args.Entries) == 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && args.LeaderCommitIndex == 0
	err := t.NetworkTransport.AppendEntries(id, target, args, resp)
	switch {
	case heartbeat && err == nil:
		t.mu.Lock()
		if c, ok := t.heard[target]; ok {
			close(c)
			delete(t.heard, target)
		}
		t.mu.Unlock()
	case !heartbeat && err != nil:
		t.await(target)
	}
	return err
}

// await waits until a heartbeat to the member is answered, or this node leads no more.
func (t *transport) await(target raft.ServerAddress) {
	t.mu.Lock()
	c, ok := t.heard[target]
	if !ok {
		c = make(chan struct{})
		t.heard[target] = c
	}
	leading := t.leading
	t.mu.Unlock()
	limit := time.After(awaitMax)
	check := time.NewTicker(awaitCheck)
	defer check.Stop()
	for leading() {
		select {
		case <-c:
			return
		case <-limit:
			return
		case <-check.C:
		}
	}
}
