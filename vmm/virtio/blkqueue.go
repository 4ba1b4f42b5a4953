package virtio

import (
	"encoding/binary"
	"fmt"
)

func (b *Blk) kick(i int) {
	b.take(i)
	b.workers.wake()
}

// take moves requests from a ring to the workers.
func (b *Blk) take(i int) {
	q := &b.queues[i]
	before := b.waiting
	for n := 0; ; n++ {
		if b.waiting >= blkWaitingMax {
			b.full = true // completions go on from here
			return
		}
		if n == int(q.size) || b.waiting-before >= blkTakeMax {
			b.later(i)
			return
		}
		ok, err := q.pop(&b.chain)
		if err == nil && !ok {
			if ok, err = q.arm(); ok {
				continue
			}
		}
		if err == nil && ok {
			if err = b.submit(i); err != nil {
				q.unpop()
			}
		}
		if err != nil {
			b.needsReset()
			return
		}
		if !ok {
			return
		}
	}
}

// submit hands the request in b.chain, of queue i, to the workers. Requests that are wrong in themselves
// go the same way.
func (b *Blk) submit(i int) error {
	c := &b.chain
	if b.taken[i][c.head] {
		return fmt.Errorf("descriptor %d is in flight already: %w", c.head, errRing)
	}
	var header [blkHeaderSize]byte
	if c.read(b.p.RAM(), 0, header[:]) < blkHeaderSize || c.writable == 0 {
		return fmt.Errorf("request without header or status: %w", errRing)
	}
	r := b.request()
	r.flight = flight{uint8(i), c.head}
	r.in, r.room = append(r.in[:0], c.in...), c.writable-1
	sector := binary.LittleEndian.Uint64(header[8:])
	switch op := binary.LittleEndian.Uint32(header[:]); op {
	case blkIn:
		if r.status = b.check(sector, r.room); r.status == blkOK {
			r.op = opRead
			r.data = r.buffer(int(r.room))
			r.ranges = append(r.ranges, zone{offset: int64(sector * sectorSize), n: int64(r.room)})
		}
	case blkOut:
		n := c.readable - blkHeaderSize
		if r.status = b.check(sector, n); b.readOnly {
			r.status = blkIOErr // section 5.2.6.2
		}
		if r.status == blkOK {
			r.op = opWrite
			r.data = make([]byte, n) // Output.DiskWritten keeps it
			c.read(b.p.RAM(), blkHeaderSize, r.data)
			r.ranges = append(r.ranges, zone{offset: int64(sector * sectorSize), n: int64(n)})
		}
	case blkFlush:
		r.op = opFlush
	case blkGetID:
		r.data = b.serial[:min(r.room, blkIDSize)]
		r.moved = len(r.data)
	case blkDiscard, blkWriteZeroes:
		if r.status = b.zones(r, op); r.status == blkOK {
			r.op = opZero
			if op == blkDiscard {
				r.op = opDiscard
			}
		}
	default:
		r.status = blkUnsupported
	}
	b.taken[i][c.head] = true
	b.inflight = append(b.inflight, r.flight)
	b.waiting += r.weight()
	b.workers.submit(r)
	return nil
}

// check says what comes of a transfer of n bytes at a sector.
func (b *Blk) check(sector, n uint64) uint8 {
	if n%sectorSize != 0 || n > blkRequestMax || sector > b.sectors || n/sectorSize > b.sectors-sector {
		return blkIOErr
	}
	return blkOK
}

// zones reads the ranges of a discard or a write-zeroes request (sections 5.2.6 and 5.2.6.2).
func (b *Blk) zones(r *request, op uint32) uint8 {
	c := &b.chain
	feature, segs, most, flags := uint64(blkFeatureWriteZeroes), blkZeroSegs, uint32(blkZeroSectors), uint32(blkUnmap)
	if op == blkDiscard {
		feature, segs, most, flags = blkFeatureDiscard, blkDiscardSegs, blkDiscardSectors, 0
	}
	n := c.readable - blkHeaderSize
	switch {
	case b.readOnly:
		return blkIOErr
	case !b.negotiated(feature):
		return blkUnsupported
	case n == 0 || n%blkRangeSize != 0 || n/blkRangeSize > uint64(segs):
		return blkIOErr
	}
	var p [blkDiscardSegs * blkRangeSize]byte
	c.read(b.p.RAM(), blkHeaderSize, p[:n])
	le := binary.LittleEndian
	for e := p[:n]; len(e) > 0; e = e[blkRangeSize:] {
		sector, count, f := le.Uint64(e), le.Uint32(e[8:]), le.Uint32(e[12:])
		if f&^flags != 0 {
			return blkUnsupported
		}
		if count > most || sector > b.sectors || uint64(count) > b.sectors-sector {
			return blkIOErr
		}
		if count > 0 {
			r.ranges = append(r.ranges, zone{offset: int64(sector * sectorSize), n: int64(count) * sectorSize, unmap: op == blkDiscard || f&blkUnmap != 0})
		}
	}
	return blkOK
}

// complete takes requests that have been executed: it reports what they changed, gives their ranges
// free and lets the guest see them. The device lock is not held.
func (b *Blk) complete(done []*request) {
	b.p.Lock()
	defer b.p.Unlock()
	for _, r := range done {
		// Whatever became of the request, the file has changed.
		if r.op == opWrite && r.moved > 0 {
			b.p.Output().DiskWritten(b.index, r.ranges[0].offset, r.data[:r.moved])
		}
		for _, z := range r.zeroed {
			b.p.Output().DiskZeroed(b.index, z.offset, z.n, z.unmap)
		}
	}
	b.workers.release(done)
	current := b.generation.Load()
	var err error
	var finished [MaxBlkQueues]bool
	for _, r := range done {
		if r.generation == current && b.running() && err == nil && !r.held {
			err = b.finish(r)
			finished[r.queue] = true
		}
		b.recycle(r)
	}
	for i, f := range finished {
		if f {
			b.publish(i)
		}
	}
	if err != nil {
		b.needsReset()
		return
	}
	if b.full && b.waiting < blkWaitingMax {
		b.full = false
		for i := range b.queues {
			b.device.kick(i)
		}
	}
}

// finish puts a request's results where the guest finds them.
func (b *Blk) finish(r *request) error {
	n := 0
	if r.op != opWrite && r.status == blkOK {
		n = scatter(b.p.RAM(), r.in, 0, r.data[:r.moved])
	}
	scatter(b.p.RAM(), r.in, r.room, []byte{r.status})
	// The length may count only bytes that were written from the beginning on (section 2.7.8.2), so
	// it includes the status byte only where there is no gap before it.
	written := uint32(n)
	if uint64(n) == r.room {
		written++
	}
	b.taken[r.queue][r.head] = false
	for i, f := range b.inflight { // it is among the first
		if f == r.flight {
			b.inflight = append(b.inflight[:i], b.inflight[i+1:]...)
			break
		}
	}
	b.waiting -= r.weight()
	return b.queues[r.queue].push(r.head, written)
}
