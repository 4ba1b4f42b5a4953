package sim

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run this one schedule")
	storyFlag = flag.Bool("story", false, "print the schedule as a story")
	schedules = flag.Int("schedules", 0, "number of random schedules; 0: as many as ten seconds take")
	fromFlag  = flag.Uint64("from", 0, "first seed of the random schedules; 0: any")
)

// badMax failures end the test: they are mostly one.
const badMax = 10

const budget = 10 * time.Second

// TestSchedules lives through random schedules.
func TestSchedules(t *testing.T) {
	if *seedFlag != 0 {
		one(t, *seedFlag, *storyFlag)
		return
	}
	base := *fromFlag
	if base == 0 {
		base = rand.Uint64() >> 16
	}
	left := budget
	if testing.Short() {
		left /= 10
	}
	begun, bad := time.Now(), 0
	n, faults, takeovers, released, longest, longestSeed := 0, 0, 0, 0, time.Duration(0), base
	applied := map[pact.Kind]int{}
	for ; *schedules == 0 && time.Since(begun) < left || n < *schedules; n++ {
		seed := base + uint64(n)
		w := NewWorld(seed, mutant{}, false)
		if err := w.Run(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
			if bad++; bad == badMax {
				break
			}
		}
		faults += w.faults
		takeovers += len(w.checks.starts)
		released += w.checks.released
		if w.settled > longest {
			longest, longestSeed = w.settled, seed
		}
		for k, times := range w.raft.applied {
			applied[k] += times
		}
	}
	t.Logf("applied: %v", applied)
	t.Logf("the longest way back to protection took %v (seed %d)", longest, longestSeed)
	for _, k := range []pact.Kind{pact.Start, pact.Stop, pact.Protect, pact.Promote, pact.GoSolo, pact.Surrender, pact.Switchover, pact.Cancel, pact.Mark, pact.Disclaim} {
		if n >= 1000 && applied[k] == 0 {
			t.Errorf("no schedule had a %s: the test does not go where it should", k)
		}
	}
	t.Logf("%d schedules from seed %d on: %d faults, a guest began to run %d times, %d outputs were seen", n, base, faults, takeovers, released)
}

// one lives through one schedule again.
func one(t *testing.T, seed uint64, trace bool) {
	t.Helper()
	w := NewWorld(seed, mutant{}, true)
	err := w.Run()
	if trace {
		story := w.trace
		if !*storyFlag && len(story) > 120 {
			story = story[len(story)-120:]
		}
		t.Logf("the story of seed %d:\n%s", seed, strings.Join(story, "\n"))
	}
	if err != nil {
		t.Fatalf("seed %d: %v\nagain: go test ./tests/sim -run TestSchedules -seed %d -story -v", seed, err, seed)
	}
}
