package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/pki"
)

// At joins a member's name and address. Whoever dials it accepts nobody of another name.
func At(name, address string) string { return name + "@" + address }

// Split takes At apart. Without a name, any member will do.
func Split(at string) (name, address string) {
	if name, address, ok := strings.Cut(at, "@"); ok {
		return name, address
	}
	return "", at
}

// DialFunc makes a TCP connection. Tests give their own, to cut links.
type DialFunc func(ctx context.Context, address string) (net.Conn, error)

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: 3}}
	return d.DialContext(ctx, "tcp", address)
}

// dial connects to a member, in the form of At.
func dial(ctx context.Context, id *pki.Identity, via DialFunc, at, alpn string) (*tls.Conn, error) {
	name, address := Split(at)
	if via == nil {
		via = dialTCP
	}
	raw, err := via(ctx, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, id.ClientConfig(name, alpn))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("connect to %s: %w", at, err)
	}
	return conn, nil
}

// Streams is Raft's way through the port.
type Streams struct {
	port    *Port
	timeout time.Duration
}

var _ raft.StreamLayer = (*Streams)(nil)

// Raft gives the connections of the Raft protocol, and makes new ones within the timeout.
func (p *Port) Raft(timeout time.Duration) *Streams { return &Streams{port: p, timeout: timeout} }

func (s *Streams) Accept() (net.Conn, error) { return s.port.raft.Accept() }
func (s *Streams) Close() error              { return s.port.raft.Close() }
func (s *Streams) Addr() net.Addr            { return s.port.Addr() }

// Dial connects to a voter, in the form of At.
func (s *Streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, s.timeout))
	defer cancel()
	return dial(ctx, s.port.id, s.port.DialVia, string(address), pki.ALPNRaft)
}
