package pact

import (
	"fmt"
	"slices"
	"testing"
)

var (
	a1 = Party{"a", 1} // the first primary
	b1 = Party{"b", 1} // its replica
	a2 = Party{"a", 2} // later processes
	b2 = Party{"b", 2}
)

func spec() *Spec {
	return &Spec{Hosts: []string{"a", "b"}, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1, Disks: []DiskSpec{{SizeBytes: 1 << 20}}}
}

// world drives a State with commands that carry the right term and a fresh ID unless they say otherwise.
type world struct {
	t     testing.TB
	s     *State
	index uint64
	ids   int
}

func newWorld(t testing.TB) *world { return &world{t: t, s: NewState()} }

func (w *world) now() Assignment {
	a, _ := w.s.Guest("g")
	return a
}

func (w *world) try(c Command) Verdict {
	w.t.Helper()
	if c.Guest == "" && c.Kind != NoOp {
		c.Guest = "g"
	}
	if c.Term == 0 && c.Kind != Create {
		a, _ := w.s.Guest(c.Guest)
		c.Term = a.Term
	}
	if c.ID == "" {
		w.ids++
		c.ID = fmt.Sprint("id", w.ids)
	}
	w.index++
	v := w.s.Apply(c, w.index)
	if a, ok := w.s.Guest("g"); ok {
		if err := a.Check(); err != nil {
			w.t.Fatalf("after %+v: %v", c, err)
		}
	}
	return v
}

func (w *world) must(cs ...Command) Assignment {
	w.t.Helper()
	for _, c := range cs {
		if v := w.try(c); !v.Applied {
			w.t.Fatalf("%s by %v refused: %s", c.Kind, c.By, v.Reason)
		}
	}
	return w.now()
}

func (w *world) refused(c Command) string {
	w.t.Helper()
	before := w.now()
	v := w.try(c)
	if v.Applied {
		w.t.Fatalf("%s by %v applied", c.Kind, c.By)
	}
	if v.Reason == "" {
		w.t.Fatalf("%s by %v refused without a reason", c.Kind, c.By)
	}
	if fmt.Sprint(before) != fmt.Sprint(w.now()) {
		w.t.Fatalf("refused %s changed the assignment", c.Kind)
	}
	return v.Reason
}

// The ways to the states that a guest can be in.
var (
	toCreated   = []Command{{Kind: Create, Spec: spec()}}
	toFresh     = append(slices.Clone(toCreated), Command{Kind: Start, By: a1})
	toSolo      = append(slices.Clone(toFresh), Command{Kind: Mark, By: a1})
	toProtected = append(slices.Clone(toSolo), Command{Kind: Protect, By: a1, Other: b1, Epoch: 7})
	states      = map[string][]Command{
		"created":        toCreated,
		"solo":           toSolo,
		"protected":      toProtected,
		"primary-gone":   append(slices.Clone(toProtected), Command{Kind: Disclaim, By: a1}),
		"replica-gone":   append(slices.Clone(toProtected), Command{Kind: Disclaim, By: b1}),
		"both-gone":      append(slices.Clone(toProtected), Command{Kind: Disclaim, By: a1}, Command{Kind: Disclaim, By: b1}),
		"solo-gone":      append(slices.Clone(toSolo), Command{Kind: Disclaim, By: a1}),
		"promoted":       append(slices.Clone(toProtected), Command{Kind: Promote, By: b1, Epoch: 9}),
		"promoted-mark":  append(slices.Clone(toProtected), Command{Kind: Promote, By: b1, Epoch: 9}, Command{Kind: Mark, By: b1}),
		"switched":       append(slices.Clone(toProtected), Command{Kind: Switchover, By: a1, Epoch: 20}),
		"switched-mark":  append(slices.Clone(toProtected), Command{Kind: Switchover, By: a1, Epoch: 20}, Command{Kind: Mark, By: b1}),
		"stopped":        append(slices.Clone(toProtected), Command{Kind: Stop, By: a1}),
		"surrendered":    append(slices.Clone(toProtected), Command{Kind: Surrender, By: a1}),
		"promoted-gone":  append(slices.Clone(toProtected), Command{Kind: Promote, By: b1, Epoch: 9}, Command{Kind: Disclaim, By: b1}),
		"promoted-blank": append(slices.Clone(toProtected), Command{Kind: Promote, By: b1, Epoch: 9}, Command{Kind: Disclaim, By: b1, NoMarker: true}),
	}
)

