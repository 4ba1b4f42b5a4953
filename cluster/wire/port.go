// Package wire is the one TCP port of the control plane. Everything on it is TLS 1.3; the protocol that
// a connection is for is negotiated in the handshake (ALPN): Raft, RPC between daemons, or joining.
//
// A stranger who can reach the port gets nothing and stops nothing: handshakes and joins are bounded in
// time and number, and where there are too many, those that have waited longest are cut off, the ones from
// the busiest address first. Only the join protocol is open to machines without a certificate.
package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

const (
	handshakeTimeout = 5 * time.Second
	// pendingMax bounds the connections in their handshake; a member's takes milliseconds.
	pendingMax = 128
	// joinsMax bounds the joins under way.
	joinsMax  = 8
	keepAlive = 5 * time.Second
)

// Port is the open port.
type Port struct {
	id     *pki.Identity
	issuer *pki.Issuer
	// Allowed is asked about each member that connects; an error turns it away.
	allowed func(pki.Peer) error
	log     *zap.Logger
	// DialVia, where set, makes Raft's connections to others.
	DialVia DialFunc

	listener net.Listener
	tls      *tls.Config
	raft     *queue
	rpc      *queue
	// pending are in their handshake, joins have none of their own to show.
	pending, joins *Lobby

	mu      sync.Mutex
	members map[*memberConn]struct{} // handed out, and open
	closed  bool
	wg      sync.WaitGroup
}

// Listen opens the port. issuer is nil where nobody can join.
func Listen(address string, id *pki.Identity, issuer *pki.Issuer, allowed func(pki.Peer) error, log *zap.Logger) (*Port, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("cluster_address %s is in use: another Pollux daemon runs here, or another program has the port (`ss -ltnp` shows which)", address)
	}
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("cluster_address %s is not an address of this machine", address)
	}
	if err != nil {
		return nil, fmt.Errorf("open cluster_address %s: %w", address, err)
	}
	p := &Port{
		id: id, issuer: issuer, allowed: allowed, log: log, listener: l,
		tls:  id.MuxConfig(issuer != nil, pki.ALPNRaft, pki.ALPNRPC),
		raft: newQueue(l.Addr()), rpc: newQueue(l.Addr()),
		joins: NewLobby(joinsMax), pending: NewLobby(pendingMax), members: map[*memberConn]struct{}{},
	}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is the address that the port really has.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// RPC gives the connections of the RPC protocol, handshake done.
func (p *Port) RPC() net.Listener { return p.rpc }

// Close closes the port and all connections that came in through it.
func (p *Port) Close() error {
	err := p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.pending.Close()
	p.joins.Close()
	p.raft.Close()
	p.rpc.Close()
	for _, m := range p.open() {
		m.Close()
	}
	p.wg.Wait()
	return err
}

func (p *Port) accept() {
	p.pending.Receive(p.listener, func(err error) { p.log.Warn("accept on the cluster port", zap.Error(err)) },
		func(conn net.Conn, leave func()) {
			if t, ok := conn.(*net.TCPConn); ok {
				_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: 3})
			}
			p.wg.Go(func() { p.handshake(conn, leave) })
		})
}

func (p *Port) handshake(c net.Conn, leave func()) {
	conn := tls.Server(c, p.tls)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	err := conn.HandshakeContext(ctx)
	cancel()
	leave()
	if errors.Is(err, pki.ErrRevoked) {
		p.log.Warn("a member was turned away", zap.Stringer("from", c.RemoteAddr()), zap.Error(err))
		c.Close()
		return
	}
	if err != nil {
		p.log.Debug("handshake refused", zap.Stringer("from", c.RemoteAddr()), zap.Error(err))
		c.Close()
		return
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol == pki.ALPNJoin {
		p.join(conn)
		return
	}
	peer, err := pki.PeerOf(state)
	if err == nil && p.allowed != nil {
		err = p.allowed(peer)
	}
	if err != nil {
		p.log.Warn("a member was turned away", zap.Stringer("from", c.RemoteAddr()), zap.Error(err))
		c.Close()
		return
	}
	q := p.rpc
	if state.NegotiatedProtocol == pki.ALPNRaft {
		q = p.raft
	}
	m := &memberConn{Conn: conn, peer: peer, port: p}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		conn.Close()
		return
	}
	p.members[m] = struct{}{}
	p.mu.Unlock()
	if !q.put(m) {
		m.Close()
	}
}

// Recheck closes the connections of members who are not allowed any more.
func (p *Port) Recheck() {
	if p.allowed == nil {
		return
	}
	for _, m := range p.open() {
		if p.allowed(m.peer) != nil {
			m.Close()
		}
	}
}

func (p *Port) open() []*memberConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*memberConn, 0, len(p.members))
	for m := range p.members {
		all = append(all, m)
	}
	return all
}

func (p *Port) join(conn *tls.Conn) {
	leave, ok := p.joins.Enter(conn.NetConn())
	if !ok {
		return
	}
	defer leave()
	if err := p.issuer.Serve(conn); err != nil {
		p.log.Warn("a machine could not join", zap.Error(err))
	}
}

// memberConn is a connection of a member. It hides that it is a *tls.Conn: net/http would take the
// negotiated protocol for one that it should know.
type memberConn struct {
	net.Conn
	peer pki.Peer
	port *Port
}

func (m *memberConn) Close() error {
	m.port.mu.Lock()
	delete(m.port.members, m)
	m.port.mu.Unlock()
	return m.Conn.Close()
}

// queue is a listener that is fed with connections.
type queue struct {
	addr net.Addr
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, c: make(chan net.Conn), done: make(chan struct{})}
}

func (q *queue) put(c net.Conn) bool {
	select {
	case q.c <- c:
		return true
	case <-q.done:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.c:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }
