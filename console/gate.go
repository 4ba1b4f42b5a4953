package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

const (
	// strangersMax bounds the connections on which no good token was shown yet. Where one more comes, the oldest
	// of the busiest address goes.
	strangersMax = 128
	// userConnsMax bounds the connections of one user.
	userConnsMax = 32
)

// gate is the API's TCP port: it hands out connections whose TLS handshake is done.
type gate struct {
	l         net.Listener
	config    *tls.Config
	log       *zap.Logger
	strangers *wire.Lobby
	ready     chan net.Conn
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu    sync.Mutex
	users map[string]int // open connections, by user
}

// ListenTLS opens the API's TCP port.
func ListenTLS(address string, id *pki.Identity, log *zap.Logger) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("api_address %s is in use: another program has the port (`ss -ltnp` shows which)", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("api_address %s is not an address of this machine", address)
	case err != nil:
		return nil, fmt.Errorf("open api_address %s: %w", address, err)
	}
	g := &gate{
		l: l, config: id.APIConfig(), log: log, strangers: wire.NewLobby(strangersMax),
		ready: make(chan net.Conn), users: map[string]int{},
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.wg.Go(g.run)
	return g, nil
}

func (g *gate) run() {
	g.strangers.Receive(g.l, func(err error) { g.log.Warn("accept on the API's port", zap.Error(err)) },
		func(c net.Conn, leave func()) { g.wg.Go(func() { g.handshake(c, leave) }) })
}

func (g *gate) handshake(c net.Conn, leave func()) {
	t := tls.Server(c, g.config)
	ctx, cancel := context.WithTimeout(g.ctx, headerTimeout)
	err := t.HandshakeContext(ctx)
	cancel()
	v := &visitor{Conn: t, gate: g, leave: leave}
	if err != nil {
		g.log.Debug("handshake refused", zap.Stringer("from", c.RemoteAddr()), zap.Error(err))
		v.Close()
		return
	}
	select {
	case g.ready <- v:
	case <-g.ctx.Done():
		v.Close()
	}
}

func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.ready:
		return c, nil
	case <-g.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (g *gate) Addr() net.Addr { return g.l.Addr() }

// Close closes the port and the connections that nobody has taken. The others are the taker's to close.
func (g *gate) Close() error {
	g.cancel()
	err := g.l.Close()
	g.strangers.Close()
	g.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil // net/http closes its listeners more than once
	}
	return err
}

// visitor is a connection to the gate: a stranger's, until a user's token was shown on it.
type visitor struct {
	net.Conn
	gate  *gate
	leave func()

	mu     sync.Mutex
	user   string
	closed bool
}

// admit takes the connection as a user's. False: the user has too many, or it has become another's.
func (v *visitor) admit(user string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.user == user {
		return true
	}
	if v.user != "" || v.closed {
		return false
	}
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	if v.gate.users[user] >= userConnsMax {
		return false
	}
	v.gate.users[user]++
	v.user = user
	v.leave()
	return true
}

func (v *visitor) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.closed {
		v.closed = true
		v.leave()
		if v.user != "" {
			v.gate.mu.Lock()
			if v.gate.users[v.user]--; v.gate.users[v.user] == 0 {
				delete(v.gate.users, v.user)
			}
			v.gate.mu.Unlock()
		}
	}
	return v.Conn.Close()
}
