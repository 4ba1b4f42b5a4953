package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

var (
	// ErrUnknown says that nobody can tell whether the command was or will be committed.
	ErrUnknown = errors.New("the outcome is not known")
	// ErrNoQuorum says that the command was certainly not submitted: no leader took it.
	ErrNoQuorum = errors.New("no leader with a majority of the voters could be reached")
	// ErrForbidden says that the member may not say that. It was not submitted.
	ErrForbidden = errors.New("forbidden")
)

// errNotLeader says that a member has not submitted the entry, because it does not lead.
var errNotLeader = errors.New("not the leader")

const (
	purposePropose = "pollux propose 1"
	// hopsMax bounds the members through which a proposal passes on its way to the leader.
	hopsMax = 2
	// stagger is how long one way is tried before the next is tried beside it.
	stagger = 120 * time.Millisecond
	retry   = 25 * time.Millisecond
)

// proposal is a signed entry on its way.
type proposal struct {
	Signed pki.Signed `json:"signed"`
	Via    []string   `json:"via,omitempty"` // names of the members that it has passed through
	// TimeoutMs is what is left of the proposer's patience.
	TimeoutMs int64 `json:"timeout_ms"`
}

func encodeEntry(e entry) ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode a log entry: %w", err)
	}
	if len(b) > maxEntryBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are possible", errEntry, len(b), maxEntryBytes)
	}
	return b, nil
}

// Propose submits a command and waits for its verdict, at most for the configured time. Its errors wrap
// ErrUnknown, ErrNoQuorum or ErrForbidden. The command may be proposed again with the same ID.
func (n *Node) Propose(ctx context.Context, cmd pact.Command) (pact.Verdict, error) {
	return n.submit(ctx, entry{Command: &cmd})
}

// Remove takes a member out of the cluster for good: its vote and its certificate.
func (n *Node) Remove(ctx context.Context, name, operator string) (pact.Verdict, error) {
	return n.submit(ctx, entry{Leave: &leave{Name: name, Operator: operator}})
}

// Issue notes that a member is about to be given a certificate: before that, so that there is none that the cluster
// could not take back.
func (n *Node) Issue(ctx context.Context, name, serial string) (pact.Verdict, error) {
	return n.submit(ctx, entry{Issue: &certificate{Name: name, Serial: serial}})
}

func (n *Node) submit(ctx context.Context, e entry) (pact.Verdict, error) {
	b, err := encodeEntry(e)
	if err != nil {
		return pact.Verdict{}, fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	signed, err := n.o.Identity.Sign(purposePropose, b)
	if err != nil {
		return pact.Verdict{}, fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	ctx, cancel := context.WithTimeout(ctx, n.o.Timeouts.Propose.D())
	defer cancel()
	unknown := false
	for {
		v, err := n.pass(ctx, signed, nil)
		switch {
		case err == nil, errors.Is(err, ErrForbidden):
			return v, err
		case errors.Is(err, ErrUnknown):
			// Another copy, by another way: the pact knows duplicates.
			unknown = true
		}
		select {
		case <-ctx.Done():
			if unknown {
				return pact.Verdict{}, fmt.Errorf("%w: %w", ErrUnknown, err)
			}
			return pact.Verdict{}, fmt.Errorf("%w: %w", ErrNoQuorum, err)
		case <-time.After(retry):
		}
	}
}

// pass submits an entry here, where this member leads, or hands it to members who may reach the leader:
// the leader first, and after a while others beside it. The first verdict counts.
func (n *Node) pass(ctx context.Context, s pki.Signed, via []string) (pact.Verdict, error) {
	if n.raft.State() == raft.Leader {
		v, err := n.apply(ctx, s)
		if !errors.Is(err, errNotLeader) {
			return v, err
		}
	}
	if len(via) >= hopsMax {
		return pact.Verdict{}, errNotLeader
	}
	ways := n.ways(via)
	if len(ways) == 0 {
		return pact.Verdict{}, fmt.Errorf("%w, and knows of nobody else to ask", errNotLeader)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		v   pact.Verdict
		err error
	}
	outcomes := make(chan outcome, len(ways))
	failed := errNotLeader
	patience := ctx.Done()
	for next, open := 0, 0; next < len(ways) || open > 0; {
		var more <-chan time.Time
		if next < len(ways) {
			if open == 0 {
				way := ways[next]
				go func() { v, err := n.hand(ctx, way, s, via); outcomes <- outcome{v, err} }()
				next, open = next+1, open+1
				continue
			}
			more = time.After(stagger)
		}
		select {
		case o := <-outcomes:
			open--
			if o.err == nil || errors.Is(o.err, ErrForbidden) {
				return o.v, o.err
			}
			if !errors.Is(failed, ErrUnknown) {
				failed = o.err
			}
		case <-more:
			way := ways[next]
			go func() { v, err := n.hand(ctx, way, s, via); outcomes <- outcome{v, err} }()
			next, open = next+1, open+1
		case <-patience:
			// No further way is tried. Those that are open end with the same context, and each knows best
			// whether its member may have got the entry.
			patience, next = nil, len(ways)
		}
	}
	return pact.Verdict{}, failed
}

// ways lists the members to try, in the form of wire.At, the leader first.
func (n *Node) ways(via []string) []string {
	_, leader := n.raft.LeaderWithID()
	var ways []string
	add := func(at string) {
		name, _ := wire.Split(at)
		if name == n.o.Self.Name || slices.Contains(via, name) || slices.Contains(ways, at) {
			return
		}
		ways = append(ways, at)
	}
	servers := n.servers()
	for _, s := range servers {
		if s.ID == leader {
			add(string(s.Address))
		}
	}
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			add(string(s.Address))
		}
	}
	if len(ways) == 0 && len(via) == 0 {
		for _, s := range n.o.Seeds {
			add(wire.At(s.Name, s.ClusterAddress))
		}
	}
	return ways
}

