package sim

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSchedules lives through some random schedules; make sim through many.
func TestSchedules(t *testing.T) {
	b := Budget{From: rand.Uint64() >> 16, Time: 5 * time.Second, Workers: 1, Failures: 5}
	if testing.Short() {
		b.Time = time.Second
	}
	r := Hunt(b, nil)
	for _, f := range r.Failed {
		t.Errorf("%v\nagain: go run ./tests/sim/cmd/pollux-sim %s --trace", f.Violation, f.Plan.Flags())
	}
	if never := r.Never(); r.Schedules >= 3000 && len(never) > 0 {
		t.Errorf("%d schedules had none of %v: the simulation does not go where it should", r.Schedules, never)
	}
	t.Logf("%d schedules from seed %d on, %d events", r.Schedules, b.From, r.Events)
}

const mutantBudget = 5000

// TestChecksFindMistakes shows that the checks see what they are there to see.
func TestChecksFindMistakes(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Mutants() {
		t.Run(strings.ReplaceAll(m.Name, " ", "-"), func(t *testing.T) {
			f := FindMutant(m, mutantBudget)
			if f.Failure == nil {
				t.Fatalf("not found in %d schedules", f.Schedules)
			}
			seen[f.Failure.Violation.Check] = true
			t.Logf("found in schedule %d: %v", f.Schedules, f.Failure.Violation)
		})
	}
	for _, c := range Checks() {
		if !seen[c] {
			t.Errorf("no mistake was found by the check of %q: nothing shows that it can find any", c)
		}
	}
}

// TestAgain: a seed is a schedule, whoever lives through it and how often.
func TestAgain(t *testing.T) {
	for seed := range uint64(200) {
		first, second := NewWorld(NewPlan(seed), nil, true), NewWorld(NewPlan(seed), nil, true)
		if err := first.Run(); err != nil {
			t.Fatal(err)
		}
		if err := second.Run(); err != nil {
			t.Fatal(err)
		}
		clean := func(s []string) []string {
			return slices.DeleteFunc(slices.Clone(s), func(l string) bool { return strings.Contains(l, "0x") }) // addresses in memory
		}
		a, b := clean(first.Story()), clean(second.Story())
		if !slices.Equal(a, b) {
			for i := range min(len(a), len(b)) {
				if a[i] != b[i] {
					t.Fatalf("seed %d, line %d:\n%s\n%s", seed, i, a[i], b[i])
				}
			}
			t.Fatalf("seed %d: one story has %d lines, the other %d", seed, len(a), len(b))
		}
	}
}

// TestShrink: a shrunk schedule still fails by the same rule, and its flags give it again.
func TestShrink(t *testing.T) {
	m := Mutants()[0]
	for seed := uint64(1); ; seed++ {
		p := NewPlan(seed)
		w := NewWorld(p, m, false)
		if w.Run() == nil || len(p.Faults) < 10 {
			continue
		}
		s := Shrink(p, m, w.failed.Check, 300)
		if len(s.Faults) >= len(p.Faults) {
			t.Errorf("seed %d: %d faults are left of %d", seed, len(s.Faults), len(p.Faults))
		}
		again := NewWorld(s, m, false)
		if err := again.Run(); err == nil || again.failed.Check != w.failed.Check {
			t.Errorf("the shrunk schedule %q: %v; the whole one: %v", s.Flags(), err, w.failed)
		}
		return
	}
}
