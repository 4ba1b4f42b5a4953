package consensus

import (
	"sync"
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

	mu    sync.Mutex
	heard map[raft.ServerAddress]chan struct{} // closed at the next heartbeat that is answered

	beat  sync.RWMutex // held while a heartbeat is taken
	ended bool
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
	return &transport{NetworkTransport: t, leading: func() bool { return false }, heard: map[raft.ServerAddress]chan struct{}{}}
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
