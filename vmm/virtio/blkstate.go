package virtio

import (
	"encoding/binary"

	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// blkStateVersion 2 knows several queues. Version 1 had one, and held no queue numbers.
const blkStateVersion = 2

// StateVersion implements platform.Stateful.
func (b *Blk) StateVersion() uint16 { return blkStateVersion }

// RestoreState implements platform.Stateful.
func (b *Blk) RestoreState(version uint16, state []byte) error {
	b.loading = version
	return b.device.RestoreState(version, state)
}

func (b *Blk) save(p []byte) []byte {
	p = binary.LittleEndian.AppendUint64(p, b.sectors)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(b.inflight)))
	for _, f := range b.inflight {
		p = append(p, f.queue)
		p = binary.LittleEndian.AppendUint16(p, f.head)
	}
	return p
}

func (b *Blk) load(r *codec.Reader, queues []queue) (apply func()) {
	if n := r.U64(); n != b.sectors && r.Err() == nil {
		r.Failf("disk of %d sectors, this one has %d", n, b.sectors)
	}
	n := int(r.U16())
	if n > len(queues)*blkQueueSize {
		r.Failf("%d requests in flight in %d queues", n, len(queues))
		n = 0
	}
	taken := make([][blkQueueSize]bool, len(queues))
	flights := make([]flight, n)
	for i := range flights {
		f := &flights[i]
		if b.loading >= 2 {
			f.queue = r.U8()
		}
		f.head = r.U16()
		if int(f.queue) >= len(queues) || !queues[f.queue].enabled || f.head >= queues[f.queue].size || taken[f.queue][f.head] {
			r.Failf("request %d of queue %d in flight", f.head, f.queue)
			break
		}
		taken[f.queue][f.head] = true
	}
	return func() {
		b.abandon()
		b.inflight = append(b.inflight[:0], flights...)
		copy(b.taken, taken)
	}
}
