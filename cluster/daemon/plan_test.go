package daemon

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

var (
	a1 = pact.Party{Host: "a", Incarnation: 1}
	a2 = pact.Party{Host: "a", Incarnation: 2}
	b1 = pact.Party{Host: "b", Incarnation: 1}
)

func guest(change func(*pact.Assignment)) pact.Assignment {
	a := pact.Assignment{
		Guest: "g", Mode: pact.Stopped, Desired: pact.DesiredRunning, CurrentDisk: pact.DiskCopy{Host: "a"},
		Spec: pact.Spec{Hosts: []string{"a", "b"}, Disks: []pact.DiskSpec{{SizeBytes: 4096}}},
	}
	change(&a)
	return a
}

func solo(a *pact.Assignment) {
	a.Term, a.Tenure, a.Mode, a.Primary = 3, 3, pact.Solo, a1
	a.CurrentDisk = pact.DiskCopy{Host: "a", Term: 3}
}

func protected(a *pact.Assignment) {
	solo(a)
	a.Term, a.Mode, a.Replica = 4, pact.Protected, b1
}

// text is a plan in one line.
func (p plan) text() string {
	var s []string
	for _, c := range p.say {
		t := fmt.Sprintf("say %s %s%d", c.Kind, c.By.Host, c.By.Incarnation)
		if c.NoMarker {
			t += " no-marker"
		}
		s = append(s, t)
	}
	if p.spawn {
		s = append(s, map[bool]string{true: "spawn cold", false: "spawn"}[p.cold])
	}
	if p.start != nil {
		s = append(s, strings.TrimSpace(fmt.Sprintf("start %s%d marker %d %s", p.start.By.Host, p.start.By.Incarnation, p.start.MarkerTerm, p.start.AcceptLoss)))
	}
	for _, l := range []struct {
		name string
		ps   []pact.Party
	}{{"abandon", p.abandon}, {"stray", p.stray}, {"primary", []pact.Party{p.primary}}, {"replica", []pact.Party{p.replica}}} {
		for _, o := range l.ps {
			if !o.IsZero() {
				s = append(s, fmt.Sprintf("%s %s%d", l.name, o.Host, o.Incarnation))
			}
		}
	}
	if p.blocked != "" {
		s = append(s, "blocked")
	}
	return strings.Join(s, ", ")
}

