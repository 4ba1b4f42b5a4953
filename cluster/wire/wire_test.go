package wire

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

func TestMain(m *testing.M) {
	// A server of net/http lingers half a second over a connection whose request it did not read to the end.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

const limit = 60 * time.Second

// site is a founder with an open port.
type site struct {
	port    *Port
	id      *pki.Identity
	issuer  *pki.Issuer
	revoked atomic.Pointer[string]
}

func open(t *testing.T, name string) *site {
	t.Helper()
	dir := t.TempDir()
	c, _, err := pki.Found(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{id: id}
	if s.issuer, err = pki.NewIssuer(dir, id, c); err != nil {
		t.Fatal(err)
	}
	s.port, err = Listen("127.0.0.1:0", id, s.issuer, func(p pki.Peer) error {
		if r := s.revoked.Load(); r != nil && *r == p.Name {
			return errors.New("it was removed")
		}
		return nil
	}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.port.Close() })
	return s
}

func (s *site) member(t *testing.T, name string) *pki.Identity {
	t.Helper()
	tok, _, err := s.issuer.Issue(name, pki.RoleHost, s.port.Addr().String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, _, err := pki.Join(t.Context(), dir, name, tok.String()); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestCalls(t *testing.T) {
	s := open(t, "a")
	b := s.member(t, "b")
	server := s.port.Serve(map[string]Handler{
		"who": func(_ context.Context, p pki.Peer, body []byte) (any, error) { return p.Name + " " + string(body), nil },
		"refuse": func(context.Context, pki.Peer, []byte) (any, error) {
			return nil, &RPCError{Status: 409, Code: "no", Message: "not so"}
		},
		"fail": func(context.Context, pki.Peer, []byte) (any, error) { return nil, errors.New("broken") },
	})
	defer server.Close()
	c := NewClient(b)
	defer c.Close()
	at := At("a", s.port.Addr().String())
	var got string
	if err := c.Call(t.Context(), at, "who", 7, &got); err != nil || got != "b 7" {
		t.Errorf("%q %v", got, err)
	}
	var e *RPCError
	if err := c.Call(t.Context(), at, "refuse", 7, &got); !errors.As(err, &e) || e.Code != "no" || e.Status != 409 || errors.Is(err, ErrNotSent) {
		t.Errorf("refused: %v", err)
	}
	if err := c.Call(t.Context(), at, "fail", 7, &got); !errors.As(err, &e) || e.Code != "failed" {
		t.Errorf("failed: %v", err)
	}
	// A call that can't have arrived says so; to the wrong member it does not arrive.
	for _, nowhere := range []string{At("a", "127.0.0.1:1"), At("w", s.port.Addr().String())} {
		if err := c.Call(t.Context(), nowhere, "who", 7, &got); !errors.Is(err, ErrNotSent) {
			t.Errorf("%s: %v", nowhere, err)
		}
	}
	if err := c.Call(t.Context(), at, "who", strings.Repeat("x", MaxBodyBytes), &got); err == nil {
		t.Error("a call beyond all bounds was answered")
	}
	// Once removed, a member is not answered, on old connections neither, and they are cut.
	name := "b"
	s.revoked.Store(&name)
	if err := c.Call(t.Context(), at, "who", 7, &got); err == nil {
		t.Error("a removed member was answered")
	}
	s.port.Recheck()
	if n := len(s.port.open()); n != 0 {
		t.Errorf("%d connections of a removed member are open", n)
	}
}

func TestRaftStreams(t *testing.T) {
	s := open(t, "a")
	b := s.member(t, "b")
	other := &Port{id: b}
	streams := other.Raft(5 * time.Second)
	done := make(chan error, 1)
	go func() {
		c, err := s.port.Raft(time.Second).Accept()
		if err == nil {
			_, err = c.Write([]byte("x"))
			c.Close()
		}
		done <- err
	}()
	c, err := streams.Dial(raft.ServerAddress(At("a", s.port.Addr().String())), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := streams.Dial(raft.ServerAddress(At("b", s.port.Addr().String())), 5*time.Second); err == nil {
		t.Error("a was taken for b")
	}
}

// A stranger opens far more connections than there is room for, and says nothing or nonsense on them.
// Members get through nevertheless.
func TestStrangersStopNothing(t *testing.T) {
	s := open(t, "a")
	b := s.member(t, "b")
	server := s.port.Serve(map[string]Handler{"ping": func(context.Context, pki.Peer, []byte) (any, error) { return "pong", nil }})
	defer server.Close()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 2 * pendingMax {
		c, err := net.Dial("tcp", s.port.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			_, _ = c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		}
		conns = append(conns, c)
	}
	c := NewClient(b)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var got string
	if err := c.Call(ctx, At("a", s.port.Addr().String()), "ping", nil, &got); err != nil || got != "pong" {
		t.Errorf("a member did not get through: %q %v", got, err)
	}
	s.port.pending.mu.Lock()
	pending := len(s.port.pending.waiting)
	s.port.pending.mu.Unlock()
	if pending > pendingMax {
		t.Errorf("%d handshakes under way", pending)
	}
	// Strangers who begin to join and go no further keep no joiner out.
	for range 2 * joinsMax {
		c, err := tls.Dial("tcp", s.port.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{pki.ALPNJoin}})
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if id := s.member(t, "c"); id.Name() != "c" {
		t.Errorf("%q joined", id.Name())
	}
}

// Joiners are not members: on their protocol nothing but joining is to be had, and little at a time.
func TestJoinersGetNothingElse(t *testing.T) {
	s := open(t, "a")
	server := s.port.Serve(map[string]Handler{"ping": func(context.Context, pki.Peer, []byte) (any, error) { return "pong", nil }})
	defer server.Close()
	conn, err := tls.Dial("tcp", s.port.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{pki.ALPNJoin}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(limit))
	b, _ := io.ReadAll(conn)
	if json.Valid(b) || strings.Contains(string(b), "pong") {
		t.Errorf("a joiner was answered: %q", b)
	}
}

func TestAddressInUse(t *testing.T) {
	s := open(t, "a")
	_, err := Listen(s.port.Addr().String(), s.id, nil, nil, zap.NewNop())
	if err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "cluster_address") {
		t.Errorf("%v", err)
	}
	if _, err := Listen("192.0.2.1:7700", s.id, nil, nil, zap.NewNop()); err == nil || !strings.Contains(err.Error(), "not an address of this machine") {
		t.Errorf("%v", err)
	}
}
