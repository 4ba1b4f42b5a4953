package demo

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
	"github.com/pollux-ha/pollux/console"
)

// answering makes a node whose daemon answers with what guest holds; nil: not at all.
func answering(t *testing.T, name, role string, guest *atomic.Pointer[console.Guest]) *node {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{Machine: &lab.Machine{Name: name}, role: role, config: config.Config{RunDir: dir}}
	l, err := net.Listen("unix", n.config.Socket())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := guest.Load()
		if g == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			json.NewEncoder(w).Encode(console.Errorf(console.CodeNoQuorum, "no leader"))
			return
		}
		json.NewEncoder(w).Encode(g)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return n
}

func guestAt(term pact.Term, state, primary, replica string, status *link.Status) *console.Guest {
	g := &console.Guest{Name: guestName, Term: term, State: state, Primary: primary, Replica: replica}
	if status != nil {
		status.Role = link.RolePrimary
		g.Processes = []console.Process{{Host: primary, Incarnation: primary, Status: status}}
	}
	return g
}

func TestMonitor(t *testing.T) {
	var a, b, w atomic.Pointer[console.Guest]
	m := newMonitor(&cluster{hosts: [2]*node{answering(t, "a", "host", &a), answering(t, "b", "host", &b)}, witness: answering(t, "w", "witness", &w)})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go m.run(ctx)

	a.Store(guestAt(2, "protected", "a", "b", &link.Status{Epochs: 10, WireBytes: 100}))
	if g, err := m.await(ctx, "protected", protected); err != nil || g.Primary != "a" {
		t.Fatalf("%+v, %v", g, err)
	}
	// The other host knows more; the first one, cut off, goes on telling old news.
	b.Store(guestAt(3, "solo", "b", "", &link.Status{Epochs: 5, WireBytes: 50}))
	g, err := m.await(ctx, "taken over", func(g *console.Guest) bool { return g.Primary == "b" })
	if err != nil || g.Term != 3 {
		t.Fatalf("%+v, %v", g, err)
	}
	if protected(m.now()) {
		t.Error("a solo guest counts as protected")
	}
	if epochs, wire, _ := m.totals(); epochs != 15 || wire != 150 {
		t.Errorf("totals %d, %d", epochs, wire)
	}
	// No host answers: the witness knows too.
	a.Store(nil)
	b.Store(nil)
	w.Store(guestAt(4, "stopped", "b", "", nil))
	if _, err := m.await(ctx, "stopped", func(g *console.Guest) bool { return g.State == "stopped" }); err != nil {
		t.Fatal(err)
	}

	gone, cancelNow := context.WithCancel(ctx)
	cancelNow()
	if _, err := m.await(gone, "the moon was blue", func(*console.Guest) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
