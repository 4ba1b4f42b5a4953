package store

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/journal"
)

// worker is the one goroutine that moves committed epochs to the disks: a batch into the journal, one
// sync for the batch, then onto the disks.
type worker struct {
	disks   []file
	j       *journal.Journal // nil: no disk can be written to
	settled func(pact.Term, pact.Epoch) error

	queue   chan job
	kick    chan struct{} // Reserve waits for room
	done    chan struct{}
	stopped chan struct{}
	hung    chan struct{} // closed when the worker is given up
	durable atomic.Uint64
	hungry  atomic.Bool // Reserve waits: make room as soon as there is something to free

	mu      sync.Mutex
	direct  bool       // epochs go to the disks without the journal
	pending int        // jobs with writes that are not durable yet
	newest  pact.Epoch // committed last
	err     error
	failed  chan struct{}

	// Owned by run.
	applied  int64  // bytes since the disks were made durable
	number   uint64 // newest journal record applied
	journals bool   // the journal holds records
	backlog  []job  // in the journal, and not on the disks yet
	later    []job  // taken from the queue in the midst of applying, and not journalled
	// interleave says that what is in the queue comes right behind the backlog.
	interleave bool
}

type job struct {
	epoch  pact.Epoch
	term   pact.Term
	res    Reservation
	number uint64 // of its journal record
	direct bool
	settle bool // the synchronization ends with this epoch
	fn     func() error
	result chan error
}

func newWorker(disks []file, j *journal.Journal, settled func(pact.Term, pact.Epoch) error) *worker {
	return &worker{
		disks: disks, j: j, settled: settled,
		queue: make(chan job, queued), kick: make(chan struct{}, 1),
		done: make(chan struct{}), stopped: make(chan struct{}), hung: make(chan struct{}), failed: make(chan struct{}),
	}
}

func (w *worker) setDirect(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.direct, w.newest = on, 0
	w.durable.Store(0)
}

func (w *worker) reserve(writes []checkpoint.DiskWrite) (Reservation, error) {
	r := Reservation{writes: writes}
	w.mu.Lock()
	direct, err := w.direct, w.err
	w.mu.Unlock()
	if err != nil || direct || len(writes) == 0 {
		return r, err
	}
	size := journal.Size(writes)
	for {
		slot, err := w.j.Reserve(size)
		if err == nil {
			w.hungry.Store(false)
			r.slot, r.held = slot, true
			return r, nil
		}
		if !errors.Is(err, journal.ErrFull) {
			return r, err
		}
		w.hungry.Store(true)
		select {
		case w.kick <- struct{}{}:
		default:
		}
		if err := w.j.WaitFree(size); err != nil {
			return r, err
		}
	}
}

func (w *worker) cancel(r Reservation) {
	if r.held {
		w.j.Cancel(r.slot)
	}
}

func (w *worker) commit(r Reservation, t pact.Term, e pact.Epoch, syncing bool) {
	w.mu.Lock()
	jb := job{epoch: e, term: t, res: r, direct: w.direct && !r.held}
	if w.direct && !syncing {
		w.direct, jb.settle = false, true
	}
	w.newest = e
	if len(r.writes) == 0 && !jb.settle {
		if w.pending == 0 && !w.direct && w.err == nil {
			w.durable.Store(uint64(e))
		}
		w.mu.Unlock()
		return
	}
	w.pending++
	w.mu.Unlock()
	select {
	case w.queue <- jb:
	case <-w.hung: // it has failed; the epoch is not durable, and is never said to be
	case <-w.stopped:
	}
}

// do runs fn on the worker after everything that was committed before.
func (w *worker) do(fn func() error) error {
	result := make(chan error, 1)
	select {
	case w.queue <- job{fn: fn, result: result}:
	case <-w.hung:
		return w.failure()
	case <-w.stopped:
		return ErrClosed
	}
	select {
	case err := <-result:
		return err
	case <-w.hung:
		return w.failure()
	case <-w.stopped:
		return ErrClosed
	}
}

func (w *worker) stop() {
	close(w.done)
	<-w.stopped
}

func (w *worker) run() {
	defer close(w.stopped)
	var batch []job
	for {
		if len(w.later) > 0 {
			batch = append(batch[:0], w.later...)
			w.later = w.later[:0]
			w.process(batch)
			clear(batch)
			continue
		}
		select {
		case jb := <-w.queue:
			batch = append(batch[:0], jb)
		case <-w.kick:
			if err := w.makeRoom(); err != nil {
				w.fail(err)
			}
			continue
		case <-w.done:
			return
		}
		batch = w.take(batch)
		w.process(batch)
		clear(batch)
	}
}

// take adds what is in the queue.
func (w *worker) take(batch []job) []job {
	for len(batch) < queued {
		select {
		case jb := <-w.queue:
			batch = append(batch, jb)
		default:
			return batch
		}
	}
	return batch
}

// leading is how many of the first jobs go through the journal.
func leading(batch []job) int {
	n := 0
	for n < len(batch) && batch[n].fn == nil && !batch[n].direct {
		n++
	}
	return n
}

