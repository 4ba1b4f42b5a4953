package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// World is all that exists in a schedule.
type World struct {
	clock
	plan   Plan
	rng    *rand.Rand
	raft   *raft
	nodes  [2]*node
	guests []*guest
	mutant *Mutant

	processes    map[pact.Party]*process
	conns        []*conn
	cut          [2]bool // the way from a host to its twin
	cuts         [2]int
	hostile      bool
	slow         int // messages of the twins take up to so many milliseconds
	pace         time.Duration
	journalLag   time.Duration // of a replica's disk
	incarnations pact.Incarnation
	streams      uint64
	ids          int

	failed *Violation
	// What was seen of it, for reports.
	Stats Stats

	tracing bool
	trace   []string
}

// NewWorld makes the world of a plan, with guests that are meant to run and do not yet.
func NewWorld(p Plan, m *Mutant, tracing bool) *World {
	if m == nil {
		m = &Mutant{}
	}
	w := &World{
		plan: p, rng: rand.New(rand.NewPCG(p.Seed, 8+p.Salt)), mutant: m, processes: make(map[pact.Party]*process, 16),
		hostile: true, tracing: tracing,
	}
	w.clock.queue = make([]entry, 0, 128)
	w.clock.fns = make([]func(), 0, 128)
	w.now = time.Second
	w.pace = time.Duration(2+w.rng.IntN(12)) * time.Millisecond
	w.journalLag = []time.Duration{3 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond}[w.rng.IntN(3)]
	w.raft = newRaft(w)
	for i, name := range []string{"a", "b"} {
		w.nodes[i] = newNode(w, i, name)
	}
	newGuest(w, 0, "g", 0)
	if p.Guests > 1 {
		newGuest(w, 1, "h", 1) // its primary sits on the other host
	}
	return w
}

func (w *World) tracef(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%9.3f  %s", float64(w.now)/1e6-1000, fmt.Sprintf(format, args...)))
	}
}

// Story is what happened, if the world was told to keep it.
func (w *World) Story() []string { return w.trace }

// Violation is a rule that was broken.
type Violation struct {
	Check string // which one
	Text  string
	At    time.Duration // since the schedule's begin
}

func (v *Violation) Error() string { return v.Check + ": " + v.Text }

func (w *World) fail(check, format string, args ...any) {
	if w.failed == nil {
		w.failed = &Violation{Check: check, Text: fmt.Sprintf(format, args...), At: w.now - time.Second}
		w.tracef("         VIOLATION of %v", w.failed)
	}
}

func (w *World) one(in int) bool { return w.rng.IntN(in) == 0 }

// disturbed says whether a disturbance of the given kind happens now.
func (w *World) disturbed(c Calm, in int) bool {
	is := w.rng.IntN(in) == 0
	return is && w.hostile && w.plan.Calm&c == 0
}

func (w *World) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

// small is how long threads take to notice anything.
func (w *World) small() time.Duration {
	d := w.upTo(500 * time.Microsecond)
	if w.disturbed(calmBusy, 60) {
		d += w.upTo(30 * time.Millisecond) // a busy machine
	}
	return d
}

func (w *World) latency() time.Duration {
	d := 100*time.Microsecond + w.small()
	if w.hostile && w.slow > 0 {
		d += w.upTo(time.Duration(w.slow) * time.Millisecond)
	}
	return d
}

func (w *World) raftDelay() time.Duration {
	d := 500*time.Microsecond + w.upTo(3*time.Millisecond)
	if w.disturbed(calmBusy, 6) {
		d += w.upTo(400 * time.Millisecond)
	}
	return d
}

func (w *World) logLag() time.Duration {
	d := w.upTo(10 * time.Millisecond)
	if w.disturbed(calmBusy, 6) {
		d += w.upTo(500 * time.Millisecond)
	}
	return d
}

func (w *World) diskDelay() time.Duration {
	d := w.upTo(3 * time.Millisecond)
	if w.disturbed(calmBusy, 10) {
		d += w.upTo(200 * time.Millisecond)
	}
	return d
}

func (w *World) guestPace() time.Duration { return w.upTo(2 * w.pace) }

// until lets time pass.
func (w *World) until(t time.Duration) {
	for w.failed == nil && len(w.queue) > 0 && w.queue[0].at <= t {
		w.next()
		if w.steps > stepsMax {
			w.fail(checkProgress, "nothing comes to rest: %d steps", w.steps)
		}
	}
	w.now = max(w.now, t)
}

const (
	healMax    = 12 * time.Second // until a guest is protected again, once all is well
	healSteps  = 60_000           // the same in steps
	stepsMax   = 1_000_000        // of a whole schedule
	steadyTime = 250 * time.Millisecond
)

// Run lives through the schedule and reports the first rule that was broken.
func (w *World) Run() error {
	begin := w.now
	for _, f := range w.plan.Faults {
		w.until(begin + f.At)
		if w.failed != nil {
			break
		}
		w.strike(f)
	}
	if w.failed == nil && w.Stats.Faults == [len(w.Stats.Faults)]int{} && len(w.plan.Faults) > 0 {
		w.strike(Fault{N: w.plan.faults, kind: 0, seed: w.plan.Seed}) // nothing was there that the others could have struck
	}
	w.until(begin + w.plan.Length)
	if w.failed == nil {
		w.heal()
		w.settle()
	}
	w.Stats.Steps, w.Stats.Time = w.steps, w.now-begin
	if w.failed != nil {
		return w.failed
	}
	return nil
}

// settle waits until all is as it should be, and stays so.
func (w *World) settle() {
	healed, steps := w.now, w.steps
	var since time.Duration
	for w.failed == nil {
		w.until(w.now + 50*time.Millisecond)
		stuck := false
		for _, g := range w.guests {
			stuck = stuck || g.checks.stuck() != ""
		}
		switch {
		case stuck:
			since = 0
			w.operators()
		case since == 0:
			since = w.now
		case w.now-since >= steadyTime && w.Stats.Events >= ShortEvents:
			w.Stats.Settled, w.Stats.SettledSteps = since-healed, w.steps-steps
			for _, g := range w.guests {
				g.checks.final()
			}
			return
		}
		if w.now-healed > healMax || w.steps-steps > healSteps*len(w.guests) {
			for _, g := range w.guests {
				if why := g.checks.stuck(); why != "" {
					w.fail(checkProgress, "%s", g.checks.story(why))
				}
			}
			w.fail(checkProgress, "the guest is protected and is not, in turn")
		}
	}
}

func (w *World) node(name string) *node {
	if w.nodes[0].name == name {
		return w.nodes[0]
	}
	return w.nodes[1]
}