// hand gives an entry to another member and maps its answer. Whatever is not certain is ErrUnknown.
func (n *Node) hand(ctx context.Context, at string, s pki.Signed, via []string) (pact.Verdict, error) {
	left := n.o.Timeouts.Propose.D()
	if d, ok := ctx.Deadline(); ok {
		left = time.Until(d)
	}
	q := proposal{Signed: s, Via: append(slices.Clone(via), n.o.Self.Name), TimeoutMs: left.Milliseconds()}
	var v pact.Verdict
	err := n.o.Client.Call(ctx, at, "propose", q, &v)
	if err == nil {
		return v, nil
	}
	var e *wire.RPCError
	switch {
	case errors.Is(err, wire.ErrNotSent):
		return v, fmt.Errorf("%w: %w", errNotLeader, err)
	case errors.As(err, &e) && e.Code == codeNotLeader:
		return v, fmt.Errorf("%s: %w", at, errNotLeader)
	case errors.As(err, &e) && e.Code == codeForbidden:
		return v, fmt.Errorf("%w: %s", ErrForbidden, e.Message)
	}
	return v, fmt.Errorf("%w: %w", ErrUnknown, err)
}

const (
	codeNotLeader = "not_leader"
	codeForbidden = "forbidden"
	codeUnknown   = "unknown"
)

// answerPropose is the other side of hand.
func (n *Node) answerPropose(ctx context.Context, _ pki.Peer, body []byte) (any, error) {
	var q proposal
	if err := json.Unmarshal(body, &q); err != nil || q.TimeoutMs < 0 || len(q.Via) > hopsMax {
		return nil, &wire.RPCError{Status: http.StatusBadRequest, Code: codeForbidden, Message: "this is no proposal"}
	}
	left := min(time.Duration(q.TimeoutMs)*time.Millisecond, 10*n.o.Timeouts.Propose.D())
	ctx, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	v, err := n.pass(ctx, q.Signed, q.Via)
	switch {
	case err == nil:
		return v, nil
	case errors.Is(err, ErrForbidden):
		return nil, &wire.RPCError{Status: http.StatusForbidden, Code: codeForbidden, Message: err.Error()}
	case errors.Is(err, errNotLeader):
		return nil, &wire.RPCError{Status: http.StatusMisdirectedRequest, Code: codeNotLeader, Message: err.Error()}
	}
	return nil, &wire.RPCError{Status: http.StatusGatewayTimeout, Code: codeUnknown, Message: err.Error()}
}

