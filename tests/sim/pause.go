package sim

import (
	primary "github.com/pollux-ha/pollux/lockstep/core"
)

// kick asks for a pause if something waits for one.
func (e *engine) kick() {
	if e.asked || !e.begun || !e.pauseDue() {
		return
	}
	e.asked = true
	e.p.after(e.w.small()/2, func() {
		if e.p.machine.running && !e.p.machine.stopped {
			e.pause()
		}
	})
}

func (e *engine) pauseDue() bool {
	if e.stay != e.staying {
		return true
	}
	s := e.stream
	switch {
	case s == nil || !s.up:
		return false
	case s.fill != nil && s.fill.forget:
		return true
	case e.over || e.stay || len(e.inflight) >= inFlight:
		return false
	case e.finish, e.endEpoch, s.fill != nil && s.fill.left == 0:
		return true
	case len(e.out.current) > 0 && e.core.Gated():
		return len(e.inflight) < demandInFlight
	}
	return false
}

func (e *engine) pause() {
	e.asked = false
	defer e.kick()
	s := e.stream
	if s != nil && s.up && s.fill != nil && s.fill.forget {
		s.fill.forget = false
		e.staying = e.stay
		return
	}
	if s == nil || !s.up || e.over || e.stay || len(e.inflight) >= inFlight || !e.something(s) {
		e.staying = e.stay
		return
	}
	e.seal(s)
	e.staying = e.stay
}

func (e *engine) something(s *stream) bool {
	return e.finish || e.endEpoch || s.fill != nil || len(e.out.current) > 0 || e.core.Gated()
}

// seal makes the running epoch a captured one.
func (e *engine) seal(s *stream) {
	n := e.core.Captured() + 1
	complete, whole := true, s.fill != nil
	if s.fill != nil {
		s.fill.left = max(0, s.fill.left-1)
		complete = s.fill.left == 0
	}
	isFinal := e.finish
	ep := &epoch{
		number: n, term: e.core.Term(), syncing: !complete, final: isFinal && e.switchover,
		whole: whole && complete, base: e.captured, state: e.p.machine.state, frames: e.out.seal(n), captured: e.p.now(),
	}
	e.captured = ep.state
	e.inflight = append(e.inflight, ep)
	if isFinal {
		e.final = final{epoch: n, state: ep.state}
	}
	e.endEpoch = false
	e.lastEnd = e.p.now()
	if complete && s.fill != nil {
		e.image = held{party: s.party, whole: n}
		s.fill = nil
	}
	e.step(primary.Captured{Epoch: n, Complete: complete, Final: isFinal})
	s.poke()
}
