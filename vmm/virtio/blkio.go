package virtio

import (
	"errors"
	"fmt"
	"io"

	"github.com/pollux-ha/pollux/vmm/blockfile"
)

type blkOp uint8

const (
	opNone blkOp = iota // nothing to do in the file
	opRead
	opWrite
	opZero
	opDiscard
	opFlush
)

func (op blkOp) changes() bool { return op == opWrite || op == opZero || op == opDiscard }

func (op blkOp) String() string {
	switch op {
	case opRead:
		return "read"
	case opWrite:
		return "write"
	case opZero, opDiscard:
		return "zero"
	case opFlush:
		return "flush"
	}
	return "nothing"
}

const (
	copyBytes    = 256 << 10 // of data, between two of the guest's batches
	copyRange    = 4 << 20   // bytes of a hole
	keepBuffer   = 256 << 10 // bytes; longer read buffers are not kept
	keepRequests = 64
)

// zone is a range of the file, in bytes.
type zone struct {
	offset, n int64
	unmap     bool
}

func (z *zone) overlaps(o *zone) bool { return z.offset < o.offset+o.n && o.offset < z.offset+z.n }

// request is one of the guest's, from submission to completion.
type request struct {
	flight
	op         blkOp
	status     uint8
	held       bool // failed, and the guest is not to hear of it
	generation uint64
	ranges     []zone
	zeroed     []zone    // what has become zero
	data       []byte    // what is written, or where a read goes
	moved      int       // bytes of data that were written or read
	in         []segment // where the answer goes
	room       uint64    // writable bytes before the status byte
	scratch    []byte    // a read's buffer, used again
}

// weight is what a request counts in Blk.waiting.
func (r *request) weight() int { return len(r.data) + blkRangeSize*len(r.ranges) }

// slow says that what was executed before the request should not wait for those after it.
func (r *request) slow() bool { return r.op == opZero || r.op == opDiscard }

func (r *request) buffer(n int) []byte {
	if cap(r.scratch) < n {
		r.scratch = make([]byte, n)
	}
	return r.scratch[:n]
}

// request returns a fresh request. The device lock is held.
func (b *Blk) request() *request {
	r := &request{}
	if n := len(b.free); n > 0 {
		r = b.free[n-1]
		b.free = b.free[:n-1]
	}
	*r = request{generation: b.generation.Load(), ranges: r.ranges[:0], zeroed: r.zeroed[:0], in: r.in[:0], scratch: r.scratch}
	return r
}

func (b *Blk) recycle(r *request) {
	r.data = nil
	if cap(r.scratch) > keepBuffer {
		r.scratch = nil
	}
	if len(b.free) < keepRequests {
		b.free = append(b.free, r)
	}
}

// execute does a request's file I/O.
func (b *Blk) execute(r *request) {
	if r.generation != b.generation.Load() {
		return // abandoned
	}
	var err error
	switch r.op {
	case opRead:
		if r.moved, err = b.file.ReadAt(r.data, r.ranges[0].offset); r.moved == len(r.data) {
			err = nil // ReadAt may add io.EOF to the last bytes
		} else if err == nil {
			err = io.ErrUnexpectedEOF
		}
	case opWrite:
		r.moved, err = b.file.WriteAt(r.data, r.ranges[0].offset)
	case opZero, opDiscard:
		for i := range r.ranges {
			if err = b.zero(r, r.ranges[i]); err != nil {
				break
			}
		}
	default:
		return
	}
	if r.op.changes() {
		// Not before the change has landed: a sync that is under way may have missed it.
		b.unsynced.Store(true)
	}
	b.failedWith(r, err)
}

// failedWith makes err, where it is one, the request's.
func (b *Blk) failedWith(r *request, err error) {
	if err == nil {
		return
	}
	r.status = blkIOErr
	if b.failed == nil {
		return
	}
	e := BlkError{Disk: b.index, Op: r.op.String(), Err: err}
	for i, z := range r.ranges {
		if i == 0 {
			e.Offset = z.offset
		}
		e.Bytes += z.n
	}
	r.held = b.failed(e)
}

