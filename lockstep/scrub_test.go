package lockstep

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// The scrub goes through all of a memory that is being written, takes nothing for a difference that is none, and
// finds one that is.
func TestScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.e.cfg.ScrubPages = 128
		b.protect()
		for i := range 400 {
			b.m.guest(func() { b.m.writePage(i*7%testPages, byte(i)) })
			if i%3 == 0 {
				b.m.send("somebody waits")
			}
			time.Sleep(40 * time.Millisecond)
		}
		synctest.Wait()
		b.r.get(func() {
			if b.r.compared < 2*testPages || len(b.r.differed) > 0 {
				t.Errorf("%d pages compared in 16 s, different: %v", b.r.compared, b.r.differed)
			}
			b.r.ram.Page(500)[9] ^= 1
		})
		for i := 0; b.status().Diverged == 0; i++ {
			if i == 2000 {
				t.Fatal("never found")
			}
			b.m.guest(func() { b.m.writePage(3, byte(i)) })
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
		}
		b.until("nothing in flight", func() bool {
			s := b.status()
			dirty, _ := b.m.DirtyCount()
			return s.EpochAcked == s.EpochCaptured && dirty == 0
		})
		b.r.get(func() {
			if !slices.Equal(b.r.differed, []uint32{500}) {
				t.Errorf("different: %v", b.r.differed)
			}
			for i := range testPages {
				if !slices.Equal(b.m.ram.Page(i), b.r.ram.Page(i)) {
					t.Errorf("page %d still differs", i)
				}
			}
		})
		if s := b.status(); s.Mode != "protected" || s.Resent != 1 || s.Scrubbed == 0 {
			t.Errorf("%+v", s)
		}
		b.close()
	})
}
