package lockstep

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/vmm"
)

// A page that the replica has, in whatever epoch, comes back from there.
func TestHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.m.guest(func() { b.m.writePage(20, 0x11) })
		b.until("nothing in flight", func() bool {
			s := b.status()
			dirty, _ := b.m.DirtyCount()
			return s.EpochAcked == s.EpochCaptured && dirty == 0
		})
		b.m.damage(b.e, 20)
		b.m.damage(b.e, 21)
		b.until("healed", func() bool { return b.status().Heals == 2 })
		b.same()
		if s := b.status(); s.Mode != "protected" || s.TimingsUs["heal"].Samples != 2 {
			t.Errorf("%+v", s)
		}
		b.close()
	})
}

// A page of an epoch that is on its way comes back too: the question travels behind the epoch.
func TestHealOfAPageInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.setKeep(true)
		b.m.guest(func() { b.m.writePage(20, 0x22) })
		b.m.send("someone waits")
		b.until("captured, and not acknowledged", func() bool { s := b.status(); return s.EpochCaptured > s.EpochAcked })
		b.m.damage(b.e, 20)
		b.until("healed", func() bool { return b.status().Heals == 1 })
		if got := b.m.left(); len(got) != 0 {
			t.Errorf("left without an acknowledgement: %q", got)
		}
		b.r.setKeep(false)
		b.until("released", func() bool { return len(b.m.left()) == 1 })
		b.same()
		if p := b.m.ram.Page(20); p[0] != 0x22 {
			t.Errorf("the page holds %#x", p[0])
		}
		b.close()
	})
}

// A page that was written since the last checkpoint is nowhere: the replica goes on.
func TestDirtyPageSurrenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.m.guest(func() { b.m.writePage(20, 0x33) })
		b.m.damage(b.e, 20)
		if o := <-b.h.ended; o != core.Lost {
			t.Errorf("ended: %v", o)
		}
		if a := b.h.now(); a.Primary != partyB {
			t.Errorf("%+v", a)
		}
		b.m.guest(func() {})
		if !b.m.gaveUp || len(b.r.wanted) != 0 {
			t.Errorf("gave up %t, asked for %v", b.m.gaveUp, b.r.wanted)
		}
		b.close()
	})
}

// While a page is on its way a checkpoint that can't be taken is not tried over and over.
func TestCaptureWaitsForAHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.r.slowCopy = make(chan struct{})
		b.m.lock.Lock()
		b.m.fail = vmm.ErrMemoryFault
		captures := b.m.captures
		b.m.lock.Unlock()
		b.m.damage(b.e, 30)
		b.m.send("someone waits")
		synctest.Wait()
		if n := b.m.captures; n != captures {
			t.Errorf("%d captures beside a damaged page", n-captures)
		}
		close(b.r.slowCopy)
		b.until("healed and released", func() bool { return slices.Equal(b.m.left(), []string{"someone waits"}) && b.status().Heals == 1 })
		b.same()
		b.close()
	})
}

// A page that the replica has lost comes whole with the next epoch, though nobody has written it, and though as
// many epochs are in flight as may be.
func TestPageIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.m.guest(func() { b.m.writePage(40, 0x44) })
		b.until("nothing in flight", func() bool {
			s := b.status()
			dirty, _ := b.m.DirtyCount()
			return s.EpochAcked == s.EpochCaptured && dirty == 0
		})
		b.r.setKeep(true)
		for i := range 3 { // as many as may be in flight
			b.m.guest(func() { b.m.writePage(1, byte(i)) })
			b.e.EndEpoch()
		}
		full := b.status().EpochCaptured
		b.r.mu.Lock()
		clear(b.r.ram.Page(40))
		w := b.r.w
		b.r.mu.Unlock()
		if err := w.Write(&checkpoint.PagesLost{Pages: []uint32{40}}); err != nil {
			t.Fatal(err)
		}
		b.until("sent again", func() bool { return b.status().EpochCaptured > full })
		synctest.Wait()
		b.r.setKeep(false)
		b.until("all acknowledged", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		if s := b.status(); s.Resent != 1 || s.Mode != "protected" {
			t.Errorf("%+v", s)
		}
		b.until("the same again", func() bool {
			b.r.mu.Lock()
			defer b.r.mu.Unlock()
			return b.r.ram.Page(40)[0] == 0x44
		})
		b.close()
	})
}