// process takes jobs in order: stretches of journalled epochs together, everything else by itself.
func (w *worker) process(batch []job) {
	for len(batch) > 0 {
		n := leading(batch)
		if n == 0 {
			w.single(batch[0])
			batch = batch[1:]
			continue
		}
		switch {
		case w.failure() != nil:
			w.finished(n)
		case w.journal(batch[:n]) == nil: // else it has failed
			// What comes meanwhile is journalled in between, and joins the backlog; behind the rest of this
			// batch it must not.
			w.interleave = len(batch) == n
			w.drain()
		}
		batch = batch[n:]
	}
}

func (w *worker) single(jb job) {
	if jb.fn != nil {
		err := w.failure()
		if err == nil {
			if err = jb.fn(); err != nil {
				w.fail(err)
			}
		}
		jb.result <- err
		return
	}
	w.interleave = false
	err := w.failure()
	if err == nil {
		err = w.directly(jb)
	}
	if err != nil {
		w.fail(err)
	}
	w.finished(1)
}

// journal makes epochs durable and puts them into the backlog.
func (w *worker) journal(jobs []job) error {
	for i := range jobs {
		jb := &jobs[i]
		n, err := w.j.Append(jb.res.slot, journal.Epoch{Term: jb.term, Number: jb.epoch, Writes: jb.res.writes})
		if err != nil {
			w.giveUp(jobs, err)
			return err
		}
		jb.number, w.journals = n, true
	}
	if err := w.j.Sync(); err != nil {
		w.giveUp(jobs, err)
		return err
	}
	w.mu.Lock()
	w.durable.Store(uint64(jobs[len(jobs)-1].epoch))
	w.mu.Unlock()
	w.backlog = append(w.backlog, jobs...)
	return nil
}

// giveUp ends all work because of jobs that can't be done. They are counted off after that: nothing that comes
// behind them is durable.
func (w *worker) giveUp(jobs []job, err error) {
	w.fail(err)
	w.finished(len(jobs))
}

// drain brings the backlog to the disks.
func (w *worker) drain() {
	defer func() { w.backlog = nil }()
	for len(w.backlog) > 0 {
		if err := w.apply(w.backlog[0].res.writes); err != nil {
			w.giveUp(w.backlog, err)
			return
		}
		w.number = w.backlog[0].number
		if w.applied >= syncBytes || w.hungry.Load() && (len(w.backlog) == 1 || w.j.Frees(w.number)) {
			if err := w.makeRoom(); err != nil {
				w.giveUp(w.backlog, err)
				return
			}
		}
		w.backlog[0] = job{}
		w.backlog = w.backlog[1:]
		w.finished(1)
	}
}

// pause is called in the midst of a long write: epochs that have come meanwhile are made durable, so that
// nobody waits for it but he who finds the journal full.
func (w *worker) pause() error {
	if !w.interleave || len(w.later) > 0 {
		return nil
	}
	w.later = w.take(w.later)
	n := leading(w.later)
	if n == 0 {
		return nil
	}
	err := w.journal(w.later[:n])
	w.later = append([]job(nil), w.later[n:]...)
	return err
}

// directly writes to disks that are being synchronized.
func (w *worker) directly(jb job) error {
	if err := w.apply(jb.res.writes); err != nil {
		return err
	}
	if w.applied >= 8*syncBytes || jb.settle {
		if err := w.syncDisks(); err != nil {
			return err
		}
	}
	if !jb.settle {
		return nil
	}
	if err := w.settled(jb.term, jb.epoch); err != nil {
		return err
	}
	w.durable.Store(uint64(jb.epoch))
	return nil
}

// finished counts jobs off; epochs without writes that came after them are durable too then.
func (w *worker) finished(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending -= n
	if w.pending == 0 && w.err == nil && !w.direct && w.newest != 0 {
		w.durable.Store(uint64(w.newest))
	}
}

func (w *worker) apply(writes []checkpoint.DiskWrite) error {
	n, err := applyWrites(w.disks, writes, w.pause)
	w.applied += n
	return err
}

func (w *worker) syncDisks() error {
	for _, d := range w.disks {
		if err := d.Sync(); err != nil {
			return err
		}
	}
	w.applied = 0
	return nil
}

// makeRoom makes the disks durable and frees journal space.
func (w *worker) makeRoom() error {
	if err := w.syncDisks(); err != nil {
		return err
	}
	if w.j == nil {
		return nil
	}
	return w.j.Done(w.number)
}

// flush makes the disks durable with all that was committed, and empties the journal.
func (w *worker) flush() error {
	if w.j == nil {
		return nil
	}
	if err := w.syncDisks(); err != nil {
		return err
	}
	if !w.journals {
		return nil
	}
	return w.discard()
}

// discard makes the journal void.
func (w *worker) discard() error {
	if w.j == nil {
		return nil
	}
	w.journals = false
	return w.j.Reset()
}

// fail ends all work: after a failed write or sync nobody knows what is on the disk.
func (w *worker) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	w.err = err
	if w.j != nil {
		w.j.Fail(err)
	}
	close(w.failed)
}

func (w *worker) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}
