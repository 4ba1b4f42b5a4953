package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Plan is a schedule before it is lived: what goes wrong, and when. All else follows from the seed.
type Plan struct {
	Seed uint64
	// Salt gives the same faults another environment: other delays, another guest. 0 as a rule.
	Salt   uint64
	Guests int
	Length time.Duration // until all is well again
	Calm   Calm
	Faults []Fault
	faults int // before any was left out
}

// Fault is one thing that goes wrong. How exactly follows from its own seed, whatever else happens.
type Fault struct {
	N    int // its number in the seed's schedule
	At   time.Duration
	kind int
	seed uint64
}

// Kind is the name of what happens.
func (f Fault) Kind() string { return faultKinds[f.kind].name }

// Calm are disturbances that a schedule is spared.
type Calm uint

const (
	calmBusy   Calm = 1 << iota // threads, disks and logs that are late now and then
	calmLost                    // proposals and the daemons' messages that are lost, or of unknown outcome
	calmDouble                  // proposals that are committed several times
	calmRates                   // hosts whose clocks run at different rates
	calmAll    = calmBusy | calmLost | calmDouble | calmRates
)

var calmNames = []string{"busy", "lost", "double", "rates"}

func (c Calm) String() string {
	var s []string
	for i, n := range calmNames {
		if c&(1<<i) != 0 {
			s = append(s, n)
		}
	}
	return strings.Join(s, ",")
}

// ParseCalm reads what String writes.
func ParseCalm(s string) (Calm, error) {
	var c Calm
	if s == "" {
		return 0, nil
	}
next:
	for _, part := range strings.Split(s, ",") {
		for i, n := range calmNames {
			if n == part {
				c |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("calm %q: %s are possible", part, strings.Join(calmNames, ", "))
	}
	return c, nil
}

// NewPlan draws the schedule of a seed.
func NewPlan(seed uint64) Plan {
	rng := rand.New(rand.NewPCG(seed, 7))
	one := func(in int) bool { return rng.IntN(in) == 0 }
	upTo := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d) + 1)) }
	p := Plan{Seed: seed, Guests: 1}
	if one(5) {
		p.Guests = 2
	}
	if one(3) {
		p.Calm |= calmBusy
	}
	if !one(3) {
		p.Calm |= calmRates
	}
	// Each schedule has its own selection: two kinds of fault that meet often find more than all that meet
	// now and then.
	kinds := make([]int, 0, 2*len(faultKinds))
	for i, k := range faultKinds {
		if k.rare != 0 && !one(k.rare) {
			continue
		}
		for range max(1, k.weight) {
			kinds = append(kinds, i)
		}
	}
	rng.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	kinds = kinds[:1+rng.IntN(min(len(kinds), 14))]

	pause := time.Duration(20+rng.IntN(300)) * time.Millisecond
	if one(3) {
		pause *= 3 // time to be protected in between
	}
	at := upTo(50 * time.Millisecond)
	if !one(4) {
		at += 250*time.Millisecond + upTo(350*time.Millisecond) // when it is protected, as a rule
	}
	end := at + 300*time.Millisecond + upTo(1500*time.Millisecond)
	if one(4) {
		end += upTo(6 * time.Second)
	}
	for at <= end {
		p.strike(rng, kinds, at)
		if one(4) {
			p.strike(rng, kinds, at+upTo(5*time.Millisecond)) // two things at once
		}
		at += upTo(pause)
	}
	p.Length = at
	p.faults = len(p.Faults)
	return p
}

func (p *Plan) strike(rng *rand.Rand, kinds []int, at time.Duration) {
	p.Faults = append(p.Faults, Fault{N: len(p.Faults), At: at, kind: kinds[rng.IntN(len(kinds))], seed: rng.Uint64()})
}

// Only leaves out all faults but those of the given numbers.
func (p Plan) Only(numbers []int) Plan {
	var kept []Fault
	for _, f := range p.Faults {
		for _, n := range numbers {
			if n == f.N {
				kept = append(kept, f)
				break
			}
		}
	}
	p.Faults = kept
	return p
}

// Flags are the options of pollux-sim that give this very schedule.
func (p Plan) Flags() string {
	s := fmt.Sprintf("--seed %d", p.Seed)
	full := NewPlan(p.Seed)
	if len(p.Faults) != len(full.Faults) {
		var n []string
		for _, f := range p.Faults {
			n = append(n, strconv.Itoa(f.N))
		}
		s += " --only " + strings.Join(n, ",")
		if len(n) == 0 {
			s += "none"
		}
	}
	if p.Salt != 0 {
		s += fmt.Sprintf(" --salt %d", p.Salt)
	}
	if p.Guests != full.Guests {
		s += fmt.Sprintf(" --guests %d", p.Guests)
	}
	if p.Calm != full.Calm {
		s += " --calm " + p.Calm.String()
	}
	if p.Length != full.Length {
		s += " --length " + p.Length.String()
	}
	return s
}
