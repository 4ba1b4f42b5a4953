package sim

import (
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	primary "github.com/pollux-ha/pollux/lockstep/core"
	replica "github.com/pollux-ha/pollux/replica/core"
)

const (
	inFlight       = 3
	demandInFlight = 1
)

// start is lockstep.Start.
type start struct {
	assignment pact.Assignment
	last       pact.Epoch
	sum        digest
	frames     []*event
	since      time.Duration
	cold       bool
}

// engine is a model of lockstep's: what it does with each action, and which events it makes.
type engine struct {
	p    *process
	w    *World
	core *primary.Core
	out  outlet

	begun, over, closed, done bool

	stay, staying, finish, switchover, endEpoch, asked bool

	inflight  []*epoch
	peer      link.Peer
	calling   bool // the connector is at work or waits to be again
	backoff   time.Duration
	barren    int
	stream    *stream
	image     held
	final     final
	mirroring bool
	logging   bool
	captured  *event // the state that was captured last

	contact, lastPulse, lastAsked, lastEnd, switchedAt time.Duration
}

// epoch is one that was captured.
type epoch struct {
	number         pact.Epoch
	term           pact.Term
	syncing, final bool
	whole          bool
	base, state    *event
	frames         []*event
	sum            digest // of what was sent last
	captured       time.Duration
}

// held is what a replica's process holds, as far as resuming goes.
type held struct {
	party       pact.Party
	whole, last pact.Epoch
	sum         digest
}

type final struct {
	epoch pact.Epoch
	sum   digest
	state *event
	acked bool
}

func newEngine(p *process) *engine {
	return &engine{p: p, w: p.w, core: primary.New(primary.Config{Guest: p.host.g.name, Self: p.party})}
}

func (e *engine) begin(s start) {
	now := e.p.now()
	e.begun, e.lastPulse, e.lastEnd = true, now, now
	if s.since != 0 {
		e.lastPulse = s.since
	}
	if s.assignment.Mode == pact.Protected {
		e.contact = now
		e.logging, e.mirroring = true, true
		e.image = held{party: s.assignment.Replica, whole: s.last, last: s.last, sum: s.sum}
	}
	e.captured = e.p.machine.state
	for _, f := range s.frames {
		e.out.put(f)
	}
	e.out.seal(s.last)
	e.step(primary.Begin{Assignment: s.assignment, Last: s.last})
	e.unlock()
	e.p.timer(heartbeat, e.pulse)
	e.connect()
}

// step feeds the core and does what it says, up to what has to wait for unlock.
func (e *engine) step(ev primary.Event) {
	ev = e.w.mutant.toPrimary(e, ev)
	if ev == nil {
		return
	}
	e.w.Stats.Events++
	if e.w.tracing {
		switch ev.(type) {
		case primary.Acked, primary.Captured, primary.Retry:
		default:
			e.p.trace("primary < %T%+v", ev, ev)
		}
	}
	for _, a := range e.w.mutant.fromPrimary(e, ev, e.core.Step(ev)) {
		if _, hot := a.(primary.Release); !hot && e.w.tracing {
			e.p.trace("primary > %s", a)
		}
		switch a := a.(type) {
		case primary.Hold:
			e.out.hold()
		case primary.Open:
			e.out.open()
		case primary.Release:
			e.out.release(a.UpTo)
		case primary.Drop:
			e.out.drop()
		case primary.Pause:
			e.stay, e.finish = true, false
		case primary.Finish:
			e.stay, e.finish, e.switchover = false, true, a.Switchover
		case primary.Resume:
			e.stay, e.finish, e.switchover = false, false, false
		case primary.EndEpoch:
			e.endEpoch = true
		case primary.Propose:
			e.lastAsked = e.p.now()
			e.p.propose(a.Command)
		case primary.WriteMarker:
			e.writeMarker(a.Term)
		case primary.CloseStream:
			if s := e.stream; s != nil && s.id == a.Stream {
				s.close()
			}
		case primary.End:
			e.over = true
			e.p.after(e.w.small(), func() { e.end(a) })
		}
	}
	switch ev.(type) {
	case primary.Acked, primary.Captured, primary.Retry:
	default:
		e.p.after(0, e.connect)
	}
	e.kick()
}

func (e *engine) writeMarker(t pact.Term) {
	p := e.p
	p.after(e.w.diskDelay(), func() {
		d := &p.host.disk
		switch {
		case d.owner != p:
		case d.broken:
			p.diskFailed()
			return
		case d.state != "current" || d.term < t:
			d.state, d.term = "current", t
		}
		p.after(e.w.small(), func() { e.feed(primary.MarkerDurable{Term: t}) })
	})
}

