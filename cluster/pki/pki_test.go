package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// site is a cluster's founder that listens.
type site struct {
	dir     string
	id      *Identity
	issuer  *Issuer
	address string
	errs    chan error
}

func found(t *testing.T, name string) *site {
	t.Helper()
	dir := t.TempDir()
	c, _, err := Found(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	id, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := NewIssuer(dir, id, c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: dir, id: id, issuer: issuer, address: l.Addr().String(), errs: make(chan error, 100)}
	issuer.Seeds = func() []Seed { return []Seed{{Name: name, ClusterAddress: s.address}} }
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tc := tls.Server(conn, id.MuxConfig(true, ALPNRaft, ALPNRPC))
			tc.SetDeadline(time.Now().Add(10 * time.Second))
			if err := tc.Handshake(); err != nil {
				tc.Close()
				s.errs <- err
				continue
			}
			if tc.ConnectionState().NegotiatedProtocol == ALPNJoin {
				s.errs <- issuer.Serve(tc)
				continue
			}
			p, err := PeerOf(tc.ConnectionState())
			if err == nil {
				tc.Write([]byte(p.Name))
			}
			tc.Close()
			s.errs <- err
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return s
}

func (s *site) token(t *testing.T, name string, role Role, valid time.Duration) string {
	t.Helper()
	tok, _, err := s.issuer.Issue(name, role, s.address, valid)
	if err != nil {
		t.Fatal(err)
	}
	return tok.String()
}

func (s *site) join(t *testing.T, name string, role Role) *Identity {
	t.Helper()
	dir := t.TempDir()
	c, issuer, err := Join(t.Context(), dir, name, s.token(t, name, role, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if c.Role != role || issuer != s.id.Name() || len(c.Seeds) != 1 || c.Founder {
		t.Errorf("joined: %+v, let in by %q", c, issuer)
	}
	id, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := LoadCluster(dir); err != nil || got.ID != s.issuer.cluster.ID {
		t.Errorf("what was stored: %+v %v", got, err)
	}
	return id
}

// greet connects and returns the name under which the server knows the client.
func greet(address string, c *tls.Config) (string, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, c)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 100)
	n, err := conn.Read(b)
	if n == 0 {
		return "", err
	}
	return string(b[:n]), nil
}

func TestJoinAndTalk(t *testing.T) {
	s := found(t, "a")
	b := s.join(t, "b", RoleHost)
	w := s.join(t, "w", RoleWitness)
	for _, id := range []*Identity{b, w} {
		got, err := greet(s.address, id.ClientConfig("a", ALPNRPC))
		if err != nil || got != id.Name() {
			t.Errorf("%s is known as %q: %v", id.Name(), got, err)
		}
	}
	if w.Role() != RoleWitness || b.CAFingerprint() != s.id.CAFingerprint() {
		t.Error("role or CA")
	}
	if got, err := greet(s.address, b.ClientConfig("", ALPNRaft)); err != nil || got != "b" {
		t.Errorf("to any member: %q %v", got, err)
	}
}

func TestAHostIsNotAnother(t *testing.T) {
	s := found(t, "a")
	b := s.join(t, "b", RoleHost)
	if _, err := greet(s.address, b.ClientConfig("w", ALPNRPC)); err == nil {
		t.Error("b took a for w")
	}
	m, err := b.Sign("proposal", []byte("I am b"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := s.id.Open("proposal", m); err != nil || p.Name != "b" || p.Serial != b.Serial() {
		t.Errorf("signed by %+v: %v", p, err)
	}
	m.Body = []byte("I am a")
	if _, err := s.id.Open("proposal", m); !errors.Is(err, ErrPeer) {
		t.Errorf("a changed message: %v", err)
	}
	m.Body = []byte("I am b")
	if _, err := s.id.Open("another purpose", m); !errors.Is(err, ErrPeer) {
		t.Errorf("another purpose: %v", err)
	}
}

func TestStrangers(t *testing.T) {
	s, other := found(t, "a"), found(t, "a")
	if _, err := greet(s.address, other.id.ClientConfig("a", ALPNRPC)); err == nil {
		t.Error("another cluster's host was let in")
	}
	m, err := other.id.Sign("x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.id.Open("x", m); !errors.Is(err, ErrPeer) {
		t.Errorf("another cluster's signature: %v", err)
	}
	for _, protos := range [][]string{{ALPNRPC}, {ALPNRaft}, {ALPNJoin, ALPNRPC}, {ALPNRPC, ALPNJoin}, {"h2"}, nil} {
		if got, err := greet(s.address, &tls.Config{InsecureSkipVerify: true, NextProtos: protos}); err == nil {
			t.Errorf("without a certificate, offering %v: %q", protos, got)
		}
	}
	// A member that names no protocol gets none; neither does one with old TLS.
	none := s.id.ClientConfig("a", ALPNRPC)
	none.NextProtos = nil
	none.VerifyConnection = nil
	if got, err := greet(s.address, none); err == nil {
		t.Errorf("without a protocol: %q", got)
	}
	old := s.id.ClientConfig("a", ALPNRPC)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := greet(s.address, old); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestTokens(t *testing.T) {
	s := found(t, "a")
	other := found(t, "a")
	refused := func(what, name, token, says string) {
		t.Helper()
		dir := t.TempDir()
		_, _, err := Join(t.Context(), dir, name, token)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
		if files, _ := os.ReadDir(dir); len(files) != 0 {
			t.Errorf("%s: left %v behind", what, files)
		}
	}
	expired := s.token(t, "b", RoleHost, -time.Second)
	refused("expired", "b", expired, "expired")

	once := s.token(t, "b", RoleHost, time.Minute)
	if _, _, err := Join(t.Context(), t.TempDir(), "b", once); err != nil {
		t.Fatal(err)
	}
	refused("used twice", "b", once, "used up")

	refused("another machine's", "c", s.token(t, "b", RoleHost, time.Minute), "issued for")

	first := s.token(t, "b", RoleHost, time.Minute)
	s.token(t, "b", RoleHost, time.Minute)
	refused("replaced by a later one", "b", first, "used up")

	wrong, err := ParseToken(s.token(t, "b", RoleHost, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	wrong.Secret[0] ^= 1
	refused("wrong secret", "b", wrong.String(), "wrong")

	// Somebody else answers at the address: nothing is told to him.
	diverted, _ := ParseToken(s.token(t, "b", RoleHost, time.Minute))
	diverted.Address = other.address
	refused("another cluster answers", "b", diverted.String(), "does not belong to the cluster")

	for _, bad := range []string{"", "pollux1.", "pollux1.AAAA", "pollux1.!!!", "x"} {
		refused("nonsense", "b", bad, "no join token")
	}
	// What is stored lets nobody in.
	b, err := os.ReadFile(filepath.Join(s.dir, tokensFile))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), once) {
		t.Error("a token is stored in clear")
	}
}

func TestJoinTwice(t *testing.T) {
	s := found(t, "a")
	if _, _, err := Found(s.dir, "a"); !errors.Is(err, ErrExists) {
		t.Errorf("founded again: %v", err)
	}
	if _, _, err := Join(t.Context(), s.dir, "a", s.token(t, "a", RoleHost, time.Minute)); !errors.Is(err, ErrExists) {
		t.Errorf("joined while a member: %v", err)
	}
}

func TestJoinGivesUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := found(t, "a")
	tok, _ := ParseToken(s.token(t, "b", RoleHost, time.Minute))
	tok.Address = l.Addr().String() // accepts, says nothing
	ctx, cancel := context.WithCancel(t.Context())
	context.AfterFunc(ctx, func() {})
	go func() {
		if conn, err := l.Accept(); err == nil {
			defer conn.Close()
			conn.Read(make([]byte, 1))
			cancel()
			<-t.Context().Done()
		}
	}()
	if _, _, err := Join(ctx, t.TempDir(), "b", tok.String()); err == nil {
		t.Error("joined nobody")
	}
}

func TestRefusedRequestsAndAdmission(t *testing.T) {
	s := found(t, "a")
	s.issuer.Admit = func(name string, _ Role) error {
		if name == "b" {
			return errors.New("the event log can't be written")
		}
		return nil
	}
	_, _, err := Join(t.Context(), t.TempDir(), "b", s.token(t, "b", RoleHost, time.Minute))
	if err == nil || strings.Contains(err.Error(), "event log") {
		t.Errorf("a joiner is told: %v", err)
	}
	// Too much, too little, no JSON.
	for _, garbage := range [][]byte{{255, 255, 255, 255}, {2, 0, 0, 0, '{', 'x'}, {5, 0, 0, 0}} {
		conn, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNJoin}})
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(garbage)
		conn.Close()
	}
	if _, err := NewIssuer(joinDir(t, s), s.id, &Cluster{}); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("an issuer without the CA's key: %v", err)
	}
}

func joinDir(t *testing.T, s *site) string {
	dir := t.TempDir()
	if _, _, err := Join(t.Context(), dir, "c", s.token(t, "c", RoleHost, time.Minute)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestACertificateIsTakenUpWhenItIsReplaced(t *testing.T) {
	s := found(t, "a")
	dir := t.TempDir()
	if _, _, err := Join(t.Context(), dir, "b", s.token(t, "b", RoleHost, time.Minute)); err != nil {
		t.Fatal(err)
	}
	id, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := id.Serial()
	key, err := readKey(filepath.Join(dir, hostKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	der, err := s.issuer.ca.sign(key.Public(), "b", RoleHost)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, hostCertFile)
	if err := writeFile(path, encodeCert(der), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if id.Serial() == before {
		t.Error("the old certificate is still shown")
	}
}
