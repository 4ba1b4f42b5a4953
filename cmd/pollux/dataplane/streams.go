package dataplane

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
	"github.com/pollux-ha/pollux/cluster/wire"
)

// handshakeTimeout bounds a TLS handshake.
const handshakeTimeout = 5 * time.Second

// pendingHandshakes bounds connections that have not shown a certificate yet. A twin's takes milliseconds.
const pendingHandshakes = 32

// complainEvery bounds how often strangers are mentioned in the log: they must not fill it.
const complainEvery = 10 * time.Second

// server takes authenticated streams.
type server interface {
	Serve(conn net.Conn, host string)
}

// streams listens for checkpoint streams.
type streams struct {
	l       net.Listener
	id      *pki.Identity
	config  *tls.Config
	server  server
	log     *zap.Logger
	pending *wire.Lobby

	complained time.Time // guarded by complaints
	unsaid     int
	complaints sync.Mutex

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func listenStreams(address string, id *pki.Identity, s server, log *zap.Logger) (*streams, error) {
	if id == nil {
		return nil, errors.New("a checkpoint stream needs certificates: pki is empty")
	}
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("replication_address: %s is not an address of this machine", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for checkpoint streams: %w", err)
	}
	st := &streams{l: l, id: id, config: id.ServerConfig(pki.ALPNStream), server: s, log: log, pending: wire.NewLobby(pendingHandshakes)}
	st.ctx, st.cancel = context.WithCancel(context.Background())
	return st, nil
}

func (s *streams) run() {
	s.wg.Go(func() {
		s.pending.Receive(s.l, func(err error) { s.log.Error("accept checkpoint streams", zap.Error(err)) },
			func(c net.Conn, leave func()) { s.wg.Go(func() { s.serve(c, leave) }) })
	})
}

// complain mentions a stranger in the log, now and then.
func (s *streams) complain(what string, c net.Conn, err error) {
	s.complaints.Lock()
	defer s.complaints.Unlock()
	if time.Since(s.complained) < complainEvery {
		s.unsaid++
		return
	}
	s.log.Warn(what, zap.Stringer("from", c.RemoteAddr()), zap.Int("not_mentioned_before", s.unsaid), zap.Error(err))
	s.complained, s.unsaid = time.Now(), 0
}

func (s *streams) serve(c net.Conn, leave func()) {
	t := tls.Server(c, s.config)
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTimeout)
	err := t.HandshakeContext(ctx)
	cancel()
	leave()
	if err != nil {
		s.complain("a checkpoint stream failed its handshake", c, err)
		c.Close()
		return
	}
	peer, err := pki.PeerOf(t.ConnectionState())
	if err == nil && peer.Role != pki.RoleHost {
		err = fmt.Errorf("%s is a %s: only hosts send checkpoints", peer.Name, peer.Role)
	}
	if err != nil {
		s.complain("a checkpoint stream is refused", c, err)
		c.Close()
		return
	}
	s.id.CutOff(t)
	s.server.Serve(t, peer.Name)
}

// close ends listening. Streams that are open are the server's to end.
func (s *streams) close() {
	s.cancel()
	s.l.Close()
	s.pending.Close()
}
