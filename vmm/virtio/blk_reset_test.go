package virtio

import (
	"testing"

	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// A guest that fills its disk's queue and resets the disk, over and over, while the file stands still must not
// fill the host's memory with what it has abandoned.
func TestBlkResetsGiveMemoryBack(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, 0)
	begun := r.file.hold()
	data, status := d.Put(make([]byte, 1<<20)), d.Alloc(1)
	header := d.header(blkOut, 0).Addr
	for round := range 4 {
		for i := range 40 {
			d.queue().SetDesc(uint16(4*i), virtiotest.Desc{Addr: header, Len: 16, Flags: virtiotest.Next, Next: uint16(4*i + 1)})
			d.queue().SetDesc(uint16(4*i+1), virtiotest.Desc{Addr: data, Len: 1 << 20, Flags: virtiotest.Next, Next: uint16(4*i + 2)})
			d.queue().SetDesc(uint16(4*i+2), virtiotest.Desc{Addr: status, Len: 1, Flags: writable})
			d.queue().Offer(uint16(4 * i))
		}
		d.queue().Kick()
		if round == 0 {
			<-begun
		}
		r.Wait(t, "all that may wait", func() bool { return r.blk.full })
		d.Start(t, 0)
	}
	bytes := 0
	w := &r.blk.workers
	w.mu.Lock()
	for _, q := range w.waiting {
		bytes += q.weight()
	}
	w.mu.Unlock()
	if bytes > blkWaitingMax {
		t.Errorf("%d bytes of abandoned requests wait", bytes)
	}
	r.file.release()
	rd := d.read(0, sectorSize)
	d.queue().Kick()
	d.queue().Wait(t, 1)
	if d.statusOf(rd) != blkOK {
		t.Error("the disk does not go on")
	}
}
