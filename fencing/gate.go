package fencing

import (
	"context"
	"sync/atomic"
	"time"
)

// Gate is a way out that output can pass. It closes by itself when the process has not run for the
// detection time: somebody may have taken the guest over meanwhile. It notices that no matter which
// thread comes back first, because passing it is itself a look at the clock. It stays closed until a
// question that was asked after the gap has been answered.
//
// The primary's engine does the same under its own mutex, where it is one look together with what else a
// release depends on (lockstep/pulse.go); a process's other roles have the gate tell them of gaps.
type Gate struct {
	limit time.Duration
	clock Clock
	onGap func(gap time.Duration)

	alive  atomic.Int64  // when the process was last seen running
	gaps   atomic.Uint64 // how often it was not
	opened atomic.Uint64 // the gap up to which everything is settled
}

// NewGate makes an open gate. onGap is called for each gap, on the goroutine that noticed it, and must
// not block; it may be nil.
func NewGate(limit time.Duration, clock Clock, onGap func(gap time.Duration)) *Gate {
	g := &Gate{limit: limit, clock: clock, onGap: onGap}
	g.alive.Store(int64(clock()))
	return g
}

// Pass says whether output may leave. It is cheap and safe from any goroutine.
func (g *Gate) Pass() bool {
	g.Beat()
	return g.opened.Load() >= g.gaps.Load()
}

// Beat notes that the process runs, and notices where it did not.
func (g *Gate) Beat() {
	now := int64(g.clock())
	last := g.alive.Load()
	for now > last {
		// The one who moves the time on is the one who saw the gap. The gap is counted first, so that
		// nobody sees the new time with the gate still open.
		gap := time.Duration(now - last)
		if gap > g.limit {
			g.gaps.Add(1)
		}
		if g.alive.CompareAndSwap(last, now) {
			if gap > g.limit && g.onGap != nil {
				g.onGap(gap)
			}
			return
		}
		last = g.alive.Load()
	}
}

// Gaps is how many gaps there were. Ask it before asking Raft.
func (g *Gate) Gaps() uint64 { return g.gaps.Load() }

// Settle opens the gate again: a question that was asked when there had been so many gaps was answered
// in this process's favour. After a newer gap the gate stays closed.
func (g *Gate) Settle(gaps uint64) {
	for {
		old := g.opened.Load()
		if gaps <= old || g.opened.CompareAndSwap(old, gaps) {
			return
		}
	}
}

// Watch beats until ctx ends, so that gaps are noticed while nothing wants to leave.
func (g *Gate) Watch(ctx context.Context) {
	t := time.NewTicker(max(g.limit/8, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			g.Beat()
		}
	}
}
