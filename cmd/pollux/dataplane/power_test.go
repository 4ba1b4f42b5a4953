package dataplane

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// meets raises a power event as one of the guest's devices does.
func (m *member) meets(ev platform.PowerEvent) {
	m.p.machine.Lock()
	defer m.p.machine.Unlock()
	m.p.machine.PowerEvent(ev)
}

func (r *raft) order(m *member, o link.Order) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = m.conn.Send(link.Message{Order: &o})
}

// boots counts what the guest has been let say so far.
func (m *member) boots(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "ledger: ready")
}

// reasons are those of a host's events of a kind.
func (m *member) reasons(t *testing.T, kind audit.Kind) (reasons []string) {
	t.Helper()
	for e, err := range audit.Read(filepath.Join(m.dir, "events.jsonl"), audit.Filter{Kinds: []audit.Kind{kind}}) {
		if err != nil {
			t.Fatal(err)
		}
		s, _ := e.Detail["reason"].(string)
		reasons = append(reasons, s)
	}
	return reasons
}

// TestGuestResets: a guest boots again as often as it likes, on either host; the pair stays what it is.
func TestGuestResets(t *testing.T) {
	r, a, b, _ := pairUp(t)
	before := r.until("protected", protectedBy(partyA))
	for n := 1; n <= 3; n++ {
		at := a.boots(t)
		a.meets(platform.Reset)
		r.until("the guest has booted again", func(pact.Assignment) bool { return a.boots(t) == at+1 })
		if r.ask(a, b) != a {
			t.Fatal("b answered while a is the primary")
		}
		r.until("the event is logged", func(pact.Assignment) bool { return len(a.reasons(t, audit.GuestReset)) == n })
	}
	a.meets(platform.Crashed) // the policy that nobody has set
	r.until("the guest has booted again", func(pact.Assignment) bool { return a.boots(t) == 5 })
	now := r.until("protected", protectedBy(partyA))
	if now.Term != before.Term {
		t.Errorf("resets have raised the term from %d to %d", before.Term, now.Term)
	}
	r.kill(a)
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
	if r.ask(b) != b {
		t.Fatal("the guest does not answer after the takeover")
	}
	r.order(b, link.Order{Kind: link.OrderReset})
	r.until("the guest has booted on b", func(pact.Assignment) bool { return b.boots(t) == 1 })
	if r.ask(b) != b {
		t.Fatal("the guest does not answer after a reset on b")
	}
	if got := b.reasons(t, audit.GuestReset); len(got) != 1 || !strings.Contains(got[0], "operator") {
		t.Errorf("b's events of resets: %q", got)
	}
	for _, m := range []*member{a, b} {
		if got := m.reasons(t, audit.Fault); len(got) != 0 {
			t.Errorf("a reset passes for a fault: %q", got)
		}
	}
}

func TestPanicStops(t *testing.T) {
	r, a, b, _ := pairUp(t, func(s *pact.Spec) { s.OnPanic = pact.PanicStop })
	a.meets(platform.Panicked)
	r.until("stopped", func(x pact.Assignment) bool { return x.Mode == pact.Stopped })
	a.exited(t, link.ExitDone)
	b.exited(t, link.ExitDiscarded)
	if got := a.reasons(t, audit.GuestStop); len(got) != 1 || !strings.Contains(got[0], "panicked") {
		t.Errorf("events of the stop: %q", got)
	}
}

// TestPanicKeeps: a guest that has panicked is kept on whichever host holds it, until an operator has dumped
// and reset it.
func TestPanicKeeps(t *testing.T) {
	r, a, b, _ := pairUp(t, func(s *pact.Spec) { s.OnPanic = pact.PanicKeep })
	a.meets(platform.Panicked)
	kept := func(m *member) func(pact.Assignment) bool {
		return func(pact.Assignment) bool { return m.status.Kept == "panic" && m.status.Role == link.RolePrimary }
	}
	r.until("kept", kept(a))
	// A checkpoint of it has to reach the replica before a is lost.
	a.p.currentEngine().EndEpoch()
	captured := a.p.status().EpochCaptured
	r.until("the replica knows", func(pact.Assignment) bool { return a.status.EpochAcked >= captured })
	r.kill(a)
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
	r.until("kept on b", kept(b))
	for _, m := range []*member{a, b} {
		if got := m.reasons(t, audit.GuestKept); len(got) != 1 {
			t.Errorf("%v: events of keeping it: %q", m.p.cfg.Party, got)
		}
	}
	path := filepath.Join(t.TempDir(), "core")
	for range 2 { // the second time the file is there already
		r.order(b, link.Order{Kind: link.OrderDump, Path: path})
		r.until("dumped", func(pact.Assignment) bool { return b.status.Dump != nil && b.status.Dump.Done })
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	r.until("the second dump is refused", func(pact.Assignment) bool { return b.status.Dump.Error != "" })
	// Into a file that comes along, as for a process that can't open any.
	file, err := os.Create(filepath.Join(t.TempDir(), "sent"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r.mu.Lock()
	err = b.conn.Send(link.Message{Order: &link.Order{Kind: link.OrderDump, Path: "/nowhere/core"}, File: file})
	r.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	r.until("dumped into it", func(pact.Assignment) bool {
		d := b.status.Dump
		return d.Done && d.Path == "/nowhere/core" && d.Error == "" && d.Bytes > guestBytes
	})
	core, err := elf.Open(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	if last := core.Progs[len(core.Progs)-1]; last.Filesz != guestBytes {
		t.Errorf("a dump of %d bytes", last.Filesz)
	}
	r.order(b, link.Order{Kind: link.OrderReset})
	if r.ask(b) != b {
		t.Fatal("the guest does not answer after its reset")
	}
	r.until("not kept any more", func(pact.Assignment) bool { return b.status.Kept == "" })
	b.meets(platform.WatchdogExpired)
	r.until("kept again", func(pact.Assignment) bool { return b.status.Kept == "watchdog" })
	r.order(b, link.Order{Kind: link.OrderPowerButton})
	r.until("stopped", func(x pact.Assignment) bool { return x.Mode == pact.Stopped })
	b.exited(t, link.ExitDone)
}

func TestResetPace(t *testing.T) {
	var p resetPace
	now := time.Duration(0)
	var all []time.Duration
	for range 14 {
		d := p.next(now)
		all = append(all, d)
		now += d + time.Millisecond
	}
	for i, want := range []time.Duration{0, 0, 0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		if all[i] != want {
			t.Errorf("reset %d waits %v, want %v", i, all[i], want)
		}
	}
	if last := all[len(all)-1]; last != resetPauseMax {
		t.Errorf("the pause grows to %v", last)
	}
	if d := p.next(now + resetsInARow + time.Second); d != 0 {
		t.Errorf("a reset of a guest that ran waits %v", d)
	}
}
