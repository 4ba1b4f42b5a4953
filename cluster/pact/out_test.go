package pact

import (
	"bytes"
	"strings"
	"testing"
)

func keepOut(kind OutKind, host, by string) Command {
	return Command{Kind: KeepOut, Other: Party{Host: host}, By: Party{Host: by}, Out: kind, Reason: "it was silent"}
}

func readmit(kind OutKind, host, by, operator string) Command {
	return Command{Kind: Readmit, Other: Party{Host: host}, By: Party{Host: by}, Out: kind, Operator: operator}
}

// taken is a guest that b has taken over from a.
func taken(t *testing.T) *world {
	w := newWorld(t)
	w.must(
		Command{Kind: Create, Spec: spec()},
		Command{Kind: Start, By: a1},
		Command{Kind: Mark, By: a1},
		Command{Kind: Protect, By: a1, Other: b1, Epoch: 3},
		Command{Kind: Promote, By: b1, Epoch: 5},
		Command{Kind: Mark, By: b1},
	)
	return w
}

func TestWhoIsFencedGetsNothing(t *testing.T) {
	w := taken(t)
	w.must(keepOut(OutFencing, "a", "b"))
	if why := w.refused(Command{Kind: Protect, By: b1, Other: a2, Epoch: 7}); !strings.Contains(why, "a is kept out (fencing, by b: it was silent)") {
		t.Error(why)
	}
	w.refused(keepOut(OutFencing, "b", "a"))     // who is being fenced does not fence
	w.refused(keepOut(OutFencing, "a", "c"))     // one at a time
	w.refused(readmit(OutFencing, "a", "c", "")) // it is b's
	w.must(keepOut(OutFencing, "a", "b"))        // it is said again
	w.must(readmit(OutFencing, "a", "b", ""), Command{Kind: Protect, By: b1, Other: a2, Epoch: 7})
	if len(w.s.Out()) != 0 {
		t.Errorf("%+v", w.s.Out())
	}
}

func TestNoFenceAgainstWhoIsNeeded(t *testing.T) {
	w := taken(t)
	w.refused(keepOut(OutFencing, "b", "a")) // the primary
	w.refused(keepOut(OutFencing, "b", "b"))
	w.must(Command{Kind: Protect, By: b1, Other: a2, Epoch: 7})
	w.refused(keepOut(OutFencing, "a", "b")) // who may take over
	// Of another guest it is the primary: the hosts must not shoot each other.
	w.must(Command{Kind: GoSolo, By: b1})
	w.must(Command{Kind: Create, Guest: "h", Spec: spec()}, Command{Kind: Start, Guest: "h", By: Party{"a", 9}})
	if why := w.refused(keepOut(OutFencing, "a", "b")); !strings.Contains(why, "primary of guest h") {
		t.Error(why)
	}
	w.must(Command{Kind: Disclaim, Guest: "h", By: Party{"a", 9}}, keepOut(OutFencing, "a", "b"))
	// And it does not become one behind the fencer's back.
	if why := w.refused(Command{Kind: Start, Guest: "h", By: Party{"a", 10}}); !strings.Contains(why, "kept out") {
		t.Error(why)
	}
}

func TestAFlappingHost(t *testing.T) {
	w := taken(t)
	w.must(keepOut(OutFlapping, "a", "b"), keepOut(OutFlapping, "a", "w")) // two may come to see it
	w.refused(Command{Kind: Protect, By: b1, Other: a2, Epoch: 7})
	w.refused(readmit(OutFlapping, "a", "b", "")) // nobody but an operator ends it
	w.refused(keepOut("dancing", "a", "b"))
	w.refused(keepOut(OutFlapping, "A B", "b"))
	// What has no other place starts there nevertheless.
	w.must(Command{Kind: Create, Guest: "h", Spec: spec()}, Command{Kind: Start, Guest: "h", By: Party{"a", 9}})
	w.must(readmit(OutFlapping, "a", "", "op"), Command{Kind: Protect, By: b1, Other: a2, Epoch: 7})
	// A right that it has stays: the loss of b is no time for scruples.
	w.must(keepOut(OutFlapping, "a", "b"), Command{Kind: Promote, By: a2, Epoch: 8})
}

// A duplicate that comes late does not undo what came after the first.
func TestLateDuplicatesOfKeepingOut(t *testing.T) {
	w := taken(t)
	out, in := keepOut(OutFlapping, "a", "b"), readmit(OutFlapping, "a", "", "op")
	out.ID, in.ID = "out", "in"
	w.must(out, in, out)
	if len(w.s.Out()) != 0 {
		t.Errorf("kept out again: %+v", w.s.Out())
	}
	w.must(keepOut(OutFlapping, "a", "b"), in)
	if len(w.s.Out()) != 1 {
		t.Error("readmitted again")
	}
	other := keepOut(OutFlapping, "c", "w")
	other.ID = "out"
	w.refused(other)
}

func TestKeptOutSurvivesASnapshot(t *testing.T) {
	w := taken(t)
	w.must(keepOut(OutFlapping, "a", "b"), keepOut(OutFencing, "a", "b"))
	b, err := w.s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Restore(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Out(); len(got) != 2 || got[0].Kind != OutFencing || got[1].Kind != OutFlapping || got[1].By != "b" {
		t.Errorf("%+v", got)
	}
	if _, err := Restore(bytes.Replace(b, []byte(`"kind":"flapping"`), []byte(`"kind":"dancing"`), 1)); err == nil {
		t.Error("a kind that there is not was restored")
	}
	if _, err := Restore(bytes.Replace(b, []byte(`"kind":"flapping"`), []byte(`"kind":"fencing"`), 1)); err == nil {
		t.Error("a host was restored twice")
	}
}

func TestLostBy(t *testing.T) {
	w := newWorld(t)
	was := w.must(Command{Kind: Create, Spec: spec()})
	for _, step := range []struct {
		cmd  Command
		lost string
	}{
		{Command{Kind: Start, By: a1}, ""},
		{Command{Kind: Mark, By: a1}, ""},
		{Command{Kind: Protect, By: a1, Other: b1, Epoch: 3}, ""},
		{Command{Kind: Switchover, By: a1, Epoch: 4}, ""},
		{Command{Kind: Mark, By: b1}, ""},
		{Command{Kind: Promote, By: a1, Epoch: 5}, "b"},
		{Command{Kind: Mark, By: a1}, ""},
		{Command{Kind: Protect, By: a1, Other: b2, Epoch: 3}, ""},
		{Command{Kind: Surrender, By: a1}, "a"},
		{Command{Kind: Mark, By: b2}, ""},
		{Command{Kind: Protect, By: b2, Other: a2, Epoch: 3}, ""},
		{Command{Kind: GoSolo, By: b2}, ""},
		{Command{Kind: Stop, By: b2}, ""},
	} {
		is := w.must(step.cmd)
		if got := LostBy(was, is); got != step.lost {
			t.Errorf("%s: lost by %q, expected %q", step.cmd.Kind, got, step.lost)
		}
		was = is
	}
}