// zero makes a range zero in the quickest way that the file has. A discard does without it where there is
// none: zeros that are written take space instead of giving it back.
func (b *Blk) zero(r *request, z zone) error {
	err := errors.ErrUnsupported
	if b.zeroer != nil {
		err = b.zeroer.Zero(z.offset, z.n, z.unmap)
		if z.unmap && r.op == opZero && errors.Is(err, errors.ErrUnsupported) {
			z.unmap = false // the flag allows it, no more
			err = b.zeroer.Zero(z.offset, z.n, false)
		}
	}
	if err == nil {
		r.zeroed = append(r.zeroed, z)
		return nil
	}
	if r.op == opDiscard && errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	// After a failure the range holds zeros here and old content there. Writing either heals it or says
	// how far it got; of the rest, what is there now is reported.
	n, err := blockfile.WriteZeros(b.file, z.offset, z.n)
	if n > 0 {
		r.zeroed = append(r.zeroed, zone{offset: z.offset, n: n})
	}
	for at := z.offset + n; err != nil && at < z.offset+z.n; {
		data := make([]byte, min(z.offset+z.n-at, copyBytes))
		k, readErr := b.file.ReadAt(data, at)
		if k < len(data) {
			return errors.Join(err, readErr) // nobody can tell
		}
		b.report(at, data)
		at += int64(k)
	}
	return err
}

// report reports content of a range that is taken.
func (b *Blk) report(offset int64, data []byte) {
	b.p.Lock()
	defer b.p.Unlock()
	b.p.Output().DiskWritten(b.index, offset, data)
}

// sync makes the file durable for a batch of flushes, where it may have changed since it was. After a sync
// that failed all others fail too: the kernel tells of lost writes once, and forgets them.
func (b *Blk) sync(batch []*request) {
	current, wanted := b.generation.Load(), false
	for _, r := range batch {
		wanted = wanted || r.generation == current
	}
	if !wanted {
		return
	}
	if b.lost == nil && b.unsynced.Swap(false) {
		b.lost = b.file.Sync()
	}
	for _, r := range batch {
		b.failedWith(r, b.lost)
	}
}

// copyJob is what is left of a CopyRange.
type copyJob struct {
	offset, left int64
	err          error
	done         func(error)
	piece        request // takes the range of the piece under way
}

// take names the range of the next piece, which is not longer than a hole's.
func (c *copyJob) take() *request {
	c.piece.op = opRead
	c.piece.ranges = append(c.piece.ranges[:0], zone{offset: c.offset, n: min(c.left, copyRange)})
	return &c.piece
}

// copyPiece does the next part of a copy: a hole, or some data.
func (b *Blk) copyPiece(c *copyJob) {
	z := c.piece.ranges[0]
	var data []byte
	n, hole := int64(0), false
	if c.err == nil && z.n > 0 {
		if b.sparse != nil {
			n = min(b.sparse.NextData(z.offset)-z.offset, z.n)
		}
		if hole = n > 0; !hole {
			data, c.err = b.content(z.offset, min(z.n, copyBytes))
			n = int64(len(data))
			hole = blockfile.IsZero(data)
		}
	}
	b.p.Lock()
	defer b.p.Unlock()
	switch {
	case n == 0:
	case hole:
		b.p.Output().DiskZeroed(b.index, c.offset, n, true)
	default:
		b.p.Output().DiskWritten(b.index, c.offset, data)
	}
	c.offset += n
	c.left -= n
	b.workers.copied(c)
	if c.err != nil || c.left == 0 {
		c.done(c.err)
	}
}

// content reads what Output.DiskWritten may keep.
func (b *Blk) content(offset, n int64) ([]byte, error) {
	data := make([]byte, n)
	k, err := b.file.ReadAt(data, offset)
	if int64(k) == n {
		return data, nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return nil, fmt.Errorf("copy %d bytes at %d of disk %d: %w", n, offset, b.index, err)
}

// copied gives a piece's range back, and takes a copy that is over off the list.
func (w *workers) copied(c *copyJob) {
	w.release([]*request{&c.piece})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.copying = false
	if c.err != nil || c.left == 0 {
		w.copies = append([]*copyJob(nil), w.copies[1:]...)
	}
}
