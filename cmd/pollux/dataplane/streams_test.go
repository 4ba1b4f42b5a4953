package dataplane

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

type callers chan string

func (c callers) Serve(conn net.Conn, host string) {
	conn.Close()
	c <- host
}

// Strangers open far more connections than there is room for, and say nothing on them. The twin gets
// through nevertheless.
func TestStrangersKeepNoTwinOut(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := pki.Found(dir, "a"); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	called := make(callers)
	s, err := listenStreams("127.0.0.1:0", id, called, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s.run()
	defer s.close()
	for range 3 * pendingHandshakes {
		c, err := net.Dial("tcp", s.l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d := tls.Dialer{Config: id.ClientConfig("a", pki.ALPNStream)}
	c, err := d.DialContext(ctx, "tcp", s.l.Addr().String())
	if err != nil {
		t.Fatalf("the twin is kept out: %v", err)
	}
	defer c.Close()
	select {
	case host := <-called:
		if host != "a" {
			t.Errorf("%q called", host)
		}
	case <-ctx.Done():
		t.Error("the twin's stream was not taken")
	}
}
