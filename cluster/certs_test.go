package cluster

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/console"
)

// Certificates are renewed under a protected guest, which does not notice, at the host that has the CA's key and at one
// that has not; a restart goes on with the new ones.
func TestRenewal(t *testing.T) {
	a, b, w := trio(t)
	ctx := t.Context()
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Start: true}); err != nil {
		t.Fatal(err)
	}
	term := b.sees("protected", protectedBy("a", "b")).Term
	serials := func(m *machine) map[string]string {
		t.Helper()
		all := map[string]string{}
		m.eventually("all three tell their certificates", func() bool {
			c, err := m.client.Certificates(ctx)
			if err != nil {
				return false
			}
			for _, m := range c.Members {
				all[m.Name] = m.Serial
			}
			return len(c.Members) == 3
		})
		return all
	}
	before := serials(a)
	for _, m := range []*machine{a, b, w} {
		if c, err := m.client.RenewCertificate(ctx, console.RenewRequest{DryRun: true}); err != nil || c.Serial != before[m.cfg.Name] {
			t.Errorf("dry run: %+v %v", c, err)
		}
		m.eventually("renewed", func() bool {
			c, err := m.client.RenewCertificate(ctx, console.RenewRequest{Operator: "op"})
			return err == nil && c.Name == m.cfg.Name && c.Serial != before[m.cfg.Name]
		})
	}
	after := serials(w)
	for name, serial := range before {
		if after[name] == serial || after[name] == "" {
			t.Errorf("%s: %q, then %q", name, serial, after[name])
		}
	}
	if g := a.sees("the guest as it was", protectedBy("a", "b")); g.Term != term {
		t.Errorf("the guest noticed: term %d, then %d", term, g.Term)
	}
	// Each has to come back with what it has now.
	for _, m := range []*machine{a, b, w} {
		m.stop()
		m.start()
	}
	for _, m := range []*machine{a, b, w} {
		m.eventually("all three answer", func() bool {
			s, err := m.client.Status(ctx)
			return err == nil && s.Quorum.Healthy && s.Quorum.Reachable == 3
		})
	}
	if got := serials(b); got["a"] != after["a"] || got["b"] != after["b"] {
		t.Errorf("after a restart %v, before it %v", got, after)
	}
	events, err := a.client.Events(ctx, 1000, "")
	if err != nil || !slices.ContainsFunc(events, func(e console.Event) bool {
		return e.Kind == "membership" && e.Detail["state"] == "certificate renewed" && e.Detail["member"] == "b" && e.Detail["replaces"] == before["b"]
	}) {
		t.Errorf("b's renewal is not in the issuer's event log: %v", err)
	}
}

// A revoked host is out at once, whatever it runs: nobody takes its calls, and it comes back only with a new token.
func TestARevokedHost(t *testing.T) {
	a, b, w := trio(t)
	ctx := t.Context()
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Start: true}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*machine{a, b} { // each goes by its own log
		m.sees("protected", protectedBy("a", "b"))
	}
	if _, err := a.client.RemoveMember(ctx, "b", console.RemoveMemberRequest{Confirm: "b"}); !isCode(err, console.CodeRefused) {
		t.Errorf("removed with a replica: %v", err)
	}
	if _, err := b.client.RemoveMember(ctx, "b", console.RemoveMemberRequest{Confirm: "b", Revoke: true}); !isCode(err, console.CodeRefused) {
		t.Errorf("it has revoked itself: %v", err)
	}
	if _, err := a.client.RemoveMember(ctx, "b", console.RemoveMemberRequest{Revoke: true}); !isCode(err, console.CodeNeedsConfirmation) {
		t.Errorf("unconfirmed: %v", err)
	}
	stolen, err := pki.Load(b.cfg.PKIDir())
	if err != nil {
		t.Fatal(err)
	}
	open, err := tls.DialWithDialer(&net.Dialer{Timeout: limit}, "tcp", w.cfg.ClusterAddress, stolen.ClientConfig("w", pki.ALPNRaft)) // which nobody closes for being silent
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	// Where nobody can say whether it was committed, it shows below.
	if m, err := a.client.RemoveMember(ctx, "b", console.RemoveMemberRequest{Confirm: "b", Revoke: true, Operator: "op"}); err != nil && !isCode(err, console.CodeUnknown) {
		t.Fatalf("%+v %v", m, err)
	}
	for _, m := range []*machine{a, w} {
		m.eventually("b is out, and its certificate is refused", func() bool {
			s, err := m.client.Status(ctx)
			if err != nil || slices.ContainsFunc(s.Members, func(o console.Member) bool { return o.Name == "b" }) {
				return false
			}
			return !reaches(m, stolen)
		})
	}
	if err := open.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection of b's is open still: %v", err)
	}
	b.eventually("b can change nothing", func() bool {
		_, err := b.client.Stop(ctx, "g", console.StopRequest{Wait: console.Wait{WaitSeconds: -1}})
		return err != nil
	})
	if g := a.sees("a still has it", func(*console.Guest) bool { return true }); g.Primary != "a" {
		t.Errorf("%+v", g)
	}
}

// reaches says whether a member takes a connection with an identity.
func reaches(m *machine, id *pki.Identity) bool {
	return dialMember(m.cfg.ClusterAddress, id.ClientConfig(m.cfg.Name, pki.ALPNRPC)) == nil
}

// dialMember makes a call, to which any answer of the protocol is one. With TLS 1.3 a client hears of a refusal only
// when it reads.
func dialMember(address string, c *tls.Config) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: limit}, "tcp", address, c)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}