func TestDecide(t *testing.T) {
	proc := func(p pact.Party) []procView { return []procView{{party: p, ready: true}} }
	cold := func(p pact.Party, ready bool) []procView { return []procView{{party: p, ready: ready, cold: true}} }
	for _, tc := range []struct {
		name  string
		guest func(*pact.Assignment)
		view  view
		want  string
	}{
		{"deleted", nil, view{host: "a", procs: proc(a1)}, "abandon a1"},
		{"to be started here", func(*pact.Assignment) {}, view{host: "a"}, "spawn cold"},
		{"not ready yet", func(*pact.Assignment) {}, view{host: "a", procs: cold(a1, false)}, ""},
		{"ready", func(*pact.Assignment) {}, view{host: "a", procs: cold(a1, true)}, "start a1 marker 0"},
		{"to be started elsewhere", func(*pact.Assignment) {}, view{host: "b"}, "blocked"},
		{"meant to be stopped", func(a *pact.Assignment) { a.Desired = pact.DesiredStopped }, view{host: "a", procs: cold(a1, true)}, "abandon a1"},
		{"another process first has to go", func(*pact.Assignment) {}, view{host: "a", procs: proc(a2)}, "abandon a2"},
		{"the one that stopped is still there", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped }, view{host: "a", procs: proc(a1), disk: diskView{"current", 3}}, "stray a1"},
		{"from its own disk", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped }, view{host: "a", disk: diskView{"current", 3}}, "spawn cold"},
		{"the disk was replaced", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped }, view{host: "a"}, "blocked"},
		{"the disk is outdated", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped }, view{host: "a", disk: diskView{"outdated", 3}}, "blocked"},
		{"by order", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped },
			view{host: "b", disk: diskView{"inconsistent", 1}, procs: cold(b1, true), order: &startOrder{loss: "all", operator: "op", inconsistent: true}}, "start b1 marker 1 all"},
		{"by order, outdated", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped },
			view{host: "b", disk: diskView{"outdated", 1}, procs: cold(b1, true), order: &startOrder{loss: "all", operator: "op"}}, "start b1 marker 1 all"},
		{"by an order that does not know how bad it is", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped },
			view{host: "b", disk: diskView{"inconsistent", 1}, procs: cold(b1, true), order: &startOrder{loss: "all", operator: "op"}}, "blocked"},

		{"runs here", solo, view{host: "a", procs: proc(a1)}, "primary a1"},
		{"its process has ended", solo, view{host: "a"}, "say disclaim a1"},
		{"its process has ended, and that is known", func(a *pact.Assignment) { solo(a); a.Gone = []pact.Party{a1} }, view{host: "a", disk: diskView{"current", 3}}, "spawn cold"},
		{"the same, seen from the other host", func(a *pact.Assignment) { solo(a); a.Gone = []pact.Party{a1} }, view{host: "b", procs: proc(b1), chosen: true}, "blocked"},
		{"ended, and meant to be stopped", func(a *pact.Assignment) { solo(a); a.Gone = []pact.Party{a1}; a.Desired = pact.DesiredStopped }, view{host: "a"}, "say stop a1"},
		{"a replica is wanted here", solo, view{host: "b", chosen: true}, "spawn"},
		{"a would-be replica", solo, view{host: "b", chosen: true, procs: proc(b1)}, "replica b1"},
		{"another host is chosen", solo, view{host: "b", procs: proc(b1)}, "abandon b1"},

		{"a CPU that can't run it: no start", func(*pact.Assignment) {}, view{host: "a", unfit: "x", procs: cold(a1, true)}, "abandon a1, blocked"},
		{"nor by order", func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped },
			view{host: "b", unfit: "x", disk: diskView{"outdated", 1}, procs: cold(b1, true), order: &startOrder{loss: "all", operator: "op"}}, "abandon b1, blocked"},
		{"nor a replica", solo, view{host: "b", unfit: "x"}, "blocked"},
		{"nor is one that has begun kept", solo, view{host: "b", unfit: "x", procs: proc(b1)}, "abandon b1, blocked"},
		{"a replica that is entitled stays", protected, view{host: "b", unfit: "x", procs: proc(b1)}, "replica b1"},
		{"a primary that runs goes on", solo, view{host: "a", unfit: "x", procs: proc(a1)}, "primary a1"},

		{"protected, the primary's host", protected, view{host: "a", procs: proc(a1)}, "primary a1"},
		{"protected, the replica's host", protected, view{host: "b", procs: proc(b1), chosen: true}, "replica b1"},
		{"the replica has ended", protected, view{host: "b", chosen: true}, "say disclaim b1"},
		{"the primary has ended: no restart", protected, view{host: "a"}, "say disclaim a1"},
		{"the primary is gone, the replica takes over", func(a *pact.Assignment) { protected(a); a.Gone = []pact.Party{a1} }, view{host: "a", disk: diskView{"current", 3}}, ""},
		{"both are gone", func(a *pact.Assignment) { protected(a); a.Gone = []pact.Party{a1, b1} }, view{host: "a", disk: diskView{"current", 3}}, "spawn cold"},

		{"taken over here, the loser elsewhere ends by itself", func(a *pact.Assignment) { solo(a); a.Primary = b1 }, view{host: "a", procs: proc(a1), chosen: true}, "replica a1"},
		{"the later primary ended without a marker", func(a *pact.Assignment) {
			solo(a)
			a.Term, a.Tenure, a.Primary = 5, 5, b1
			a.Unproven = []pact.Claim{{Party: b1, Term: 5}}
		}, view{host: "b", disk: diskView{"", 0}}, "say disclaim b1 no-marker"},
		{"the later primary ended with a marker", func(a *pact.Assignment) {
			solo(a)
			a.Term, a.Tenure, a.Primary = 5, 5, b1
			a.Unproven, a.Gone = []pact.Claim{{Party: b1, Term: 5}}, []pact.Party{b1}
		}, view{host: "b", disk: diskView{"current", 5}}, "spawn cold"},
		{"the earlier one waits for its word", func(a *pact.Assignment) {
			solo(a)
			a.Term, a.Tenure, a.Primary = 5, 5, b1
			a.Unproven, a.Gone = []pact.Claim{{Party: b1, Term: 5}}, []pact.Party{b1}
		}, view{host: "a", disk: diskView{"current", 3}}, "blocked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := tc.view
			if tc.guest != nil {
				v.guest, v.exists = guest(tc.guest), true
			}
			if got := decide(v).text(); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// Whatever is so, a host never has two processes at its disks, and never starts one beside a living one.
func TestOneProcessAGuest(t *testing.T) {
	modes := []func(*pact.Assignment){func(*pact.Assignment) {}, solo, protected, func(a *pact.Assignment) { solo(a); a.Mode = pact.Stopped }}
	for _, m := range modes {
		for _, procs := range [][]procView{{{party: a1}}, {{party: a2, ready: true, cold: true}}, {{party: a1}, {party: a2}}} {
			for _, chosen := range []bool{true, false} {
				v := view{host: "a", guest: guest(m), exists: true, procs: procs, chosen: chosen, disk: diskView{"current", 3}}
				if p := decide(v); p.spawn {
					t.Errorf("%+v spawns: %s", v, p.text())
				}
			}
		}
	}
}

func TestNamesOfProcesses(t *testing.T) {
	for base, want := range map[string]pact.Party{
		"g-00000000000000ff":          {Host: "g", Incarnation: 255},
		"my-guest-2-0123456789abcdef": {Host: "my-guest-2", Incarnation: 0x0123456789abcdef},
		"g-0000000000000000":          {},
		"g-00000000000000fg":          {},
		"-0000000000000001":           {},
		"g":                           {},
		"../x-0000000000000001":       {},
	} {
		guest, i, ok := parseBase(base)
		if ok != !want.IsZero() || ok && (guest != want.Host || i != want.Incarnation) {
			t.Errorf("%s: %q %x %v", base, guest, i, ok)
		}
	}
}
