package pact

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestProperties draws commands, sensible and wild, and compares every step with the rules. It knows
// nothing of how Apply works. Beside the state it keeps what is so in the world: which disk bears
// which marker, and whose disk was the last to bear one.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := NewState()
		parties := []Party{{"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}, {"a", 3}, {"b", 3}, {}}
		primaries := map[Term]Party{} // who was let run in a term
		marker := map[string]Term{}   // durable markers by host
		newest := ""                  // the host that wrote the last one: whatever was said outside is on its disk
		var sent []Command
		var highest Term
		if v := s.Apply(Command{Kind: Create, Guest: "g", ID: "c", Spec: spec()}, 1); !v.Applied {
			rt.Fatal(v.Reason)
		}
		for i := range rapid.IntRange(1, 60).Draw(rt, "steps") {
			before, _ := s.Guest("g")
			if rapid.IntRange(0, 5).Draw(rt, "world") == 0 && before.Runs() && !before.IsGone(before.Primary) {
				marker[before.Primary.Host], newest = before.Term, before.Primary.Host
				continue
			}
			cmd := Command{
				Kind: rapid.SampledFrom([]Kind{
					Start, Stop, Protect, Promote, GoSolo, Surrender, Switchover, Cancel, Mark, Disclaim, Confirm, NoOp, SetDesired, SetCPU, Start, Protect, "fly",
				}).Draw(rt, "kind"),
				Guest: "g", ID: fmt.Sprint(i),
				Term:    before.Term,
				By:      before.Primary,
				Other:   rapid.SampledFrom(parties).Draw(rt, "other"),
				Epoch:   Epoch(rapid.IntRange(0, 9).Draw(rt, "epoch")),
				Desired: rapid.SampledFrom([]Desired{DesiredRunning, DesiredStopped, ""}).Draw(rt, "desired"),
				CPU:     &CPUSpec{Policy: "pair", Model: fmt.Sprint("of step ", i)},
			}
			if rapid.IntRange(0, 9).Draw(rt, "wild term") == 0 {
				cmd.Term = Term(rapid.IntRange(0, 12).Draw(rt, "term"))
			}
			if rapid.IntRange(0, 2).Draw(rt, "who") == 0 {
				cmd.By = rapid.SampledFrom(parties).Draw(rt, "by")
			} else if cmd.Kind == Promote {
				cmd.By = before.Replica
			}
			switch cmd.Kind { // hosts speak the truth about their disks, and mark only what is marked
			case Start:
				cmd.MarkerTerm = marker[cmd.By.Host]
				if cmd.By == before.Primary {
					cmd.By = rapid.SampledFrom(parties).Draw(rt, "starter")
					cmd.MarkerTerm = marker[cmd.By.Host]
				}
			case Mark:
				if marker[cmd.By.Host] < before.Tenure {
					continue
				}
			case Disclaim:
				cmd.NoMarker = true
				for _, c := range before.Unproven {
					if c.Party == cmd.By && marker[cmd.By.Host] >= c.Term {
						cmd.NoMarker = false
					}
				}
			}
			dup := len(sent) > 0 && rapid.IntRange(0, 6).Draw(rt, "duplicate") == 0
			if dup {
				cmd = rapid.SampledFrom(sent).Draw(rt, "which")
				if cmd.Kind == Mark || cmd.Kind == Disclaim {
					continue // said anew, it would have to be true anew
				}
			}
			sent = append(sent, cmd)
			v := s.Apply(cmd, uint64(i+2))
			after, _ := s.Guest("g")
			if err := after.Check(); err != nil {
				rt.Fatalf("%+v: %v", cmd, err)
			}
			if cmd.Kind != NoOp && cmd.Kind != "fly" && fmt.Sprint(v.Assignment) != fmt.Sprint(after) {
				rt.Fatalf("the verdict's assignment is not the state's")
			}
			if (!v.Applied || dup) && fmt.Sprint(before) != fmt.Sprint(after) {
				rt.Fatalf("%+v (applied %v, duplicate %v) changed the assignment from %+v to %+v", cmd, v.Applied, dup, before, after)
			}
			if after.Term < highest {
				rt.Fatalf("the term fell from %d to %d", highest, after.Term)
			}
			roles := before.Mode != after.Mode || before.Primary != after.Primary || before.Replica != after.Replica
			if roles && after.Term != before.Term+1 {
				rt.Fatalf("%+v changed roles from term %d to %d", cmd, before.Term, after.Term)
			}
			highest = after.Term
			if after.Runs() {
				if p, ok := primaries[after.Term]; ok && p != after.Primary {
					rt.Fatalf("term %d has the primaries %v and %v", after.Term, p, after.Primary)
				}
				primaries[after.Term] = after.Primary
			}
			if v.Applied && !dup {
				judge(rt, cmd, before, after, newest)
			}
			if rapid.IntRange(0, 9).Draw(rt, "snapshot") == 0 {
				s = reborn(rt, s)
			}
		}
	})
}

// judge checks one applied command against the design's rules.
func judge(t *rapid.T, cmd Command, before, after Assignment, newest string) {
	switch cmd.Kind {
	case Promote:
		if before.Mode != Protected || cmd.By != before.Replica || cmd.Term != before.Term || cmd.Epoch < before.Base || before.IsGone(cmd.By) {
			t.Fatalf("promoted: %+v from %+v", cmd, before)
		}
	case GoSolo, Surrender, Switchover, Cancel, Protect, Mark, Confirm:
		if cmd.By != before.Primary || cmd.Term != before.Term || before.IsGone(cmd.By) || !before.Runs() {
			t.Fatalf("not the living primary's: %+v at %+v", cmd, before)
		}
	case Start:
		if before.Runs() && (!before.IsGone(before.Primary) || before.Mode == Protected && !before.IsGone(before.Replica)) {
			t.Fatalf("a cold start while %+v", before)
		}
		// No stale disk ever starts: the last marker is on the disk that is started from.
		if newest != "" && cmd.By.Host != newest {
			t.Fatalf("started on %s, the newest disk is on %s: %+v", cmd.By.Host, newest, before)
		}
	}
	if after.Mode == Protected && before.Mode == Solo && after.CurrentDisk.Host != after.Primary.Host {
		t.Fatalf("protected with the current disk on %s: %+v", after.CurrentDisk.Host, after)
	}
}

// reborn puts a state through a snapshot.
func reborn(t *rapid.T, s *State) *State {
	b, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Restore(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, again) {
		t.Fatalf("snapshot of a restored state differs:\n%s\n%s", b, again)
	}
	return r
}
