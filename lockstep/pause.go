package lockstep

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/vmm"
)

// kick asks for a pause if something waits for one. e.mu is held.
func (e *Engine) kick() {
	if !e.asked && e.begun && e.pauseDue() {
		e.asked = true
		e.cfg.Machine.RequestPause()
	}
}

// pauseDue is the policy that ends epochs: demand, budgets, and what the core wants.
func (e *Engine) pauseDue() bool {
	if (e.stay || e.stalled) != e.staying {
		return true
	}
	s := e.stream
	if s == nil || !s.up || e.blocked {
		return false
	}
	if s.fill != nil && s.fill.forget {
		return true
	}
	switch {
	case e.over || e.stay:
		return false
	case e.full():
		return !e.stalled && e.overfull() // to stand still
	case e.finish, e.endEpoch, e.stalled:
		return true
	case e.run.writeBytes > e.cfg.WriteBytes:
		return true
	case s.fill != nil && s.fill.full():
		return true
	case e.out.waiting() && e.core.Gated():
		return len(e.inflight) < e.cfg.DemandInFlight
	}
	return false
}

// OnPause is the machine's callback: it runs on the thread of the vCPU that stopped last, with the
// device lock held.
func (e *Engine) OnPause(p *vmm.Pause) bool { return e.pause(p) }

func (e *Engine) pause(p Pause) (goOn bool) {
	start := time.Now()
	e.mu.Lock()
	e.asked = false
	defer func() {
		// Whatever came up meanwhile gets a pause of its own.
		e.kick()
		later := e.later
		e.later = nil
		e.mu.Unlock()
		for _, f := range later {
			f()
		}
	}()
	s := e.stream
	if s != nil && s.up && s.fill != nil && s.fill.forget {
		if err := p.Forget(); err != nil {
			e.log.Error("begin to record written pages", zap.Error(err))
			s.fail(err)
			return e.leave()
		}
		s.fill.begin()
		s.fill.askHints(p)
		return e.leave()
	}
	if s == nil || !s.up || e.over || e.stay || e.full() || !e.something(s) {
		full := s != nil && s.up && !e.over && e.full()
		e.stalled = full && e.overfull()
		return e.leave()
	}
	c := e.takeCapture()
	ep := &epoch{capture: c}
	if s.fill != nil {
		ep.Background, ep.slab = s.fill.take()
	}
	e.capturing, e.settled = true, make(chan struct{})
	e.mu.Unlock()
	before := time.Since(start)
	err := p.Capture(c)
	after := time.Now()
	e.mu.Lock()
	defer func() {
		e.capturing = false
		close(e.settled)
	}()
	if err != nil {
		e.free = append(e.free, c)
		if s.fill != nil {
			s.fill.untake(ep.Background, ep.slab)
		}
		e.captureFailed(err)
		return e.leave()
	}
	e.sealEpoch(ep, s)
	if s.fill != nil {
		s.fill.discardFree(p)
	}
	t := c.Timings
	e.stats.add(phaseResume, before+time.Since(after))
	e.stats.add(phasePause, t.Stop+t.Harvest+t.Copy+t.State+t.Clear+before+time.Since(after))
	return e.leave()
}

// overfull reports that the guest produces more than the replica takes, and has to wait for it. For a replica that is
// being filled it waits only so long: pages that it dirties meanwhile take no room, unlike what it writes to its disks.
func (e *Engine) overfull() bool {
	if e.run.writeBytes > 4*e.cfg.WriteBytes {
		return true
	}
	s := e.stream
	return e.pressed && (s == nil || s.fill == nil || e.unacknowledged(e.cfg.Now()) <= e.cfg.AckLimit/2)
}

// something reports that there is a reason to capture in a pause that was asked for.
func (e *Engine) something(s *stream) bool {
	return e.finish || e.endEpoch || e.stalled || e.run.writeBytes > 0 || s.fill != nil || e.out.waiting() || e.core.Gated()
}

// leave says whether the vCPUs go on after this pause.
func (e *Engine) leave() bool {
	e.staying = e.stay || e.stalled
	return !e.staying
}

// provide makes room for all epochs that can be in flight, outside of any pause: memory that has not
// been touched yet costs many times what copying into it does.
func (e *Engine) provide() {
	e.mu.Lock()
	missing := e.cfg.InFlight - len(e.inflight) - len(e.free)
	e.mu.Unlock()
	pages := min(e.cfg.DirtyBudget, e.cfg.Machine.RAM().Pages())
	for range missing {
		c := vmm.NewCapture(pages)
		e.mu.Lock()
		e.free = append(e.free, c)
		e.mu.Unlock()
	}
}

func (e *Engine) takeCapture() *vmm.Capture {
	if n := len(e.free); n > 0 {
		c := e.free[n-1]
		e.free = e.free[:n-1]
		return c
	}
	return vmm.NewCapture(1)
}

func (e *Engine) captureFailed(err error) {
	if errors.Is(err, vmm.ErrMemoryFault) {
		// The machine has reported the page; whoever hears of it heals it or calls Fault. The next
		// capture has everything that this one should have had.
		e.blocked = true
		e.log.Warn("no checkpoint: a page of guest memory can't be read", zap.Error(err))
		return
	}
	e.log.Error("no checkpoint", zap.Error(err))
	e.step(core.Faulty{Why: "the guest can't be captured: " + err.Error()})
}

// sealEpoch makes the running epoch a captured one. Still in the pause; e.mu is held.
func (e *Engine) sealEpoch(ep *epoch, s *stream) {
	number := e.core.Captured() + 1
	complete := true
	if s.fill != nil {
		complete = s.fill.sealed(ep.capture.Pages, ep.capture.Zero)
	}
	final := e.finish
	ep.Epoch = checkpoint.Epoch{
		Number: number, Term: e.core.Term(), Background: ep.Background,
		Pages: ep.capture.Pages, Data: ep.capture.Data, Zero: ep.capture.Zero, State: ep.capture.State,
		Writes: e.run.writes, Frames: e.out.seal(number),
	}
	ep.sums = e.takeSums(s, ep)
	if !complete {
		ep.Flags |= checkpoint.FlagSyncing
	}
	if final && e.switchover {
		ep.Flags |= checkpoint.FlagFinal
	}
	ep.bytes = e.run.writeBytes
	ep.captured = e.cfg.Now()
	e.run.writes, e.run.writeBytes = nil, 0
	e.inflight = append(e.inflight, ep)
	if final {
		e.keepFinal(ep)
	}
	close(e.sealed)
	e.sealed = make(chan struct{})
	e.endEpoch, e.stalled, e.pressed, e.extra = false, false, false, 0
	e.lastEnd = ep.captured
	if complete && s.fill != nil {
		e.image = image{party: s.party, whole: number}
		s.fill = nil
	}
	e.step(core.Captured{Epoch: number, Complete: complete, Final: final})
	s.poke()

	t := ep.capture.Timings
	e.stats.epochs++
	e.stats.dirtyPages += uint64(len(ep.Pages) + len(ep.Zero))
	e.stats.add(phaseStop, t.Stop)
	e.stats.add(phaseHarvest, t.Harvest)
	e.stats.add(phaseCopy, t.Copy)
	e.stats.add(phaseState, t.State)
	e.stats.add(phaseClear, t.Clear)
}