// unlock is where output leaves.
func (e *engine) unlock() {
	for {
		e.gap()
		if e.core.Blocked() && !e.w.mutant.ungated || len(e.out.ready) == 0 {
			return
		}
		f := e.out.ready[0]
		e.out.ready = e.out.ready[1:]
		e.p.host.g.checks.emitted(e.p, e.core.Assignment(), f)
	}
}

func (e *engine) feed(ev primary.Event) {
	if e.closed {
		return
	}
	e.step(ev)
	e.unlock()
}

func (e *engine) gap() {
	now := e.p.now()
	if !e.begun || e.over || now-e.lastPulse <= silence {
		return
	}
	e.lastPulse = now
	if e.stream != nil {
		e.stream.lastHeard, e.stream.lastAck = now, now
	}
	e.step(primary.OwnGap{})
}

func (e *engine) output(f *event) {
	e.gap()
	if e.out.put(f) {
		e.p.host.g.checks.emitted(e.p, e.core.Assignment(), f)
	}
	e.kick()
}

func (e *engine) assigned(a *pact.Assignment) { e.feed(primary.Assigned{Assignment: *a}) }
func (e *engine) answered(id string, v *pact.Verdict) {
	e.feed(primary.Answered{ID: id, Verdict: v})
}
func (e *engine) retry()           { e.feed(primary.Retry{}) }
func (e *engine) word(t pact.Term) { e.feed(primary.Word{Term: t}) }
func (e *engine) powerOff()        { e.feed(primary.PoweredOff{Why: "the guest"}) }
func (e *engine) fault(why string) { e.feed(primary.Faulty{Why: why}) }
func (e *engine) kill()            { e.feed(primary.Killed{Why: "by order"}) }
func (e *engine) orderSwitchover() {
	e.step(primary.SwitchoverOrdered{})
	if e.switchedAt == 0 && e.core.Mode() == "switching" {
		e.switchedAt = e.p.now()
	}
	e.unlock()
}

// end is the last thing that an engine does.
func (e *engine) end(a primary.End) {
	if s := e.stream; s != nil {
		switch a.Outcome {
		case primary.Lost:
			s.end.send(higherTerm{a.Assignment.Term})
		case primary.Exchanged, primary.Stopped:
			s.end.send(goodbye{})
		}
		s.close()
	}
	e.p.machine.stopped = true
	e.p.after(e.w.small(), func() {
		e.done = true
		if a.Outcome == primary.Failed || a.Outcome == primary.Lost && a.Assignment.Primary == e.p.party {
			e.p.side.step(replica.Failed{Err: a.Why})
		}
	})
}

func (e *engine) close() {
	e.over, e.closed = true, true
	if e.stream != nil {
		e.stream.close()
	}
}

// pulse is the engine's clock.
func (e *engine) pulse() {
	if e.over {
		return
	}
	e.tick()
	e.unlock()
	e.endByPolicy()
	e.p.timer(heartbeat, e.pulse)
}

func (e *engine) tick() {
	e.gap()
	now := e.p.now()
	e.lastPulse = now
	if e.core.Asking() && now-e.lastAsked >= askAgain {
		e.lastAsked = now
		e.step(primary.Retry{})
	}
	if e.switchedAt != 0 {
		switch {
		case e.core.Mode() != "switching":
			e.switchedAt = 0
		case now-e.switchedAt > switchoverLimit:
			e.switchedAt = 0
			e.step(primary.SwitchoverExpired{})
		}
	}
	if e.contact != 0 && now-e.contact > 3*silence {
		e.contact = 0
		e.step(primary.StreamDown{Why: "the twin could not be reached"})
	}
	s := e.stream
	limit := silence
	if s != nil && s.fill != nil {
		limit *= link.SyncSilences
	}
	switch {
	case s == nil || !s.up:
	case now-s.lastHeard > limit:
		s.why = "the replica has been silent"
		s.lose()
	case len(e.inflight) > 0 && now-max(e.inflight[0].captured, s.lastAck) > ackLimit:
		s.why = "the replica lives, but acknowledges nothing"
		s.lose()
	case now-s.lastSent >= heartbeat/2:
		s.lastSent = now
		s.end.send(beat{e.core.Term()})
	}
}

func (e *engine) endByPolicy() {
	s := e.stream
	if !e.logging || s == nil || !s.up || e.staying || e.over || s.fill != nil && s.fill.forget || len(e.inflight) >= inFlight {
		return
	}
	limit := maxEpoch
	if s.fill != nil {
		limit = heartbeat
	}
	if e.p.now()-e.lastEnd >= limit && e.p.machine.state != e.captured {
		e.endEpoch = true
		e.kick()
	}
}
