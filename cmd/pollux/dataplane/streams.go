package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

// handshakeTimeout bounds a TLS handshake.
const handshakeTimeout = 5 * time.Second

// pendingHandshakes bounds connections that have not shown a certificate yet.
const pendingHandshakes = 16

// server takes authenticated streams.
type server interface {
	Serve(conn net.Conn, host string)
}

// streams listens for checkpoint streams.
type streams struct {
	l       net.Listener
	config  *tls.Config
	server  server
	log     *zap.Logger
	pending chan struct{}

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func listenStreams(address string, id *pki.Identity, s server, log *zap.Logger) (*streams, error) {
	if id == nil {
		return nil, errors.New("a checkpoint stream needs certificates: pki is empty")
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for checkpoint streams: %w", err)
	}
	st := &streams{l: l, config: id.ServerConfig(pki.ALPNStream), server: s, log: log, pending: make(chan struct{}, pendingHandshakes)}
	st.ctx, st.cancel = context.WithCancel(context.Background())
	return st, nil
}

func (s *streams) run() {
	s.wg.Go(func() {
		for {
			c, err := s.l.Accept()
			if err != nil {
				if s.ctx.Err() == nil {
					s.log.Error("accept checkpoint streams", zap.Error(err))
				}
				return
			}
			select {
			case s.pending <- struct{}{}:
				s.wg.Go(func() { s.serve(c) })
			default:
				c.Close()
			}
		}
	})
}

func (s *streams) serve(c net.Conn) {
	t := tls.Server(c, s.config)
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTimeout)
	err := t.HandshakeContext(ctx)
	cancel()
	<-s.pending
	if err != nil {
		s.log.Warn("a checkpoint stream failed its handshake", zap.Stringer("from", c.RemoteAddr()), zap.Error(err))
		c.Close()
		return
	}
	peer, err := pki.PeerOf(t.ConnectionState())
	if err == nil && peer.Role != pki.RoleHost {
		err = fmt.Errorf("%s is a %s: only hosts send checkpoints", peer.Name, peer.Role)
	}
	if err != nil {
		s.log.Warn("a checkpoint stream is refused", zap.Stringer("from", c.RemoteAddr()), zap.Error(err))
		c.Close()
		return
	}
	s.server.Serve(t, peer.Name)
}

// close ends listening. Streams that are open are the server's to end.
func (s *streams) close() {
	s.cancel()
	s.l.Close()
}
