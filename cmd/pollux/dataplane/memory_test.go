package dataplane

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// codePages are the pages of our guest's program, which it never writes and uses for each answer.
func codePages(t *testing.T) (pages []int) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(ledger.Image()))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 {
			for at := p.Paddr &^ (memory.PageSize - 1); at < p.Paddr+p.Filesz; at += memory.PageSize {
				pages = append(pages, int(at/memory.PageSize))
			}
		}
	}
	if len(pages) == 0 {
		t.Fatal("the guest has no program")
	}
	return pages
}

func poison(t *testing.T, m *member, page int) {
	t.Helper()
	err := m.p.machine.RAM().Poison(page)
	if errors.Is(err, memory.ErrNoPoison) {
		t.Skipf("needs userfaultfd: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// awaitLogged waits until a line of a host's event log holds all of the words.
func (m *member) awaitLogged(t *testing.T, words ...string) {
	t.Helper()
	for end := time.Now().Add(bound); !m.logged(t, words...); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the event log never says %q", words)
		}
	}
}

func (m *member) logged(t *testing.T, words ...string) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
lines:
	for line := range strings.Lines(string(b)) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		return true
	}
	return false
}

// TestHeal: pages of the guest's memory are damaged, one by one and many at once; the guest goes on with the
// replica's copies, on the same host and in the same term.
func TestHeal(t *testing.T) {
	r, a, b, _ := pairUp(t)
	before := r.until("marked", func(x pact.Assignment) bool { return x.CurrentDisk.Host == x.Primary.Host })
	pages := codePages(t)
	contents := map[int][]byte{}
	for _, p := range pages {
		contents[p] = bytes.Clone(a.p.machine.RAM().Page(p))
	}
	for i := range 8 {
		poison(t, a, pages[i%len(pages)])
		for range 3 {
			if r.ask(a, b) != a {
				t.Fatal("b answered while a is the primary")
			}
		}
	}
	for _, p := range pages[:min(len(pages), 40)] {
		poison(t, a, p)
	}
	for range 10 {
		if r.ask(a, b) != a {
			t.Fatal("b answered while a is the primary")
		}
	}
	healed := uint64(0)
	r.until("the last page in use is healed", func(pact.Assignment) bool {
		healed = a.status.Heals
		return healed > 3 && a.status.TimingsUs["heal"].Samples > 3
	})
	for range 10 {
		r.ask(a, b)
	}
	if x := r.until("as before", func(x pact.Assignment) bool { return true }); x.Term != before.Term || x.Primary != partyA {
		t.Errorf("healing has moved the guest: %+v, before %+v", x, before)
	}
	// The pages that nobody has touched are still bad. The others hold what they held.
	page := make([]byte, memory.PageSize)
	good := 0
	for _, p := range pages {
		if err := a.p.machine.RAM().Try(p, page); err != nil {
			continue
		}
		good++
		if !bytes.Equal(page, contents[p]) {
			t.Errorf("page %d holds something else than before", p)
		}
	}
	t.Logf("%d of %d pages can be read, %d were healed: p50 %.0f µs", good, len(pages), healed, a.status.TimingsUs["heal"].P50)
	a.awaitLogged(t, `"heal"`, `"memory"`)
	a.awaitLogged(t, `"fault"`, `"memory"`)
}

// TestSurrenderOfADirtyPage: what the guest has written since the last checkpoint is lost with the page. The
// replica goes on from that checkpoint.
func TestSurrenderOfADirtyPage(t *testing.T) {
	r, a, b, _ := pairUp(t)
	page := codePages(t)[0]
	if err := a.p.machine.InjectDamage(page, vmm.Injection{Dirty: true}); errors.Is(err, memory.ErrNoPoison) {
		t.Skipf("needs userfaultfd: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	got := r.until("b runs the guest", func(x pact.Assignment) bool { return x.Primary == partyB })
	a.exited(t, link.ExitReplaced)
	a.drain()
	if r.ask(a, b) != b {
		t.Fatal("somebody else answered")
	}
	if got.Mode != pact.Solo {
		t.Errorf("%+v", got)
	}
}

// TestDamageWithoutReplica: nobody has the page. The guest's end has a name.
func TestDamageWithoutReplica(t *testing.T) {
	needsKVM(t)
	r := newRaft(t)
	a := r.launch(partyA, t.TempDir(), certificates(t)["a"])
	if v := r.propose(pact.Command{Kind: pact.Start, Guest: "g", By: partyA}); !v.Applied {
		t.Fatal(v.Reason)
	}
	r.ask(a)
	for _, p := range codePages(t) {
		poison(t, a, p)
	}
	if _, err := a.wire.Write(whoHas); err != nil {
		t.Fatal(err)
	}
	a.exited(t, link.ExitFailed)
	if !strings.Contains(a.p.why, "no replica to heal it from") {
		t.Errorf("it ended because of %q", a.p.why)
	}
	a.awaitLogged(t, `"fault"`, `"memory"`)
}

// TestReplicaLosesAPage: the replica's copy of a page is damaged. It comes again from the primary, and a takeover
// finds it.
func TestReplicaLosesAPage(t *testing.T) {
	r, a, b, _ := pairUp(t)
	r.until("marked", func(x pact.Assignment) bool { return x.CurrentDisk.Host == x.Primary.Host })
	for i, page := range codePages(t)[:4] {
		want := bytes.Clone(a.p.machine.RAM().Page(page))
		if err := b.p.machine.InjectDamage(page, vmm.Injection{}); errors.Is(err, memory.ErrNoPoison) {
			t.Skipf("needs userfaultfd: %v", err)
		} else if err != nil {
			t.Fatal(err)
		}
		r.until("the page is sent again", func(pact.Assignment) bool { return a.status.Resent == uint64(i+1) })
		if r.ask(a, b) != a {
			t.Fatal("b answered while a is the primary")
		}
		got := make([]byte, memory.PageSize)
		for end := time.Now().Add(bound); b.p.machine.RAM().Try(page, got) != nil; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("page %d of the replica is never mended", page)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("page %d of the replica holds something else than the primary's", page)
		}
	}
	a.awaitLogged(t, `"heal"`, `"replica-memory"`)
	b.awaitLogged(t, `"fault"`, `"memory"`)
	r.kill(a)
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
	if r.ask(b) != b {
		t.Fatal("somebody else answered")
	}
}

// TestScrub: a bit of the replica's copy turns over. It is found, while the guest goes on, and put right; nothing
// else differs.
func TestScrub(t *testing.T) {
	r, a, b, _ := pairUp(t)
	page := codePages(t)[0]
	want := bytes.Clone(a.p.machine.RAM().Page(page))
	b.p.machine.RAM().Page(page)[77] ^= 8
	found := func() (yes bool) {
		r.until("any", func(pact.Assignment) bool { yes = a.status.Diverged > 0; return true })
		return yes
	}
	for end := time.Now().Add(bound); !found(); {
		r.ask(a)
		if time.Now().After(end) {
			t.Fatal("never found")
		}
	}
	a.awaitLogged(t, `"heal"`, `"differs"`)
	for end := time.Now().Add(bound); !bytes.Equal(b.p.machine.RAM().Page(page), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never put right")
		}
	}
	r.until("all counted", func(pact.Assignment) bool { return a.status.Resent == 1 && a.status.Diverged == 1 })
}
