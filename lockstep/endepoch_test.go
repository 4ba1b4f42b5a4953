package lockstep

import (
	"testing"
	"testing/synctest"
)

// Whoever ends the running epoch finds it captured; without a replica that follows there is nothing to wait for.
func TestEndEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.e.EndEpoch() // nobody is there
		b.protect()
		b.r.setKeep(true) // acknowledges nothing: only so many epochs can be under way
		for range b.e.cfg.InFlight {
			before := b.captured()
			b.e.EndEpoch()
			if after := b.captured(); after <= before {
				t.Fatalf("epoch %d was captured, now %d", before, after)
			}
		}
		full := b.captured()
		done := make(chan struct{})
		go func() { b.e.EndEpoch(); close(done) }()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("an epoch too many")
		default:
		}
		b.r.setKeep(false)
		<-done
		if b.captured() <= full {
			t.Errorf("still %d epochs", full)
		}
		b.close()
	})
}

func (b *bench) captured() int {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	return int(b.e.core.Captured())
}
