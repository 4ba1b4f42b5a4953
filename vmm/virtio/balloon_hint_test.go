package virtio

import (
	"encoding/binary"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// A guest is taken over in the middle of its hints: whoever wanted them was on the other host.
func TestBalloonHintsEndWithATakeover(t *testing.T) {
	r := startBalloon(t)
	q := r.d.Queues[balloonHint]
	free := func() {
		q.Add(virtiotest.Desc{Addr: 0x300 * memory.PageSize, Len: memory.PageSize, Flags: writable})
		q.Kick()
	}
	heard := 0
	r.Do(func() { r.b.Hints(func(int, int) { heard++ }) })
	id := uint32(r.Load(r.d.Device+balloonHintID, 4))
	q.Add(virtiotest.Desc{Addr: r.d.Put(binary.LittleEndian.AppendUint32(nil, id)), Len: 4})
	q.Kick()
	free()
	if heard != 1 {
		t.Fatalf("%d hints were heard", heard)
	}
	r = r.move(t)
	q = r.d.Queues[balloonHint]
	free()
	if used := q.Take(); len(used) == 0 {
		t.Error("the guest's free pages are kept")
	}
	if heard != 1 {
		t.Errorf("%d hints were heard", heard)
	}
	// What the driver still says under the old number must not pass for an answer to the next question.
	r.Do(func() { r.b.Hints(func(int, int) { heard++ }) })
	if next := uint32(r.Load(r.d.Device+balloonHintID, 4)); next == id {
		t.Errorf("the number %d is used again", next)
	}
}
