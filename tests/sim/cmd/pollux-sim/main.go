// Command pollux-sim hunts for schedules that break a rule of the protocol, or lives through one of them.
//
//	pollux-sim --schedules 1000000            a fixed budget of random schedules, and a report
//	pollux-sim --seed 42 --trace              one schedule, as a story
//	pollux-sim --mutants                      deliberate mistakes, and how soon each is found
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pollux-ha/pollux/tests/sim"
)

type options struct {
	seed, from, salt uint64
	schedules        int
	limit            time.Duration
	workers          int
	trace, mutants   bool
	mutant           string
	only, calm       string
	guests, shrink   int
	length           time.Duration
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "live through this one schedule")
	flag.BoolVar(&o.trace, "trace", false, "print it as a story")
	flag.StringVar(&o.only, "only", "", "of its faults only those with these numbers: 3,7, or none")
	flag.Uint64Var(&o.salt, "salt", 0, "with another environment")
	flag.IntVar(&o.guests, "guests", 0, "with so many guests: 1 or 2")
	flag.StringVar(&o.calm, "calm", "", "without these disturbances: busy,lost,double,rates")
	flag.DurationVar(&o.length, "length", 0, "all is well after so long")
	flag.IntVar(&o.schedules, "schedules", 0, "so many random schedules")
	flag.DurationVar(&o.limit, "time", 0, "at most so long")
	flag.Uint64Var(&o.from, "from", 0, "seed of the first of them; 0: a random one")
	flag.IntVar(&o.workers, "workers", runtime.GOMAXPROCS(0), "schedules at a time")
	flag.BoolVar(&o.mutants, "mutants", false, "hunt for each of the deliberate mistakes")
	flag.StringVar(&o.mutant, "mutant", "", "with the deliberate mistake of this name, or of this number in --mutants")
	flag.IntVar(&o.shrink, "shrink", 3000, "schedules that may be spent to shrink a failing one")
	flag.Parse()
	// All that a schedule makes is garbage when it is over: collecting it rarely is what costs least.
	debug.SetGCPercent(1000)
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "pollux-sim:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.mutants {
		return mutants(max(o.schedules, 5000))
	}
	var m *sim.Mutant
	if o.mutant != "" {
		var err error
		if m, err = mutant(o.mutant); err != nil {
			return err
		}
	}
	if seedGiven() {
		return one(o, m)
	}
	if o.schedules == 0 && o.limit == 0 {
		o.limit = 10 * time.Second
	}
	if o.from == 0 {
		o.from = rand.Uint64() >> 16
	}
	fmt.Printf("seeds from %d on, %d at a time\n", o.from, o.workers)
	r := sim.Hunt(sim.Budget{From: o.from, Schedules: o.schedules, Time: o.limit, Workers: o.workers, Failures: 3}, m)
	r.Print(os.Stdout)
	for _, f := range r.Failed {
		fmt.Printf("\nVIOLATION in seed %d: %v\n", f.Plan.Seed, f.Violation)
		small := sim.Shrink(f.Plan, m, f.Violation.Check, o.shrink)
		fmt.Printf("shrunk from %d faults to %d; again: pollux-sim %s\n", len(f.Plan.Faults), len(small.Faults), small.Flags())
		tell(small, m)
	}
	if len(r.Failed) > 0 {
		return fmt.Errorf("%d of %d schedules broke a rule", len(r.Failed), r.Schedules)
	}
	if never := r.Never(); r.Schedules >= 10_000 && len(never) > 0 {
		return fmt.Errorf("no schedule had a %s: the simulation does not go where it should", strings.Join(never, ", a "))
	}
	fmt.Println("\nno rule was broken")
	return nil
}

func seedGiven() bool {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "seed" })
	return given
}

// one lives through one schedule.
func one(o options, m *sim.Mutant) error {
	p := sim.NewPlan(o.seed)
	p.Salt = o.salt
	if o.only != "" {
		var numbers []int
		for _, s := range strings.Split(strings.TrimSuffix(o.only, "none"), ",") {
			n, err := strconv.Atoi(s)
			if err != nil && s != "" {
				return fmt.Errorf("--only %s: numbers of faults, with commas", o.only)
			}
			if s != "" {
				numbers = append(numbers, n)
			}
		}
		p = p.Only(numbers)
	}
	if o.guests != 0 {
		p.Guests = o.guests
	}
	if o.calm != "" {
		c, err := sim.ParseCalm(o.calm)
		if err != nil {
			return err
		}
		p.Calm = c
	}
	if o.length != 0 {
		p.Length = o.length
	}
	w := sim.NewWorld(p, m, o.trace)
	err := w.Run()
	for _, l := range w.Story() {
		fmt.Println(l)
	}
	fmt.Printf("%d events, %d steps, %v; %d outputs were seen outside\n", w.Stats.Events, w.Stats.Steps, w.Stats.Time, w.Stats.Outputs)
	return err
}

// tell prints a schedule as a story: its last part, if it is long.
func tell(p sim.Plan, m *sim.Mutant) {
	const most = 150
	w := sim.NewWorld(p, m, true)
	_ = w.Run()
	story := w.Story()
	if len(story) > most {
		fmt.Printf("(%d lines before)\n", len(story)-most)
		story = story[len(story)-most:]
	}
	for _, l := range story {
		fmt.Println(l)
	}
}

func mutant(name string) (*sim.Mutant, error) {
	for i, m := range sim.Mutants() {
		if m.Name == name || strconv.Itoa(i+1) == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("there is no deliberate mistake %q; --mutants lists them", name)
}

// mutants prints how soon each deliberate mistake is found.
func mutants(most int) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tmistake\tschedules\tfound by\t")
	missed := 0
	for i, m := range sim.Mutants() {
		f := sim.FindMutant(m, most)
		by := "NOT FOUND"
		if f.Failure != nil {
			by = f.Failure.Violation.Check
		} else {
			missed++
		}
		fmt.Fprintf(t, "%d\t%s\t%d\t%s\t\n", i+1, m.Name, f.Schedules, by)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if missed > 0 {
		return fmt.Errorf("%d deliberate mistakes were not found in %d schedules each", missed, most)
	}
	return nil
}
