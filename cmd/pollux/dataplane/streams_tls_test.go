package dataplane

import (
	"crypto/tls"
	"net"
	"testing"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

// A checkpoint stream is TLS 1.3, between members, and of no other protocol.
func TestStreamsAreTLS13(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for d, name := range map[string]string{dir: "a", other: "a"} {
		if _, _, err := pki.Found(d, name); err != nil {
			t.Fatal(err)
		}
	}
	id, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := pki.Load(other)
	if err != nil {
		t.Fatal(err)
	}
	called := make(callers, 100)
	s, err := listenStreams("127.0.0.1:0", id, called, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s.run()
	defer s.close()
	old := id.ClientConfig("a", pki.ALPNStream)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS12
	foreign := stranger.ClientConfig("a", pki.ALPNStream)
	foreign.InsecureSkipVerify, foreign.VerifyConnection = true, nil
	bare := id.ClientConfig("a", pki.ALPNStream)
	bare.GetClientCertificate = nil
	for name, c := range map[string]*tls.Config{
		"TLS 1.2": old, "another cluster's certificate": foreign, "no certificate": bare,
		"another protocol": id.ClientConfig("a", pki.ALPNRPC), "to another host": id.ClientConfig("b", pki.ALPNStream),
	} {
		conn, err := tls.Dial("tcp", s.l.Addr().String(), c)
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // with TLS 1.3 a client hears of a refusal only now
			conn.Close()
		}
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	conn, err := tls.Dial("tcp", s.l.Addr().String(), id.ClientConfig("a", pki.ALPNStream))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if host := <-called; host != "a" || len(called) != 0 {
		t.Errorf("%q called, and %d others", host, len(called))
	}
}

// reader reads a stream to its end.
type reader struct{ began, ended chan error }

func (r reader) Serve(conn net.Conn, _ string) {
	r.began <- nil
	_, err := conn.Read(make([]byte, 1))
	conn.Close()
	r.ended <- err
}

// The stream of a host whose certificate is revoked ends, and it gets no other.
func TestTheStreamOfARevokedHost(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := pki.Found(dir, "a"); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := reader{began: make(chan error, 1), ended: make(chan error, 1)}
	s, err := listenStreams("127.0.0.1:0", id, r, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	s.run()
	defer s.close()
	conn, err := tls.Dial("tcp", s.l.Addr().String(), id.ClientConfig("a", pki.ALPNStream))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-r.began
	if err := pki.StoreRevoked(dir, []string{id.Serial()}); err != nil {
		t.Fatal(err)
	}
	if err := <-r.ended; err == nil {
		t.Error("it goes on")
	}
	if again, err := tls.Dial("tcp", s.l.Addr().String(), id.ClientConfig("a", pki.ALPNStream)); err == nil {
		again.Close()
		t.Error("it was taken again")
	}
}
