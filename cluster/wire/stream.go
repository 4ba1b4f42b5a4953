package wire

import (
	"context"
	"crypto/tls"
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

// Dial connects to a member, in the form of At.
func Dial(ctx context.Context, id *pki.Identity, at, alpn string) (*tls.Conn, error) {
	name, address := Split(at)
	d := tls.Dialer{
		NetDialer: &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive, Count: 3}},
		Config:    id.ClientConfig(name, alpn),
	}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

// Streams is Raft's way through the port.
type Streams struct {
	port *Port
}

var _ raft.StreamLayer = (*Streams)(nil)

// Raft gives the connections of the Raft protocol, and makes new ones.
func (p *Port) Raft() *Streams { return &Streams{port: p} }

func (s *Streams) Accept() (net.Conn, error) { return s.port.raft.Accept() }
func (s *Streams) Close() error              { return s.port.raft.Close() }
func (s *Streams) Addr() net.Addr            { return s.port.Addr() }

// Dial connects to a voter, in the form of At.
func (s *Streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return Dial(ctx, s.port.id, string(address), pki.ALPNRaft)
}
