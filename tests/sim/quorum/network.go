package quorum

import (
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

var (
	errLost   = errors.New("lost on the network")
	errNoVote = errors.New("it has no vote under the ID that it has now")
)

const callTimeout = 40 * time.Millisecond

// network carries the voters' messages.
type network struct {
	mu    sync.Mutex
	rng   *rand.Rand
	ends  map[raft.ServerAddress]*transport
	cut   map[[2]raft.ServerAddress]bool // one way each
	loss  int                            // one in so many messages; 0: none
	twice int
	delay time.Duration // at most
}

func newNetwork(seed uint64) *network {
	return &network{rng: rand.New(rand.NewPCG(seed, 1)), ends: map[raft.ServerAddress]*transport{}, cut: map[[2]raft.ServerAddress]bool{}}
}

// join makes a voter's end, in place of the one that it may have had before a crash.
func (n *network) join(addr raft.ServerAddress) *transport {
	t := &transport{n: n, addr: addr, in: make(chan raft.RPC, 64), closed: make(chan struct{})}
	n.mu.Lock()
	n.ends[addr] = t
	n.mu.Unlock()
	return t
}

func (n *network) set(from, to raft.ServerAddress, cut bool) {
	n.mu.Lock()
	n.cut[[2]raft.ServerAddress{from, to}] = cut
	n.mu.Unlock()
}

// rough makes all ways bad, or good again.
func (n *network) rough(loss, twice int, delay time.Duration) {
	n.mu.Lock()
	n.loss, n.twice, n.delay = loss, twice, delay
	n.mu.Unlock()
}

func (n *network) heal() {
	n.rough(0, 0, 0)
	n.mu.Lock()
	clear(n.cut)
	n.mu.Unlock()
}

// reach says whether a way works.
func (n *network) reach(from, to raft.ServerAddress) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return from == to || !n.cut[[2]raft.ServerAddress{from, to}]
}

// fate decides what becomes of one message.
func (n *network) fate(from, to raft.ServerAddress) (t *transport, twice bool, delay time.Duration, lost bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t = n.ends[to]
	lost = t == nil || n.cut[[2]raft.ServerAddress{from, to}] || n.loss > 0 && n.rng.IntN(n.loss) == 0
	twice = n.twice > 0 && n.rng.IntN(n.twice) == 0
	if n.delay > 0 {
		delay = time.Duration(n.rng.Int64N(int64(n.delay)))
	}
	return t, twice, delay, lost
}

// transport is a voter's end of the network.
type transport struct {
	n      *network
	addr   raft.ServerAddress
	in     chan raft.RPC
	once   sync.Once
	closed chan struct{}
	// mayVote says whether this voter is one by the log that it has; nil: nobody asks.
	mayVote func() bool
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func (t *transport) Consumer() <-chan raft.RPC { return t.in }

func (t *transport) LocalAddr() raft.ServerAddress { return t.addr }

func (t *transport) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

// call takes a message there and its answer back.
func (t *transport) call(to raft.ServerAddress, args any, data io.Reader) (any, error) {
	limit := time.NewTimer(callTimeout)
	defer limit.Stop()
	peer, twice, delay, lost := t.n.fate(t.addr, to)
	if lost {
		select {
		case <-limit.C:
		case <-t.closed:
		}
		return nil, errLost
	}
	if delay > 0 {
		late := time.NewTimer(delay)
		defer late.Stop()
		select {
		case <-late.C:
		case <-t.closed:
			return nil, errLost
		}
	}
	if peer.deaf(args) {
		return nil, errNoVote
	}
	answer := make(chan raft.RPCResponse, 1)
	select {
	case peer.in <- raft.RPC{Command: args, Reader: data, RespChan: answer}:
	case <-peer.closed:
		return nil, errLost
	case <-limit.C:
		return nil, errLost
	}
	if twice && data == nil {
		select {
		case peer.in <- raft.RPC{Command: args, RespChan: make(chan raft.RPCResponse, 1)}:
		default:
		}
	}
	wait := limit.C
	if data != nil {
		wait = nil // the snapshot's reader belongs to the caller until it is answered
	}
	select {
	case r := <-answer:
		if _, _, _, lost := t.n.fate(to, t.addr); lost {
			return nil, errLost
		}
		return r.Response, r.Error
	case <-peer.closed:
	case <-t.closed:
	case <-wait:
	}
	return nil, errLost
}

// deaf says that a voter gives no answer to who asks for its vote: it knows of no configuration in which it has one. Raft
// knows a voter by its address, and asks a machine that came back without its log for the vote of the one that it was.
func (t *transport) deaf(args any) bool {
	switch args.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
		t.n.mu.Lock()
		may := t.mayVote
		t.n.mu.Unlock()
		return may != nil && !may()
	}
	return false
}

func answer[R any](t *transport, to raft.ServerAddress, args any, data io.Reader, out *R) error {
	r, err := t.call(to, args, data)
	if err != nil {
		return err
	}
	*out = *r.(*R)
	return nil
}

func (t *transport) AppendEntries(_ raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, out *raft.AppendEntriesResponse) error {
	return answer(t, to, args, nil, out)
}

func (t *transport) RequestVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, out *raft.RequestVoteResponse) error {
	return answer(t, to, args, nil, out)
}

func (t *transport) RequestPreVote(_ raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, out *raft.RequestPreVoteResponse) error {
	return answer(t, to, args, nil, out)
}

func (t *transport) InstallSnapshot(_ raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, out *raft.InstallSnapshotResponse, data io.Reader) error {
	return answer(t, to, args, data, out)
}

func (t *transport) TimeoutNow(_ raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, out *raft.TimeoutNowResponse) error {
	return answer(t, to, args, nil, out)
}

func (t *transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (t *transport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

func (t *transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler: heartbeats take the way of all messages.
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) {}
