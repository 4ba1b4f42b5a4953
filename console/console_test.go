package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/consensus"
	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/wire"
)

func TestEveryErrorHasItsCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code Code
	}{
		{fmt.Errorf("x: %w", daemon.ErrNoGuest), CodeNoSuchGuest},
		{fmt.Errorf("x: %w", daemon.ErrExists), CodeExists},
		{fmt.Errorf("x: %w", daemon.ErrRefused), CodeRefused},
		{fmt.Errorf("x: %w", daemon.ErrUnprotected), CodeUnprotected},
		{fmt.Errorf("x: %w", daemon.ErrTimeout), CodeTimeout},
		{fmt.Errorf("x: %w", daemon.ErrUnreachable), CodeUnavailable},
		{fmt.Errorf("x: %w", wire.ErrNotSent), CodeUnavailable},
		{fmt.Errorf("x: %w", &wire.RPCError{Code: "failed", Message: "m"}), CodeRefused},
		{fmt.Errorf("x: %w", consensus.ErrForbidden), CodeRefused},
		{fmt.Errorf("x: %w", consensus.ErrNoQuorum), CodeNoQuorum},
		// What is not known is never taken for a timeout, nor for a refusal.
		{fmt.Errorf("%w: %w", consensus.ErrUnknown, context.DeadlineExceeded), CodeUnknown},
		{errors.New("x"), CodeFailed},
		{Errorf(CodeNeedsConfirmation, "x"), CodeNeedsConfirmation},
	} {
		if got := explain(tc.err); got.Code != tc.code || got.Message == "" || got.Code.HTTPStatus() < 400 {
			t.Errorf("%v: %+v, want %s", tc.err, got, tc.code)
		}
	}
}

func TestState(t *testing.T) {
	p := pact.Party{Host: "a", Incarnation: 1}
	r := pact.Party{Host: "b", Incarnation: 1}
	running := func(m pact.Mode, gone ...pact.Party) pact.Assignment {
		a := pact.Assignment{Mode: m, Term: 4, Primary: p, Desired: pact.DesiredRunning, Gone: gone}
		if m == pact.Protected {
			a.Replica = r
		}
		return a
	}
	stopping := running(pact.Solo)
	stopping.Desired = pact.DesiredStopped
	for want, tc := range map[string]struct {
		a pact.Assignment
		s *link.Status
	}{
		"stopped":   {pact.Assignment{Mode: pact.Stopped, Desired: pact.DesiredStopped}, nil},
		"starting":  {running(pact.Solo, p), nil},
		"solo":      {running(pact.Solo), &link.Status{Term: 4, Mode: "solo"}},
		"syncing":   {running(pact.Solo), &link.Status{Term: 4, Mode: "syncing"}},
		"protected": {running(pact.Protected), &link.Status{Term: 3, Mode: "syncing"}}, // old news
		"deciding":  {running(pact.Protected, p), nil},
		"switching": {running(pact.Protected), &link.Status{Term: 4, Mode: "switching"}},
		"stopping":  {stopping, nil},
	} {
		if got := state(tc.a, tc.s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestClientErrors(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c := NewClient(socket)
	if _, err := c.Status(t.Context()); !errors.Is(err, &Error{Code: CodeUnavailable}) || !strings.Contains(err.Error(), "pollux host") {
		t.Errorf("no daemon: %v", err)
	}
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(socket); err == nil {
		t.Error("two daemons on one socket")
	}
	answers := make(chan func(http.ResponseWriter), 1)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case a := <-answers:
			a(w)
		case <-r.Context().Done():
		}
	})}
	go s.Serve(l)
	defer s.Close()
	answers <- func(w http.ResponseWriter) {
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(Errorf(CodeUnprotected, "it is solo"))
	}
	if _, err := c.Guest(t.Context(), "g"); !errors.Is(err, &Error{Code: CodeUnprotected}) || err.Error() != "it is solo" {
		t.Errorf("%v", err)
	}
	answers <- func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot) }
	if _, err := c.Guest(t.Context(), "g"); !errors.Is(err, &Error{Code: CodeFailed}) {
		t.Errorf("%v", err)
	}
	answers <- func(w http.ResponseWriter) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
		conn.Close()
	}
	if _, err := c.Stop(t.Context(), "g", StopRequest{}); !errors.Is(err, &Error{Code: CodeUnknown}) {
		t.Errorf("cut off: %v", err)
	}
	// A change whose answer does not come is unknown; a question is just late.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Stop(ctx, "g", StopRequest{}); !errors.Is(err, &Error{Code: CodeUnknown}) {
		t.Errorf("no answer to a change: %v", err)
	}
	if _, err := c.Guests(ctx); !errors.Is(err, &Error{Code: CodeTimeout}) {
		t.Errorf("no answer to a question: %v", err)
	}
}

func TestAStaleSocketIsTakenOver(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	u.SetUnlinkOnClose(false)
	u.Close()
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
