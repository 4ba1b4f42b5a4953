package virtio

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

const (
	noVector = 0xffff // VIRTIO_MSI_NO_VECTOR

	availNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
)

// queue is a split virtqueue (section 2.7).
type queue struct {
	ram *memory.RAM
	max uint16 // the size that the device offers

	// What the driver has set up.
	size              uint16
	enabled           bool
	vector            uint16
	desc, avail, used uint64 // guest addresses

	// Where the device is.
	next      uint16 // entry of the available ring to take next
	done      uint16 // the used index, including entries that are not published yet
	signalled uint16 // the used index at the last publish

	// Negotiated features.
	indirect, eventIdx bool
}

func (q *queue) reset() {
	*q = queue{ram: q.ram, max: q.max, size: q.max, vector: noVector}
}

// usable says whether the rings that the driver has set up lie in RAM, aligned as section 2.7 asks.
func (q *queue) usable() error {
	if q.size == 0 || q.size > q.max || q.size&(q.size-1) != 0 {
		return fmt.Errorf("%d entries: %w", q.size, errRing)
	}
	n := uint64(q.size)
	for _, part := range []struct {
		name             string
		at, align, bytes uint64
	}{
		{"descriptor table", q.desc, 16, descSize * n},
		{"available ring", q.avail, 2, 6 + 2*n},
		{"used ring", q.used, 4, 6 + 8*n},
	} {
		if part.at%part.align != 0 {
			return fmt.Errorf("%s at %#x is not aligned: %w", part.name, part.at, errRing)
		}
		if !q.ram.Contains(part.at, part.bytes) {
			return fmt.Errorf("%s: %w: %d bytes at %#x: %w", part.name, errRing, part.bytes, part.at, memory.ErrRange)
		}
	}
	return nil
}

// available says how many chains the driver has made available and the device has not taken.
func (q *queue) available() (uint16, error) {
	idx, err := load16(q.ram, q.avail+2)
	if err != nil {
		return 0, err
	}
	n := idx - q.next
	if n > q.size {
		return 0, fmt.Errorf("available index jumps from %d to %d in a queue of %d: %w", q.next, idx, q.size, errRing)
	}
	return n, nil
}

// pop takes the next chain, if there is one.
func (q *queue) pop(c *chain) (bool, error) {
	n, err := q.available()
	if n == 0 || err != nil {
		return false, err
	}
	head, err := load16(q.ram, q.avail+4+2*uint64(q.next%q.size))
	if err != nil {
		return false, err
	}
	if err := q.parse(c, head); err != nil {
		return false, err
	}
	q.next++
	return true, nil
}

// parse reads the chain that starts at head.
func (q *queue) parse(c *chain, head uint16) error {
	return c.parse(q.ram, q.desc, q.size, head, q.indirect)
}

// unpop gives the chain that was popped last back.
func (q *queue) unpop() { q.unpopLast(1) }

// unpopLast gives the n chains that were popped last back.
func (q *queue) unpopLast(n int) { q.next -= uint16(n) }

// arm asks the driver for a notification of the next chain and says whether one came in between.
func (q *queue) arm() (more bool, err error) { return q.armAfter(0) }

// armAfter asks for a notification of the chain after had, which are available and not enough, and
// says whether it came in between.
func (q *queue) armAfter(had uint16) (more bool, err error) {
	if q.eventIdx {
		if err := store16(q.ram, q.used+4+8*uint64(q.size), q.next+had); err != nil {
			return false, err
		}
	}
	n, err := q.available()
	return n > had, err
}

// push puts a chain, into which n bytes were written, into the used ring. The driver sees it after
// publish.
func (q *queue) push(head uint16, n uint32) error {
	var e [8]byte
	binary.LittleEndian.PutUint32(e[:], uint32(head))
	binary.LittleEndian.PutUint32(e[4:], n)
	if err := q.ram.Write(q.used+4+8*uint64(q.done%q.size), e[:]); err != nil {
		return err
	}
	q.done++
	return nil
}

// publish moves the used index and says whether the driver wants an interrupt for it (sections
// 2.7.7 and 2.7.10).
func (q *queue) publish() (interrupt bool, err error) {
	old := q.signalled
	if q.done == old {
		return false, nil
	}
	q.signalled = q.done
	if err := store32(q.ram, q.used, uint32(q.done)<<16); err != nil { // flags are 0
		return false, err
	}
	if !q.eventIdx {
		flags, err := load16(q.ram, q.avail)
		return flags&availNoInterrupt == 0, err
	}
	event, err := load16(q.ram, q.avail+4+2*uint64(q.size))
	return q.done-event-1 < q.done-old, err
}

func (q *queue) save(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, q.size)
	b = codec.AppendBool(b, q.enabled)
	b = le.AppendUint16(b, q.vector)
	b = le.AppendUint64(b, q.desc)
	b = le.AppendUint64(b, q.avail)
	b = le.AppendUint64(b, q.used)
	b = le.AppendUint16(b, q.next)
	b = le.AppendUint16(b, q.done)
	return le.AppendUint16(b, q.signalled)
}

// load reads what save wrote into q, whose ram and max are set.
func (q *queue) load(r *codec.Reader, vectors int) {
	q.size, q.enabled, q.vector = r.U16(), r.Bool(), r.U16()
	q.desc, q.avail, q.used = r.U64(), r.U64(), r.U64()
	q.next, q.done, q.signalled = r.U16(), r.U16(), r.U16()
	if q.vector != noVector && int(q.vector) >= vectors {
		r.Failf("vector %d of %d", q.vector, vectors)
	}
	if q.size > q.max || q.size&(q.size-1) != 0 {
		r.Failf("queue of %d entries", q.size)
	}
	if q.enabled {
		if err := q.usable(); err != nil {
			r.Failf("queue: %v", err)
		}
		if q.next-q.done > q.size || q.signalled != q.done {
			r.Failf("queue of %d entries at %d, used %d, signalled %d", q.size, q.next, q.done, q.signalled)
		}
	}
}
