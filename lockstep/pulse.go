package lockstep

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/lockstep/core"
)

// fewPages is what a guest dirties that does next to nothing.
const fewPages = 64

// contactSilences is how many times the silence limit the twin of a switchover may take to answer its
// new primary's first call.
const contactSilences = 3

// pulse is the Engine's clock.
func (e *Engine) pulse() {
	t := time.NewTicker(e.cfg.Heartbeat)
	defer t.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-t.C:
		}
		e.tick()
		e.announce()
		e.endByPolicy()
	}
}

// gap reports to the core that this process has not run for the detection time. Everything that lets
// output go looks here first: whoever wakes first after a standstill finds it. e.mu is held.
func (e *Engine) gap() bool { return e.gapAt(e.cfg.Now()) }

func (e *Engine) gapAt(now time.Duration) bool {
	if !e.begun || e.over || now-e.lastPulse <= e.cfg.Silence {
		return false
	}
	e.log.Warn("this process stood still", zap.Duration("for", now-e.lastPulse))
	e.lastPulse = now
	if e.stream != nil {
		// What the replica said meanwhile has not been read yet: it was not the replica that was silent.
		e.stream.lastHeard, e.stream.lastAck = now, now
	}
	e.step(core.OwnGap{})
	return true
}

// tick looks at everything that depends on time.
func (e *Engine) tick() {
	e.mu.Lock()
	defer e.unlock()
	// One look at the clock for all: a standstill between two of them would pass for the replica's silence.
	now := e.cfg.Now()
	e.gapAt(now)
	e.lastPulse = now
	if e.blocked {
		e.blocked = false
		e.kick()
	}
	if e.core.Asking() && now-e.lastAsked >= e.cfg.AskAgain {
		e.lastAsked = now
		e.step(core.Retry{})
	}
	if e.switchedAt != 0 {
		switch {
		case e.core.Mode() != "switching":
			e.switchedAt = 0
		case now-e.switchedAt > e.cfg.SwitchoverLimit:
			e.switchedAt = 0
			e.step(core.SwitchoverExpired{})
		}
	}
	if e.contact != 0 && now-e.contact > contactSilences*e.cfg.Silence {
		e.contact = 0
		e.step(core.StreamDown{Why: "the twin could not be reached"})
	}
	s := e.stream
	if s == nil || !s.up {
		return
	}
	limit, ackLimit := e.cfg.Silence, e.cfg.AckLimit
	if s.fill != nil {
		limit *= link.SyncSilences // no output waits for it
		if e.stalled && !e.overfull() {
			e.stalled = false
			e.kick()
		}
		if !e.stalled {
			// Epochs are large, nobody waits, and a synchronization that begins anew is the slower one.
			ackLimit *= link.SyncSilences
		}
	}
	if now-s.lastHeard > limit {
		s.fail(fmt.Errorf("the replica has been silent for %v", now-s.lastHeard))
		e.lose(s)
		return
	}
	if e.unacknowledged(now) > ackLimit {
		s.fail(errors.New("the replica lives, but acknowledges nothing"))
		e.lose(s)
		return
	}
	if s.fill != nil {
		s.fill.poke()
	}
	if now-s.lastSent >= e.cfg.Heartbeat/2 {
		s.beat = true
		s.poke()
	}
}

// unacknowledged is how long the replica has owed an acknowledgement without giving any.
func (e *Engine) unacknowledged(now time.Duration) time.Duration {
	if len(e.inflight) == 0 || e.stream == nil {
		return 0
	}
	return now - max(e.inflight[0].captured, e.stream.lastAck)
}

// lose tells the core of a stream that has failed, at once: the goroutine that reads from it follows.
func (e *Engine) lose(s *stream) {
	s.up = false
	e.stalled = false
	e.step(core.StreamDown{Stream: s.id, Why: s.why})
}

// endByPolicy ends the running epoch where nobody waits for it: by its age or by what it has dirtied.
// A guest that dirties next to nothing is left alone for longer, one that dirties nothing for ever.
func (e *Engine) endByPolicy() {
	e.mu.Lock()
	s := e.stream
	look := e.logging && s != nil && s.up && !e.staying && !e.over && (s.fill == nil || !s.fill.forget)
	e.mu.Unlock()
	if !look {
		return
	}
	dirty, err := e.cfg.Machine.DirtyCount()
	if err != nil {
		e.log.Debug("count dirty pages", zap.Error(err))
		return
	}
	e.mu.Lock()
	defer e.unlock()
	if len(e.inflight) >= e.cfg.InFlight {
		e.pressed = dirty > 4*e.cfg.DirtyBudget
		e.kick()
		return
	}
	age := e.cfg.Now() - e.lastEnd
	limit := e.cfg.MaxEpoch
	switch {
	case s.fill != nil:
		limit = e.cfg.Heartbeat
	case dirty <= fewPages && e.run.writeBytes == 0:
		limit *= 10
	}
	if dirty >= e.cfg.DirtyBudget || age >= limit && (dirty > 0 || e.run.writeBytes > 0) {
		e.endEpoch = true
		e.kick()
	}
}
