package virtio

import (
	"bytes"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// resettable is what a reset needs of a device.
type resettable interface {
	platform.Stateful
	platform.Resetter
	platform.Suspender
}

func (r *rig) resettable() []resettable { return []resettable{r.net, r.blk, r.console, r.rng} }

// A reset device has the state of one that was just made, whatever its driver did before, and serves a new driver.
func TestResetIsPowerOn(t *testing.T) {
	r := newRig(t)
	var fresh [][]byte
	for _, d := range r.resettable() {
		fresh = append(fresh, r.Save(d))
	}
	hostFresh := r.Save(r.host)
	for range 2 {
		r.activate(t)
		d := newDisk(t, r, virtiotest.EventIdx|virtiotest.Indirect)
		w := d.write(1, sectors('a', 1))
		d.queue().Kick()
		d.queue().Wait(t, 1)
		if got := d.statusOf(w); got != blkOK {
			t.Fatalf("a write before the reset: status %d", got)
		}
		for _, slot := range []int{r.net.Slot(), r.console.Slot(), r.rng.Slot()} {
			v := virtiotest.Find(t, r.Machine, slot, freeRAM+0x200000)
			v.EnableMSIX()
			v.Start(t, 0)
		}
		r.Do(func() {
			r.console.Input([]byte("typed for the old guest"))
			r.Ports().Write(0xcf8, []byte{0, 0x10, 0, 0x80})
		})
		// One request stays in the worker's hands.
		begun := r.file.hold()
		d.write(2, sectors('b', 1))
		d.queue().Kick()
		<-begun
		r.Do(func() {
			for _, d := range r.resettable() {
				d.Suspend()
			}
		})
		r.file.release()
		r.blk.Drain()
		r.Do(func() {
			r.host.Reset()
			for _, d := range r.resettable() {
				d.Reset()
			}
		})
		for i, d := range r.resettable() {
			if got := r.Save(d); !bytes.Equal(got, fresh[i]) {
				t.Errorf("%s after a reset:\n%x\nwhen it was made:\n%x", d.StateID(), got, fresh[i])
			}
		}
		if got := r.Save(r.host); !bytes.Equal(got, hostFresh) {
			t.Errorf("the PCI host after a reset: %x, when it was made: %x", got, hostFresh)
		}
		r.Do(func() {
			for line, high := range r.Lines {
				if high {
					t.Errorf("interrupt line %d is high after a reset", line)
				}
			}
		})
	}
}
