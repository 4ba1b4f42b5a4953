package pki

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// renew gives an identity a new certificate.
func (s *site) renew(t *testing.T, id *Identity, keepOld bool) {
	t.Helper()
	r, err := id.NewRenewal()
	if err != nil {
		t.Fatal(err)
	}
	der, serial, err := s.issuer.Renew(Peer{Name: id.Name(), Role: id.Role()}, r.CSR)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if id.Serial() != serial {
			t.Errorf("the certificate is %s, issued was %s", id.Serial(), serial)
		}
	}()
	if err := id.Install(r, der, keepOld); err != nil {
		t.Fatal(err)
	}
}

// A certificate is renewed under the feet of who uses it: configurations that were made before take it up, on either
// side, and so does another process that reads the same directory.
func TestRenewalNeedsNoRestart(t *testing.T) {
	s := found(t, "a")
	b := s.join(t, "b", RoleHost)
	other, err := Load(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	config, otherConfig := b.ClientConfig("a", ALPNRPC), other.ClientConfig("a", ALPNRPC)
	serials := func() (client, server string) {
		t.Helper()
		conn, err := tls.Dial("tcp", s.address, config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if name, err := io.ReadAll(conn); err != nil || string(name) != "b" {
			t.Fatalf("%q %v", name, err)
		}
		p, err := PeerOf(conn.ConnectionState())
		if err != nil {
			t.Fatal(err)
		}
		return b.Serial(), p.Serial
	}
	clientBefore, serverBefore := serials()
	s.renew(t, b, true)
	s.renew(t, s.id, true)
	clientAfter, serverAfter := serials()
	if clientAfter == clientBefore || serverAfter == serverBefore || serverAfter != s.id.Serial() {
		t.Errorf("b: %s, then %s; a: %s, then %s", clientBefore, clientAfter, serverBefore, serverAfter)
	}
	if got, err := greet(s.address, otherConfig); err != nil || got != "b" || other.Serial() != b.Serial() {
		t.Errorf("another process: %q %v, %s and not %s", got, err, other.Serial(), b.Serial())
	}
	if old, err := b.Replaces(); err != nil || old != clientBefore {
		t.Errorf("it replaces %q, %v", old, err)
	}
	s.renew(t, b, false)
	if old, err := b.Replaces(); err != nil || old != "" {
		t.Errorf("it keeps %q, %v", old, err)
	}
	m, err := b.Sign("p", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := s.id.Open("p", m); err != nil || p.Serial != b.Serial() {
		t.Errorf("signed by %+v: %v", p, err)
	}
}

// Wherever a renewal is cut off, there is a pair, and who starts then goes on with it.
func TestARenewalThatIsCutOff(t *testing.T) {
	s := found(t, "a")
	b := s.join(t, "b", RoleHost)
	read := func(name string) []byte {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(b.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	oldKey, oldCert, oldSerial := read(hostKeyFile), read(hostCertFile), b.Serial()
	s.renew(t, b, true)
	newKey, newCert, newSerial := read(hostKeyFile), read(hostCertFile), b.Serial()
	for name, tc := range map[string]struct {
		key, cert, next []byte
		serial          string
	}{
		"before the certificate": {oldKey, oldCert, newKey, oldSerial},
		"before the key":         {oldKey, newCert, newKey, newSerial},
		"at the end":             {newKey, newCert, nil, newSerial},
	} {
		dir := t.TempDir()
		for file, content := range map[string][]byte{hostKeyFile: tc.key, hostCertFile: tc.cert, nextKeyFile: tc.next, caCertFile: read(caCertFile)} {
			if content == nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // what the first start leaves is good for the second
			id, err := Load(dir)
			if err != nil || id.Serial() != tc.serial {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if got, err := greet(s.address, id.ClientConfig("a", ALPNRPC)); err != nil || got != "b" {
				t.Errorf("%s: %q %v", name, got, err)
			}
		}
	}
}

func TestWhatIsNotInstalled(t *testing.T) {
	s := found(t, "a")
	b := s.join(t, "b", RoleHost)
	foreign := found(t, "a")
	before := b.Serial()
	r, err := b.NewRenewal()
	if err != nil {
		t.Fatal(err)
	}
	another, err := b.NewRenewal()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(s *site, p Peer, csr []byte) []byte {
		t.Helper()
		der, _, err := s.issuer.Renew(p, csr)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for name, der := range map[string][]byte{
		"nonsense":           []byte("x"),
		"another's name":     sign(s, Peer{Name: "c", Role: RoleHost}, r.CSR),
		"another role":       sign(s, Peer{Name: "b", Role: RoleWitness}, r.CSR),
		"for another key":    sign(s, Peer{Name: "b", Role: RoleHost}, another.CSR),
		"of another cluster": sign(foreign, Peer{Name: "b", Role: RoleHost}, r.CSR),
	} {
		if err := b.Install(r, der, true); err == nil {
			t.Errorf("%s was installed", name)
		}
	}
	if b.Serial() != before {
		t.Error("the certificate has changed")
	}
	// Who signs decides about the name; what the request says does not count.
	forged, err := s.id.NewRenewal() // it says a
	if err != nil {
		t.Fatal(err)
	}
	der := sign(s, Peer{Name: "b", Role: RoleHost}, forged.CSR)
	if err := s.id.Install(forged, der, true); err == nil {
		t.Error("b's certificate became a's")
	}
	if _, _, err := s.issuer.Renew(Peer{Name: "b", Role: RoleHost}, []byte("x")); err == nil {
		t.Error("nonsense was signed")
	}
}

// Who may read the key may read the new one, too: a process of a user of its own has no other way to it.
func TestFilesKeepTheirMode(t *testing.T) {
	s := found(t, "a")
	key := filepath.Join(s.dir, hostKeyFile)
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	s.renew(t, s.id, true)
	for name, want := range map[string]os.FileMode{hostKeyFile: 0o640, hostCertFile: 0o644} {
		if info, err := os.Stat(filepath.Join(s.dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
}

func TestDue(t *testing.T) {
	from := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	e := Expiry{NotBefore: from, NotAfter: from.Add(90 * 24 * time.Hour)}
	for days, want := range map[int]bool{0: false, 59: false, 61: true, 89: true, 91: true} {
		if got := e.Due(from.Add(time.Duration(days) * 24 * time.Hour)); got != want {
			t.Errorf("after %d days: %v", days, got)
		}
	}
	s := found(t, "a")
	if e := s.id.Expiry(); e.Due(time.Now()) || e.Serial != s.id.Serial() || !s.id.CAExpiry().NotAfter.After(e.NotAfter) {
		t.Errorf("%+v %+v", e, s.id.CAExpiry())
	}
}

// A revoked certificate is refused on either side of a handshake, and under a message; others are not concerned.
func TestRevoked(t *testing.T) {
	s := found(t, "a")
	b, c := s.join(t, "b", RoleHost), s.join(t, "c", RoleHost)
	m, err := b.Sign("p", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := StoreRevoked(s.dir, []string{b.Serial(), "7"}); err != nil {
		t.Fatal(err)
	}
	for len(s.errs) > 0 {
		<-s.errs
	}
	if got, err := greet(s.address, b.ClientConfig("a", ALPNRPC)); err == nil {
		t.Errorf("a revoked member is known as %q", got)
	}
	if err := <-s.errs; !errors.Is(err, ErrRevoked) || !errors.Is(err, ErrPeer) {
		t.Errorf("the server says %v", err)
	}
	if _, err := s.id.Open("p", m); !errors.Is(err, ErrPeer) {
		t.Errorf("a revoked signature: %v", err)
	}
	if got, err := greet(s.address, c.ClientConfig("a", ALPNRPC)); err != nil || got != "c" {
		t.Errorf("another: %q %v", got, err)
	}
	// The other way round: c has heard that a is not to be trusted.
	if err := StoreRevoked(c.dir, []string{s.id.Serial()}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", ""} {
		if _, err := greet(s.address, c.ClientConfig(name, ALPNRPC)); !errors.Is(err, ErrPeer) {
			t.Errorf("a revoked server: %v", err)
		}
	}
	// A list that can't be read takes nothing back.
	if err := os.Remove(filepath.Join(c.dir, revokedFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := greet(s.address, c.ClientConfig("a", ALPNRPC)); !errors.Is(err, ErrPeer) {
		t.Errorf("without a list: %v", err)
	}
	if err := StoreRevoked(c.dir, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := greet(s.address, c.ClientConfig("a", ALPNRPC)); err != nil || got != "c" {
		t.Errorf("with an empty list: %q %v", got, err)
	}
}

// An open connection ends when its certificate is revoked.
func TestCutOff(t *testing.T) {
	s := found(t, "a")
	b := s.join(t, "b", RoleHost)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		raw, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		conn := tls.Server(raw, s.id.ServerConfig(ALPNStream))
		defer conn.Close()
		if err := conn.Handshake(); err != nil {
			ended <- err
			return
		}
		s.id.CutOff(conn)
		close(ready)
		_, err = conn.Read(make([]byte, 1))
		ended <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), b.ClientConfig("a", ALPNStream))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	if err := StoreRevoked(s.dir, []string{b.Serial()}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}