// Which commands are applied in which state; all others are refused. Start carries the marker of term 1
// (a's, from its first tenure) or none; "start/loss" is an operator's order.
var allowed = map[string][]string{
	"created":       {"start a2", "delete", "start/loss a2", "start/loss b2", "start/marker a2"},
	"solo":          {"stop a1", "protect a1", "go-solo a1", "mark a1", "confirm a1", "disclaim a1"},
	"protected":     {"stop a1", "promote b1", "go-solo a1", "surrender a1", "switchover a1", "cancel a1", "mark a1", "confirm a1", "disclaim a1", "disclaim b1"},
	"primary-gone":  {"promote b1", "disclaim a1", "disclaim b1"},
	"replica-gone":  {"stop a1", "go-solo a1", "cancel a1", "mark a1", "confirm a1", "disclaim a1", "disclaim b1"},
	"both-gone":     {"stop a1", "start/marker a2", "start/loss a2", "start/loss b2", "disclaim a1", "disclaim b1"},
	"solo-gone":     {"stop a1", "start/marker a2", "start/loss a2", "start/loss b2", "start/loss b1", "disclaim a1"},
	"promoted":      {"stop b1", "go-solo b1", "mark b1", "confirm b1", "disclaim b1"},
	"promoted-mark": {"stop b1", "protect b1", "go-solo b1", "mark b1", "confirm b1", "disclaim b1"},
	"switched":      {"stop b1", "promote a1", "go-solo b1", "surrender b1", "cancel b1", "mark b1", "confirm b1", "disclaim a1", "disclaim b1"},
	"switched-mark": {"stop b1", "promote a1", "go-solo b1", "surrender b1", "switchover b1", "cancel b1", "mark b1", "confirm b1", "disclaim a1", "disclaim b1"},
	"stopped":       {"start/marker a2", "start/loss a2", "start/loss b1", "start/loss b2", "delete"},
	"surrendered":   {"stop b1", "go-solo b1", "mark b1", "confirm b1", "disclaim b1"},
	// b's disk bears no marker that anybody said to exist; a's word does not count while b might have one.
	"promoted-gone":  {"stop b1", "start/loss a2", "start/loss a1", "start/loss b2", "disclaim b1"},
	"promoted-blank": {"stop b1", "start/marker a2", "start/marker a1", "start/loss a2", "start/loss a1", "start/loss b2", "disclaim b1"},
}

func TestEveryCommandInEveryState(t *testing.T) {
	parties := []struct {
		name string
		p    Party
	}{{"a1", a1}, {"b1", b1}, {"a2", a2}, {"b2", b2}}
	for name, way := range states {
		t.Run(name, func(t *testing.T) {
			want := allowed[name]
			var got []string
			attempt := func(label string, c Command) {
				w := newWorld(t)
				before := w.must(way...)
				v := w.try(c)
				if v.Applied {
					got = append(got, label)
				} else if fmt.Sprint(before) != fmt.Sprint(w.now()) {
					t.Errorf("%s was refused and changed the assignment", label)
				}
				checkTerm(t, label, c.Kind, before, w.now(), v)
				// The same from a believer in another term is never applied.
				for _, term := range []Term{before.Term + 1, before.Term - 1} {
					if term == 0 || term > before.Term+1 || before.Term == 0 && term != 1 {
						continue
					}
					w := newWorld(t)
					w.must(way...)
					c.Term = term
					if v := w.try(c); v.Applied {
						t.Errorf("%s applied though it names term %d at term %d", label, term, before.Term)
					}
				}
			}
			for _, p := range parties {
				other := b2
				if p.p.Host == "b" {
					other = a2
				}
				for _, k := range []Kind{Stop, Protect, Promote, GoSolo, Surrender, Switchover, Cancel, Mark, Disclaim, Confirm} {
					attempt(fmt.Sprintf("%s %s", k, p.name), Command{Kind: k, By: p.p, Other: other, Epoch: 20})
				}
				attempt("start "+p.name, Command{Kind: Start, By: p.p})
				attempt("start/loss "+p.name, Command{Kind: Start, By: p.p, AcceptLoss: "all since noon", Operator: "op"})
				marker := Term(1)
				if name == "created" {
					marker = 0
				}
				attempt("start/marker "+p.name, Command{Kind: Start, By: p.p, MarkerTerm: marker})
			}
			attempt("delete", Command{Kind: Delete})
			// In the created state nobody has run yet: every process is a new one.
			if name == "created" {
				got = slices.DeleteFunc(got, func(s string) bool { return s[len(s)-2:] == "a1" || s[len(s)-2:] == "b1" })
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("applied %v\n   want %v", got, want)
			}
		})
	}
}

// checkTerm: the term rises by an applied command that changes who may run or in what mode, and by
// nothing else.
func checkTerm(t testing.TB, label string, k Kind, before, after Assignment, v Verdict) {
	t.Helper()
	raises := slices.Contains([]Kind{Start, Stop, Protect, Promote, GoSolo, Surrender, Switchover, Cancel}, k)
	if !v.Applied || !raises {
		if before.Term != after.Term && k != Delete {
			t.Errorf("%s: the term went from %d to %d", label, before.Term, after.Term)
		}
		if k != Delete && (before.Mode != after.Mode || before.Primary != after.Primary || before.Replica != after.Replica) {
			t.Errorf("%s changed roles or mode within a term", label)
		}
		return
	}
	if after.Term != before.Term+1 {
		t.Errorf("%s: the term went from %d to %d", label, before.Term, after.Term)
	}
}