// apply submits an entry to this node's own log. errNotLeader: it was certainly not taken.
func (n *Node) apply(ctx context.Context, s pki.Signed) (pact.Verdict, error) {
	if err := n.authorize(s); err != nil {
		return pact.Verdict{}, fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	left := time.Minute
	if d, ok := ctx.Deadline(); ok {
		left = time.Until(d)
	}
	if left <= 0 {
		return pact.Verdict{}, errNotLeader
	}
	f := n.raft.Apply(s.Body, left)
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return pact.Verdict{}, fmt.Errorf("%w: not committed in time", ErrUnknown)
	}
	switch {
	case err == nil:
		poke(n.nudge)
		v, ok := f.Response().(pact.Verdict)
		if !ok {
			return v, fmt.Errorf("%w: the state machine answered %T", ErrUnknown, f.Response())
		}
		return v, nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		// These are given before the entry is in the log. All others may come after.
		return pact.Verdict{}, errNotLeader
	}
	return pact.Verdict{}, fmt.Errorf("%w: %w", ErrUnknown, err)
}

// authorize checks that the signer may say what the entry says.
func (n *Node) authorize(s pki.Signed) error {
	who, err := n.o.Identity.Open(purposePropose, s)
	if err != nil {
		return err
	}
	if err := n.Allowed(who); err != nil {
		return err
	}
	e, err := decodeEntry(s.Body)
	if err != nil {
		return err
	}
	switch {
	case e.Enter != nil:
		if e.Enter.Name != who.Name || e.Enter.Role != who.Role || e.Enter.Serial != who.Serial {
			return fmt.Errorf("%s %s can't register as %s %s", who.Role, who.Name, e.Enter.Role, e.Enter.Name)
		}
	case e.Issue != nil:
		if who.Role != pki.RoleHost {
			return fmt.Errorf("%s %s issues no certificates", who.Role, who.Name)
		}
	case e.Leave != nil, e.Access != nil:
	default:
		return mayPropose(who, *e.Command)
	}
	return nil
}

// mayPropose: for a process speaks only the daemon of its own host. An operator may speak on any.
func mayPropose(who pki.Peer, c pact.Command) error {
	switch c.Kind {
	case pact.Create, pact.Delete, pact.SetDesired, pact.SetCPU:
		return nil
	case pact.Disclaim:
		if c.Operator != "" {
			return nil
		}
	case pact.KeepOut:
		if c.By.Host == who.Name {
			return nil // a witness may see it too
		}
	case pact.Readmit:
		if c.Operator != "" || c.By.Host == who.Name {
			return nil
		}
	case pact.NoOp:
		return errors.New("the empty entry is the leader's own")
	}
	if who.Role != pki.RoleHost || c.By.Host != who.Name {
		return fmt.Errorf("%s %s can't speak for %v", who.Role, who.Name, c.By)
	}
	return nil
}

// Handlers are the calls that the node answers.
func (n *Node) Handlers() map[string]wire.Handler {
	return map[string]wire.Handler{
		"propose": n.answerPropose,
		"raft":    func(context.Context, pki.Peer, []byte) (any, error) { return n.Status(), nil },
		"barrier": n.answerBarrier,
	}
}

// answerBarrier tells the status as of a moment at which everything decided before is applied here.
func (n *Node) answerBarrier(context.Context, pki.Peer, []byte) (any, error) {
	if n.raft.State() != raft.Leader || n.raft.Barrier(time.Second).Error() != nil {
		return nil, &wire.RPCError{Status: http.StatusMisdirectedRequest, Code: codeNotLeader, Message: errNotLeader.Error()}
	}
	poke(n.nudge)
	return n.Status(), nil
}

// ask gets another member's view of Raft.
func (n *Node) ask(ctx context.Context, call, at string, timeout time.Duration) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var s Status
	err := n.o.Client.Call(ctx, at, call, struct{}{}, &s)
	if err != nil {
		n.log.Debug("ask a member", zap.String("member", at), zap.Error(err))
	}
	return s, err
}
