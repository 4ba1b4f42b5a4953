package virtio

import (
	"fmt"
	"io"
	"sync"
)

type blkOp uint8

const (
	opNone blkOp = iota // nothing to do in the file
	opRead
	opWrite
	opFlush
)

const (
	// Results are handed over in batches, so that the device lock, the used index and the interrupt
	// cost less: so many requests or bytes, or whatever there is when nothing is left to do.
	batchRequests = 16
	batchBytes    = 256 << 10

	copyPiece    = 256 << 10 // bytes of a copy between two of the guest's batches
	keepBuffer   = 256 << 10 // bytes; longer read buffers are not kept
	keepRequests = 64
)

// request is one of the guest's, from submission to completion.
type request struct {
	op         blkOp
	status     uint8
	head       uint16
	generation uint64
	offset     int64
	data       []byte // what is written, or where a read goes
	moved      int    // bytes of data that were written or read
	in         []segment
	room       uint64 // writable bytes before the status byte
	scratch    []byte // a read's buffer, used again
}

// weight is what a request counts in Blk.waiting.
func (r *request) weight() int { return len(r.data) }

func (r *request) buffer(n int) []byte {
	if cap(r.scratch) < n {
		r.scratch = make([]byte, n)
	}
	return r.scratch[:n]
}

// request returns an unused request. The device lock is held.
func (b *Blk) request() *request {
	if n := len(b.free); n > 0 {
		r := b.free[n-1]
		b.free = b.free[:n-1]
		return r
	}
	return &request{}
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

// copyJob is what is left of a CopyRange.
type copyJob struct {
	offset, left int64
	err          error
	done         func(error)
}

// worker executes requests and copies. Its goroutine lives while there is something to do: starting
// one costs no more than waking one.
type worker struct {
	b    *Blk
	mu   sync.Mutex
	idle *sync.Cond

	requests []*request
	copies   []*copyJob
	running  bool
	stopped  bool // by drain
}

func (w *worker) init(b *Blk) {
	w.b = b
	w.idle = sync.NewCond(&w.mu)
	w.stopped = true
}

// submit queues a request; wake follows.
func (w *worker) submit(r *request) {
	w.mu.Lock()
	w.requests = append(w.requests, r)
	w.mu.Unlock()
}

func (w *worker) copy(c *copyJob) {
	w.mu.Lock()
	w.copies = append(w.copies, c)
	w.mu.Unlock()
	w.wake()
}

func (w *worker) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.running && !w.stopped && len(w.requests)+len(w.copies) > 0 {
		w.running = true
		go w.run()
	}
}

func (w *worker) resume() {
	w.mu.Lock()
	w.stopped = false
	w.mu.Unlock()
	w.wake()
}

func (w *worker) drain() {
	w.mu.Lock()
	w.stopped = true
	for w.running {
		w.idle.Wait()
	}
	w.requests = nil
	copies := w.copies
	w.copies = nil
	w.mu.Unlock()
	if len(copies) == 0 {
		return
	}
	w.b.p.Lock()
	defer w.b.p.Unlock()
	for _, c := range copies {
		c.done(ErrDrained)
	}
}

// next takes the next request, or the copy whose turn it is, off the queues. Copies come after
// requests, but not after all of them: turn says that the guest has had its batch.
func (w *worker) next(turn bool) (r *request, c *copyJob, stop bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.stopped:
		return nil, nil, true
	case len(w.requests) > 0 && !(turn && len(w.copies) > 0):
		r = w.requests[0]
		w.requests[0] = nil
		if w.requests = w.requests[1:]; len(w.requests) == 0 {
			w.requests = nil
		}
	case len(w.copies) > 0:
		c = w.copies[0]
	}
	return r, c, false
}

func (w *worker) run() {
	var done []*request
	bytes, turn := 0, false
	flush := func() {
		if len(done) > 0 {
			w.b.complete(done)
			clear(done)
			done, bytes = done[:0], 0
		}
	}
	for {
		r, c, stop := w.next(turn)
		turn = false
		switch {
		case r != nil:
			if r.op == opFlush {
				flush() // what is done already must not wait for it
			}
			w.execute(r)
			done = append(done, r)
			if bytes += r.weight(); len(done) >= batchRequests || bytes >= batchBytes || r.op == opFlush {
				flush()
				turn = true
			}
		case c != nil:
			flush() // earlier writes are reported before the copy is
			w.piece(c)
		case len(done) > 0:
			flush() // and then there may be more
		default:
			w.mu.Lock()
			if stop || w.stopped || len(w.requests)+len(w.copies) == 0 {
				w.running = false
				w.idle.Broadcast()
				w.mu.Unlock()
				return
			}
			w.mu.Unlock()
		}
	}
}

// execute does a request's file I/O.
func (w *worker) execute(r *request) {
	if r.generation != w.b.generation.Load() {
		return // abandoned
	}
	var err error
	switch r.op {
	case opRead:
		if r.moved, err = w.b.file.ReadAt(r.data, r.offset); r.moved == len(r.data) {
			err = nil // ReadAt may add io.EOF to the last bytes
		}
	case opWrite:
		r.moved, err = w.b.file.WriteAt(r.data, r.offset)
	case opFlush:
		err = w.b.file.Sync()
	}
	if err != nil {
		r.status = blkIOErr
	}
}

// piece does the next part of a copy.
func (w *worker) piece(c *copyJob) {
	var data []byte
	if c.err == nil && c.left > 0 {
		data = make([]byte, min(c.left, copyPiece)) // Output.DiskWritten keeps it
		n, err := w.b.file.ReadAt(data, c.offset)
		if n < len(data) {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			c.err = fmt.Errorf("copy %d bytes at %d of disk %d: %w", len(data), c.offset, w.b.index, err)
			data = nil
		}
	}
	w.b.p.Lock()
	defer w.b.p.Unlock()
	if len(data) > 0 {
		w.b.p.Output().DiskWritten(w.b.index, c.offset, data)
		c.offset += int64(len(data))
		c.left -= int64(len(data))
	}
	if c.err != nil || c.left == 0 {
		w.mu.Lock()
		w.copies = append([]*copyJob(nil), w.copies[1:]...)
		w.mu.Unlock()
		c.done(c.err)
	}
}
