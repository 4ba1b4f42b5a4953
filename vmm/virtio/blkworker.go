package virtio

import "sync"

const (
	// Results are handed over in batches, so that the device lock, the used index and the interrupt
	// cost less: so many requests or bytes, or whatever there is when nothing is left to do.
	batchRequests = 16
	batchBytes    = 256 << 10
)

// workers execute requests and copies. Their goroutines live while there is something to do: starting
// one costs no more than waking one. Each notification starts one more, up to the limit, so that a slow
// request does not hold up those that come after it.
//
// Flushes go another way: one goroutine executes all that have come since it began the last one with a
// single sync of the file.
type workers struct {
	b    *Blk
	most int
	mu   sync.Mutex
	idle *sync.Cond // nobody works any more

	waiting []*request // in the order of submission
	busy    []*request // begun and not completed: their ranges are taken
	copies  []*copyJob
	copying bool // the first of copies is
	flushes []*request

	running  int
	flushing bool
	stopped  bool // by drain
}

func (w *workers) init(b *Blk, queues int) {
	w.b, w.most = b, max(2, queues)
	w.idle = sync.NewCond(&w.mu)
	w.stopped = true
}

// submit queues a request; wake follows.
func (w *workers) submit(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.op == opFlush {
		w.flushes = append(w.flushes, r)
		return
	}
	w.waiting = append(w.waiting, r)
}

func (w *workers) copy(c *copyJob) {
	w.mu.Lock()
	w.copies = append(w.copies, c)
	w.mu.Unlock()
	w.wake()
}

// forget drops the requests that nobody has begun: they are of an older generation, and their data would fill
// the memory while the file stands still and the guest resets its disk over and over.
func (w *workers) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting, w.flushes = nil, nil
}

// wake starts one more worker where something waits, and the flusher.
func (w *workers) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	if w.running < w.most && len(w.waiting)+len(w.copies) > 0 {
		w.running++
		go w.run()
	}
	if !w.flushing && len(w.flushes) > 0 {
		w.flushing = true
		go w.flush()
	}
}

func (w *workers) resume() {
	w.mu.Lock()
	w.stopped = false
	w.mu.Unlock()
	w.wake()
}

func (w *workers) drain() {
	w.mu.Lock()
	w.stopped = true
	for w.running > 0 || w.flushing {
		w.idle.Wait()
	}
	w.waiting, w.flushes = nil, nil
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

// next takes the next request off the queue, or the copy whose turn it is, and with it its ranges.
// Requests begin in the order of their submission: one whose bytes are taken keeps those behind it
// waiting. Copies come after requests, but not after all of them: turn says that the guest has had a
// batch. A worker that finds nothing and has nothing to hand over ends with that.
func (w *workers) next(turn, ends bool) (*request, *copyJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		ready := len(w.waiting) > 0 && !w.conflicts(w.waiting[0])
		if (!ready || turn) && len(w.copies) > 0 && !w.copying {
			if c := w.copies[0]; !w.conflicts(c.take()) {
				w.copying = true
				w.busy = append(w.busy, &c.piece)
				return nil, c
			}
		}
		if ready {
			r := w.waiting[0]
			w.waiting[0] = nil
			if w.waiting = w.waiting[1:]; len(w.waiting) == 0 {
				w.waiting = nil
			}
			w.busy = append(w.busy, r)
			return r, nil
		}
	}
	if ends {
		w.running--
		w.signal()
	}
	return nil, nil
}

func (w *workers) signal() {
	if w.running == 0 && !w.flushing {
		w.idle.Broadcast()
	}
}

// conflicts says whether r has to wait for one that has begun.
func (w *workers) conflicts(r *request) bool {
	for _, o := range w.busy {
		if !r.op.changes() && !o.op.changes() {
			continue
		}
		for i := range r.ranges {
			for j := range o.ranges {
				if r.ranges[i].overlaps(&o.ranges[j]) {
					return true
				}
			}
		}
	}
	return false
}

// release gives the ranges of requests back. Whoever calls it is a worker that goes on to look for what
// was waiting for them.
func (w *workers) release(done []*request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range done {
		for i, o := range w.busy {
			if o == r {
				last := len(w.busy) - 1
				w.busy[i], w.busy[last] = w.busy[last], nil
				w.busy = w.busy[:last]
				break
			}
		}
	}
}

func (w *workers) run() {
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
		r, c := w.next(turn, len(done) == 0)
		turn = false
		switch {
		case r != nil:
			w.b.execute(r)
			done = append(done, r)
			if bytes += r.weight(); len(done) >= batchRequests || bytes >= batchBytes || r.slow() {
				flush()
				turn = true
			}
		case c != nil:
			flush() // it must not wait for the copy
			w.b.copyPiece(c)
		case len(done) > 0:
			flush() // and then there may be more
		default:
			return
		}
	}
}

// flush serves the flushes that wait, and those that come meanwhile. They cover what was completed
// before they were submitted, and all that is in the file by now.
func (w *workers) flush() {
	for {
		w.mu.Lock()
		if w.stopped || len(w.flushes) == 0 {
			w.flushing = false
			w.signal()
			w.mu.Unlock()
			return
		}
		batch := w.flushes
		w.flushes = nil
		w.mu.Unlock()
		w.b.sync(batch)
		w.b.complete(batch)
	}
}
