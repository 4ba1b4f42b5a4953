package daemon

import (
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// takeover is a guest's next assignment after its replica has taken it over, and protection after that by a new
// process of the host that has lost it.
func takeover(a pact.Assignment) (lost, again pact.Assignment) {
	lost = a.Clone()
	lost.Term++
	lost.Tenure, lost.Mode, lost.Primary, lost.Replica = lost.Term, pact.Solo, a.Replica, pact.Party{}
	again = lost.Clone()
	again.Term++
	again.Mode, again.Replica = pact.Protected, pact.Party{Host: a.Primary.Host, Incarnation: a.Primary.Incarnation + 100}
	return lost, again
}

func TestHistoryCountsFaults(t *testing.T) {
	now := time.Hour
	h := newHistory(config.Flapping{Faults: 3, Within: config.Duration(time.Minute)}, func() time.Duration { return now })
	a := guest(protected)
	h.changed(a, true, true)
	var tripped []string
	for range 5 { // a loses it, then b, then a, b, a: the third of a is one too many
		lost, again := takeover(a)
		was, by, flapping := h.changed(lost, true, true)
		if by != a.Primary.Host || was.Term != a.Term {
			t.Fatalf("lost by %q, before it was %+v", by, was)
		}
		if _, again, _ := h.changed(lost, true, true); again != "" {
			t.Error("the same entry, told twice, counts twice")
		}
		if flapping {
			tripped = append(tripped, by)
		}
		if _, by, _ := h.changed(again, true, true); by != "" {
			t.Errorf("protection is a fault of %s", by)
		}
		a = again
	}
	if len(tripped) != 1 || tripped[0] != "a" {
		t.Errorf("flapping: %v", tripped)
	}
	if _, by, _ := h.changed(guest(solo), true, true); by != "" {
		t.Errorf("an old assignment is a fault of %s", by)
	}
}

func TestHistoryOfThePast(t *testing.T) {
	h := newHistory(config.Flapping{Faults: 2, Within: config.Duration(time.Minute)}, func() time.Duration { return 0 })
	a := guest(protected)
	for range 10 {
		lost, again := takeover(a)
		h.changed(a, true, false)
		if _, by, flapping := h.changed(lost, true, false); by != "" || flapping {
			t.Fatalf("an entry of the past: %q %v", by, flapping)
		}
		a = again
	}
	off := newHistory(config.Flapping{Off: true}, func() time.Duration { return 0 })
	for range 10 {
		lost, again := takeover(a)
		off.changed(a, true, true)
		if _, by, flapping := off.changed(lost, true, true); by == "" || flapping {
			t.Fatalf("where nobody is kept out: %q %v", by, flapping)
		}
		a = again
	}
	h.changed(a, false, true)
	if len(h.last) != 0 {
		t.Error("a guest that is gone is remembered")
	}
}

func TestHistoryTellsOfWhoIsKeptOut(t *testing.T) {
	h := newHistory(config.Flapping{Faults: 2, Within: config.Duration(time.Minute)}, func() time.Duration { return 0 })
	one := pact.Out{Host: "a", Kind: pact.OutFlapping, By: "b", Since: 7}
	h.flap.Fault("a", 0)
	for i, c := range []struct {
		now        []pact.Out
		come, gone int
	}{{nil, 0, 0}, {[]pact.Out{one}, 1, 0}, {[]pact.Out{one}, 0, 0}, {nil, 0, 1}, {[]pact.Out{one}, 1, 0}} {
		if come, gone := h.outNow(c.now); len(come) != c.come || len(gone) != c.gone {
			t.Errorf("look %d: %v, %v", i, come, gone)
		}
	}
	if h.flap.Fault("a", 0) {
		t.Error("its faults from before count after the reset")
	}
}
