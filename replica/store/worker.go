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
}

type job struct {
	epoch  pact.Epoch
	term   pact.Term
	res    Reservation
	direct bool
	settle bool // the synchronization ends with this epoch
	fn     func() error
	result chan error
}

func newWorker(disks []file, j *journal.Journal, settled func(pact.Term, pact.Epoch) error) *worker {
	return &worker{
		disks: disks, j: j, settled: settled,
		queue: make(chan job, queued), kick: make(chan struct{}, 1),
		done: make(chan struct{}), stopped: make(chan struct{}), failed: make(chan struct{}),
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
	case <-w.stopped:
	}
}

// do runs fn on the worker after everything that was committed before.
func (w *worker) do(fn func() error) error {
	result := make(chan error, 1)
	select {
	case w.queue <- job{fn: fn, result: result}:
	case <-w.stopped:
		return ErrClosed
	}
	select {
	case err := <-result:
		return err
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
	more:
		for len(batch) < queued {
			select {
			case jb := <-w.queue:
				batch = append(batch, jb)
			default:
				break more
			}
		}
		w.process(batch)
		clear(batch)
	}
}

// process takes jobs in order: stretches of journalled epochs together, everything else by itself.
func (w *worker) process(batch []job) {
	for len(batch) > 0 {
		n := 0
		for n < len(batch) && batch[n].fn == nil && !batch[n].direct {
			n++
		}
		if n == 0 {
			w.single(batch[0])
			batch = batch[1:]
			continue
		}
		if w.failure() == nil {
			if err := w.journalled(batch[:n]); err != nil {
				w.fail(err)
			}
		}
		w.finished(n)
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
	err := w.failure()
	if err == nil {
		err = w.directly(jb)
	}
	if err != nil {
		w.fail(err)
	}
	w.finished(1)
}

// journalled makes epochs durable and brings them to the disks.
func (w *worker) journalled(jobs []job) error {
	for _, jb := range jobs {
		n, err := w.j.Append(jb.res.slot, journal.Epoch{Term: jb.term, Number: jb.epoch, Writes: jb.res.writes})
		if err != nil {
			return err
		}
		w.number, w.journals = n, true
	}
	if err := w.j.Sync(); err != nil {
		return err
	}
	w.mu.Lock()
	w.durable.Store(uint64(jobs[len(jobs)-1].epoch))
	w.mu.Unlock()
	for _, jb := range jobs {
		if err := w.apply(jb.res.writes); err != nil {
			return err
		}
	}
	if w.applied >= syncBytes || w.hungry.Load() {
		return w.makeRoom()
	}
	return nil
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
	if err := applyWrites(w.disks, writes); err != nil {
		return err
	}
	for i := range writes {
		w.applied += int64(len(writes[i].Data))
		if writes[i].Zeros > 0 {
			w.applied += zeroCost
		}
	}
	return nil
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
