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
	rng    *rand.Rand
	raft   *raft
	hosts  [2]*host
	checks *checks
	mutant mutant

	processes    map[pact.Party]*process
	conns        []*conn
	cut          [2]bool // the way from a host to its twin
	cuts         [2]int
	hostile      bool
	slow         int // messages of the twins take up to so many milliseconds
	pace         time.Duration
	incarnations pact.Incarnation
	streams      uint64
	ids          int
	faults       int           // that have happened
	settled      time.Duration // from the last one on, until the guest was protected again

	tracing bool
	trace   []string
}

// NewWorld makes the world of a seed, with a guest that is meant to run and does not yet.
func NewWorld(seed uint64, m mutant, tracing bool) *World {
	w := &World{
		rng: rand.New(rand.NewPCG(seed, 7)), mutant: m, processes: map[pact.Party]*process{},
		hostile: true, tracing: tracing,
	}
	w.now = time.Second
	w.pace = time.Duration(2+w.rng.IntN(12)) * time.Millisecond
	w.checks = &checks{w: w, voice: map[pact.Term]pact.Party{}, held: map[pact.Party]*event{}}
	w.raft = &raft{w: w}
	w.hosts = [2]*host{newHost(w, 0, "a"), newHost(w, 1, "b")}
	w.raft = newRaft(w)
	return w
}

func (w *World) tracef(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%9.3f  %s", float64(w.now)/1e6-1000, fmt.Sprintf(format, args...)))
	}
}

func (w *World) one(in int) bool { return w.rng.IntN(in) == 0 }

func (w *World) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

// small is how long threads take to notice anything.
func (w *World) small() time.Duration {
	d := w.upTo(500 * time.Microsecond)
	if w.hostile && w.one(60) {
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
	if w.hostile && w.one(6) {
		d += w.upTo(400 * time.Millisecond)
	}
	return d
}

func (w *World) logLag() time.Duration {
	d := w.upTo(10 * time.Millisecond)
	if w.hostile && w.one(6) {
		d += w.upTo(500 * time.Millisecond)
	}
	return d
}

func (w *World) diskDelay() time.Duration {
	d := w.upTo(3 * time.Millisecond)
	if w.hostile && w.one(10) {
		d += w.upTo(200 * time.Millisecond)
	}
	return d
}

func (w *World) guestPace() time.Duration { return w.upTo(2 * w.pace) }

// until lets time pass.
func (w *World) until(t time.Duration) {
	for w.checks.failed == nil && len(w.queue) > 0 && w.queue[0].at <= t {
		w.next()
	}
	w.now = max(w.now, t)
}

const (
	quietMax   = 5 * time.Second  // until a guest is protected for the first time
	healMax    = 10 * time.Second // until it is again
	steadyTime = 500 * time.Millisecond
)

// Run lives through the schedule and reports what should not have happened.
func (w *World) Run() error {
	trouble := w.newTrouble()
	quiet := w.now + quietMax
	for w.now < quiet && w.checks.failed == nil && !w.one(3) {
		w.until(w.now + w.upTo(300*time.Millisecond)) // faults may come before it is protected
	}
	end := w.now + 300*time.Millisecond + w.upTo(6*time.Second)
	for w.now < end && w.checks.failed == nil {
		trouble.strike()
		w.until(w.now + w.upTo(trouble.pause))
	}
	w.heal()
	healed := w.now
	limit := healed + healMax
	var since time.Duration
	why := "it never ended"
	for w.now < limit && w.checks.failed == nil {
		w.until(w.now + 50*time.Millisecond)
		why = w.checks.stuck()
		switch {
		case why != "":
			since = 0
		case since == 0:
			since = w.now
		case w.now-since >= steadyTime:
			w.settled = since - healed
			return w.checks.failed
		}
	}
	if w.checks.failed == nil {
		w.checks.fail("stuck: %s", why)
	}
	return w.checks.failed
}
