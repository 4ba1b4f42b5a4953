package fencing

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestSilence(t *testing.T) {
	s := NewSilence()
	if s.Check(1000 * ms) {
		t.Error("fired without being armed")
	}
	s.Arm(1000*ms, 100*ms, 0)
	for now := 1000 * ms; now <= 1100*ms; now += 20 * ms {
		if s.Check(now) {
			t.Fatalf("fired after %v", now-1000*ms)
		}
	}
	s.Heard(1090 * ms)
	for now := 1110 * ms; now <= 1190*ms; now += 20 * ms {
		if s.Check(now) {
			t.Fatalf("fired %v after a sign of life", now-1090*ms)
		}
	}
	if !s.Check(1191 * ms) {
		t.Error("did not fire")
	}
	if s.Check(1192 * ms) {
		t.Error("fired twice")
	}
}

func TestSilenceGivesTimeForTheFirstContact(t *testing.T) {
	s := NewSilence()
	s.Arm(0, 100*ms, 400*ms)
	for now := 20 * ms; now <= 500*ms; now += 20 * ms {
		if s.Check(now) {
			t.Fatalf("fired after %v", now)
		}
	}
	if !s.Check(501 * ms) {
		t.Error("did not fire")
	}
	s.Arm(1000*ms, 100*ms, 400*ms)
	s.Heard(1010 * ms) // the grace is for the first contact only
	for now := 1020 * ms; now <= 1110*ms; now += 30 * ms {
		if s.Check(now) {
			t.Fatalf("fired after %v", now)
		}
	}
	if !s.Check(1111 * ms) {
		t.Error("did not fire after the first contact")
	}
}

// A process that stood still finds its peer's words unread: it must not take that for silence.
func TestSilenceAfterAnOwnGap(t *testing.T) {
	s := NewSilence()
	s.Arm(0, 100*ms, 0)
	s.Check(20 * ms)
	if s.Check(10_000 * ms) {
		t.Fatal("fired right after an own gap")
	}
	s.Check(10_050 * ms)
	if !s.Check(10_101 * ms) {
		t.Error("did not fire later")
	}
}

func TestGateClosesAfterAGap(t *testing.T) {
	var now atomic.Int64
	var told []time.Duration
	g := NewGate(100*ms, func() time.Duration { return time.Duration(now.Load()) }, func(d time.Duration) { told = append(told, d) })
	now.Add(int64(100 * ms))
	if !g.Pass() {
		t.Fatal("closed without a gap")
	}
	now.Add(int64(101 * ms))
	if g.Pass() {
		t.Fatal("open after a gap")
	}
	before := g.Gaps()
	now.Add(int64(time.Second))
	g.Beat()
	g.Settle(before)
	if g.Pass() {
		t.Fatal("opened by an answer to a question that is older than the newest gap")
	}
	g.Settle(g.Gaps())
	if !g.Pass() {
		t.Fatal("not opened")
	}
	if len(told) != 2 || told[0] != 101*ms || told[1] != time.Second {
		t.Errorf("told of %v", told)
	}
}

// Whoever comes back first after a gap, nobody passes.
func TestGateWithManyThreads(t *testing.T) {
	var now atomic.Int64
	g := NewGate(100*ms, func() time.Duration { return time.Duration(now.Load()) }, nil)
	for range 200 {
		now.Add(int64(time.Second))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if g.Pass() {
					t.Error("passed after a gap")
				}
			})
		}
		wg.Wait()
		g.Settle(g.Gaps())
	}
}

func TestBootGoesForward(t *testing.T) {
	if a, b := Boot(), Boot(); a <= 0 || b < a {
		t.Errorf("%v, then %v", a, b)
	}
}
