package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

// No protocol on the port is spoken below TLS 1.3, with a member's certificate or without.
func TestOnlyTLS13(t *testing.T) {
	s := open(t, "a")
	b := s.member(t, "b")
	for _, alpn := range []string{pki.ALPNRaft, pki.ALPNRPC, pki.ALPNJoin} {
		for name, c := range map[string]*tls.Config{
			"with a certificate": b.ClientConfig("a", alpn),
			"without":            {InsecureSkipVerify: true, NextProtos: []string{alpn}},
		} {
			for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
				c.MinVersion, c.MaxVersion = tls.VersionTLS10, version
				if conn, err := tls.Dial("tcp", s.port.Addr().String(), c); err == nil {
					conn.Close()
					t.Errorf("%s, %s: %s is spoken", alpn, name, tls.VersionName(version))
				}
			}
		}
	}
}

// lend takes an identity for another machine's address: what a thief of its key and certificate can do.
func lend(t *testing.T, id *pki.Identity) string {
	t.Helper()
	p, err := Listen("127.0.0.1:0", id, nil, nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	server := p.Serve(map[string]Handler{"ping": func(context.Context, pki.Peer, []byte) (any, error) { return "pong", nil }})
	t.Cleanup(func() { server.Close(); p.Close() })
	return p.Addr().String()
}

// The certificate of b is good for b alone: at the address of c or w, on either protocol, it is worth nothing, and
// whoever comes with it is b.
func TestAStolenCertificate(t *testing.T) {
	s := open(t, "a")
	b, w := s.member(t, "b"), s.member(t, "w")
	thief := lend(t, b)
	client := NewClient(w)
	defer client.Close()
	streams := (&Port{id: w}).Raft(limit)
	var got string
	if err := client.Call(t.Context(), At("b", thief), "ping", nil, &got); err != nil || got != "pong" {
		t.Fatalf("as itself: %q %v", got, err)
	}
	for _, name := range []string{"a", "c", "w"} {
		if err := client.Call(t.Context(), At(name, thief), "ping", nil, &got); !errors.Is(err, ErrNotSent) {
			t.Errorf("calls: b was taken for %s: %v", name, err)
		}
		if c, err := streams.Dial(raft.ServerAddress(At(name, thief)), limit); err == nil {
			c.Close()
			t.Errorf("Raft: b was taken for %s", name)
		}
	}
	// Its client side: the name is the certificate's, whatever is said in the handshake.
	who := make(chan string, 1)
	server := s.port.Serve(map[string]Handler{"who": func(_ context.Context, p pki.Peer, _ []byte) (any, error) { who <- p.Name; return 0, nil }})
	defer server.Close()
	c := b.ClientConfig("a", pki.ALPNRPC)
	conn, err := tls.Dial("tcp", s.port.Addr().String(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("POST /who HTTP/1.1\r\nHost: w\r\nX-Pollux-Member: w\r\nContent-Length: 1\r\n\r\n0")); err != nil {
		t.Fatal(err)
	}
	if name := <-who; name != "b" {
		t.Errorf("b passed for %s", name)
	}
}

// tape keeps what goes through a connection, and may change the first that is sent.
type tape struct {
	net.Conn
	mu     sync.Mutex
	said   []byte
	change func([]byte) []byte
}

func (t *tape) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := p
	if t.change != nil {
		out, t.change = t.change(bytes.Clone(p)), nil
	}
	t.said = append(t.said, out...)
	if _, err := t.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// A member's connection that was recorded does nothing when it is played again: there is no early data, and no
// session is resumed.
func TestAReplay(t *testing.T) {
	s := open(t, "a")
	b := s.member(t, "b")
	var calls atomic.Int32
	server := s.port.Serve(map[string]Handler{"order": func(context.Context, pki.Peer, []byte) (any, error) { return calls.Add(1), nil }})
	defer server.Close()
	raw, err := net.Dial("tcp", s.port.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	rec := &tape{Conn: raw}
	conn := tls.Client(rec, b.ClientConfig("a", pki.ALPNRPC))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/order", bytes.NewReader([]byte("{}")))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || !bytes.Contains(answer, []byte("200 OK")) {
		t.Fatalf("%q %v", answer, err)
	}
	conn.Close()
	if conn.ConnectionState().DidResume || calls.Load() != 1 {
		t.Fatalf("%d calls", calls.Load())
	}
	again, err := net.Dial("tcp", s.port.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Write(rec.said); err != nil {
		t.Log("cut off while it was played:", err)
	}
	_, _ = io.Copy(io.Discard, again) // until the port closes it
	if n := calls.Load(); n != 1 {
		t.Errorf("the replay was taken: %d calls", n)
	}
}

// Somebody on the way who makes TLS 1.2 of the offer gets no connection at all, nor does one who takes the
// protocol's name away.
func TestADowngrade(t *testing.T) {
	s := open(t, "a")
	b := s.member(t, "b")
	server := s.port.Serve(nil)
	defer server.Close()
	for name, change := range map[string]func([]byte) []byte{
		// The extension supported_versions (RFC 8446, 4.2.1) with the one version that is offered.
		"version": func(p []byte) []byte {
			return bytes.Replace(p, []byte{0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x04}, []byte{0x00, 0x2b, 0x00, 0x03, 0x02, 0x03, 0x03}, 1)
		},
		"protocol": func(p []byte) []byte {
			return bytes.Replace(p, []byte(pki.ALPNRPC), []byte(pki.ALPNRPC[:len(pki.ALPNRPC)-1]+"0"), 1)
		},
		"nothing": nil,
	} {
		raw, err := net.Dial("tcp", s.port.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		changed := change == nil
		rec := &tape{Conn: raw, change: func(p []byte) []byte {
			if change == nil {
				return p
			}
			out := change(p)
			changed = !bytes.Equal(out, p)
			return out
		}}
		conn := tls.Client(rec, b.ClientConfig("a", pki.ALPNRPC))
		if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		err = conn.Handshake()
		if !changed {
			t.Errorf("%s: the test has changed nothing", name)
		}
		if (err == nil) != (change == nil) {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
}
