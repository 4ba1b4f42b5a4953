package e2e

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/tests/history"
	"github.com/pollux-ha/pollux/vmm/memory"
)

func needsPoison(t *testing.T) {
	t.Helper()
	if err := memory.CanPoison(); err != nil {
		t.Skipf("needs userfaultfd: %v", err)
	}
}

// An operator damages pages of a protected guest's memory. It goes on where it is with what its replica has; a page
// that its replica does not have moves it there. No connection ends, and what was acknowledged stays.
func TestMemoryErrors(t *testing.T) {
	needsPoison(t)
	if !session(t) {
		return
	}
	stage := newStage(t)
	raw, err := stage.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := history.NewConn(raw)
	count := 0
	serves := func() {
		t.Helper()
		for range 20 {
			count++
			if r, err := conn.Do("SET", "key", strconv.Itoa(count)); err != nil || r.Type == history.ErrorReply {
				t.Fatalf("SET: %v %v", r, err)
			}
			if r, err := conn.Do("GET", "key"); err != nil || r.Text != strconv.Itoa(count) {
				t.Fatalf("GET: %q, %v, want %d", r.Text, err, count)
			}
		}
	}
	serves()
	g, err := stage.AwaitProtected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	inject := func(args ...string) error {
		out, err := stage.Node(g.Primary).Command(t.Context(), "", append([]string{"fault", "inject", "memory", g.Name}, args...)...)
		if err != nil {
			t.Logf("%v\n%s", err, out)
		}
		return err
	}
	// It is not marked as a test guest, and nobody can be asked.
	if err := inject("--page", "300"); err == nil || !strings.Contains(err.Error(), "exit status 8") {
		t.Fatalf("without a confirmation: %v, want exit code 8", err)
	}
	healed := uint64(0)
	heal := func(args ...string) {
		t.Helper()
		if err := inject(append(args, "--yes")...); err != nil {
			t.Fatal(err)
		}
		serves()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := stage.Await(ctx, "the page was healed", func(p *link.Status) bool { return p.Heals > healed || p.Resent > 0 && args[0] == "--host" }); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		if args[0] != "--host" {
			healed++
		}
	}
	const entry = 0x10a300 >> 12 // our guest's program
	heal("--page", strconv.Itoa(entry))
	heal("--page", strconv.Itoa(entry))
	heal("--state", "clean")
	heal("--host", "replica", "--page", strconv.Itoa(entry))
	after, err := stage.AwaitProtected(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Primary != g.Primary || after.Term != g.Term {
		t.Logf("from %s in term %d to %s in term %d: a busy machine", g.Primary, g.Term, after.Primary, after.Term)
	}
	// The guest is given away.
	g = after
	if err := inject("--state", "dirty", "--yes"); err != nil {
		t.Fatal(err)
	}
	serves()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for after.Term == g.Term {
		if after, err = stage.Fresh(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if after, err = stage.AwaitProtected(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after.Primary == g.Primary {
		t.Errorf("the guest is still on %s", g.Primary)
	}
	serves()
	out, err := stage.Node(g.Primary).Command(t.Context(), "", "events", "-o", "json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"heal"`, `"fault":"memory"`, `"replica-memory"`} {
		if !strings.Contains(out, want) {
			t.Errorf("the event log says nothing of %s", want)
		}
	}
}
