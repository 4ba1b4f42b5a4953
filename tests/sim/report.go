package sim

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Budget is how much is to be lived through.
type Budget struct {
	From      uint64        // the first seed
	Schedules int           // 0: as many as there is time for
	Time      time.Duration // 0: until all schedules are done
	Workers   int
	Failures  int // give up after so many
}

// Report is what came of many schedules.
type Report struct {
	Schedules, Events, Steps, Starts, Outputs int
	NoFault, Short                            int // schedules without any fault, or of fewer than ShortEvents events
	Took                                      time.Duration
	Lengths                                   [16]int // schedules by the power of two of their events
	Faults                                    [32]int
	WithFault                                 [32]int // schedules that had one
	Applied                                   map[pact.Kind]int
	Reached                                   map[State]int
	Slowest                                   time.Duration // the longest way back to protection
	SlowestSeed                               uint64
	SlowestSteps                              int
	Failed                                    []Failure
}

// Failure is a schedule that broke a rule.
type Failure struct {
	Plan      Plan
	Violation *Violation
}

// ShortEvents is what a schedule should have at least.
const ShortEvents = 200

// Hunt lives through schedules until the budget is spent.
func Hunt(b Budget, m *Mutant) Report {
	begun := time.Now()
	var (
		next atomic.Uint64
		stop atomic.Bool
		mu   sync.Mutex
		all  Report
		wg   sync.WaitGroup
	)
	for range max(1, b.Workers) {
		wg.Go(func() {
			var r Report
			for !stop.Load() {
				n := next.Add(1) - 1
				if b.Schedules > 0 && n >= uint64(b.Schedules) || b.Time > 0 && time.Since(begun) > b.Time {
					break
				}
				w := NewWorld(NewPlan(b.From+n), m, false)
				err := w.Run()
				r.add(w)
				if err != nil {
					mu.Lock()
					all.Failed = append(all.Failed, Failure{w.plan, w.failed})
					if len(all.Failed) >= max(1, b.Failures) {
						stop.Store(true)
					}
					mu.Unlock()
				}
			}
			mu.Lock()
			all.merge(&r)
			mu.Unlock()
		})
	}
	wg.Wait()
	all.Took = time.Since(begun)
	return all
}

func (r *Report) add(w *World) {
	s := &w.Stats
	r.Schedules++
	r.Events += s.Events
	r.Steps += s.Steps
	r.Starts += s.Starts
	r.Outputs += s.Outputs
	any := false
	for i, n := range s.Faults {
		r.Faults[i] += n
		if n > 0 {
			any = true
			r.WithFault[i]++
		}
	}
	if !any {
		r.NoFault++
	}
	if s.Events < ShortEvents {
		r.Short++
	}
	power := 0
	for n := s.Events; n > 1 && power < len(r.Lengths)-1; n >>= 1 {
		power++
	}
	r.Lengths[power]++
	r.tally(s.Applied, s.Reached)
	if s.Settled > r.Slowest {
		r.Slowest, r.SlowestSeed, r.SlowestSteps = s.Settled, w.plan.Seed, s.SettledSteps
	}
}

func (r *Report) tally(applied map[pact.Kind]int, reached map[State]int) {
	if r.Applied == nil {
		r.Applied, r.Reached = map[pact.Kind]int{}, map[State]int{}
	}
	for k, n := range applied {
		r.Applied[k] += n
	}
	for k, n := range reached {
		r.Reached[k] += n
	}
}

func (r *Report) merge(o *Report) {
	r.Schedules += o.Schedules
	r.Events += o.Events
	r.Steps += o.Steps
	r.Starts += o.Starts
	r.Outputs += o.Outputs
	r.NoFault += o.NoFault
	r.Short += o.Short
	for i := range r.Lengths {
		r.Lengths[i] += o.Lengths[i]
	}
	for i := range r.Faults {
		r.Faults[i] += o.Faults[i]
		r.WithFault[i] += o.WithFault[i]
	}
	r.tally(o.Applied, o.Reached)
	if o.Slowest > r.Slowest {
		r.Slowest, r.SlowestSeed, r.SlowestSteps = o.Slowest, o.SlowestSeed, o.SlowestSteps
	}
}

// Print writes the report for people.
func (r *Report) Print(out io.Writer) {
	n := max(1, r.Schedules)
	fmt.Fprintf(out, "%d schedules in %v: %d events (%d each), %d steps; guests began to run %d times, %d outputs were seen outside\n",
		r.Schedules, r.Took.Round(time.Millisecond), r.Events, r.Events/n, r.Steps, r.Starts, r.Outputs)
	fmt.Fprintf(out, "without any fault: %d; with fewer than %d events: %d\n", r.NoFault, ShortEvents, r.Short)
	fmt.Fprintf(out, "the longest way back to protection: %v, %d steps (seed %d)\n", r.Slowest.Round(time.Millisecond), r.SlowestSteps, r.SlowestSeed)

	fmt.Fprintln(out, "\nevents in a schedule")
	for i, c := range r.Lengths {
		if c > 0 {
			fmt.Fprintf(out, "  %6d - %-6d %9d  %5.1f %%\n", 1<<i, 1<<(i+1)-1, c, 100*float64(c)/float64(n))
		}
	}
	fmt.Fprintf(out, "\n%-26s %10s %18s\n", "faults", "times", "in schedules")
	for i, k := range faultKinds {
		fmt.Fprintf(out, "  %-24s %10d %18d\n", k.name, r.Faults[i], r.WithFault[i])
	}
	fmt.Fprintln(out, "\ncommitted")
	for _, k := range slices.Sorted(maps.Keys(r.Applied)) {
		fmt.Fprintf(out, "  %-24s %10d\n", k, r.Applied[k])
	}
	fmt.Fprintf(out, "\nstates in which something went wrong: %d\n  %-10s %-12s %-12s\n", len(r.Reached), "Raft says", "primary's", "other host")
	states := slices.SortedFunc(maps.Keys(r.Reached), func(a, b State) int {
		return cmp.Or(cmp.Compare(r.Reached[b], r.Reached[a]), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	for _, s := range states {
		fmt.Fprintf(out, "  %-10s %-12s %-12s %9d\n", s.Mode, s.First, s.Second, r.Reached[s])
	}
}

// Never lists what no schedule had, though it should: the simulation does not go where it is meant to.
func (r *Report) Never() []string {
	var s []string
	for i, k := range faultKinds {
		if r.Faults[i] == 0 {
			s = append(s, "fault "+k.name)
		}
	}
	for _, k := range []pact.Kind{pact.Start, pact.Stop, pact.Protect, pact.Promote, pact.GoSolo, pact.Surrender, pact.Switchover, pact.Cancel, pact.Mark, pact.Disclaim} {
		if r.Applied[k] == 0 {
			s = append(s, "command "+string(k))
		}
	}
	return s
}

// Found is what came of the hunt for a mistake.
type Found struct {
	Mutant    *Mutant
	Schedules int // until it was found
	Failure   *Failure
}

// FindMutant lives through schedules from seed 1 on until the mistake shows; at most so many.
func FindMutant(m *Mutant, most int) Found {
	for n := range most {
		w := NewWorld(NewPlan(uint64(n+1)), m, false)
		if w.Run() == nil || (w.failed.Check == checkProgress) != m.Stuck {
			continue // it also does harm that anybody would see
		}
		return Found{m, n + 1, &Failure{w.plan, w.failed}}
	}
	return Found{m, most, nil}
}
