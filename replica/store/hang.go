package store

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/pollux-ha/pollux/replica/journal"
)

// ErrHung says that a disk or the journal does not answer. Until it does, nobody can tell what is on it, and
// neither can its file be closed.
var ErrHung = errors.New("the disk does not answer")

// DefaultHangLimit is how long one operation on a disk may take. It is far above what a busy disk needs, and bounds how
// long a host whose disk hangs counts as one that could take over.
const DefaultHangLimit = 30 * time.Second

// hangChecks is how often within the limit the worker is looked at. Looks are counted, not time: a process that was
// frozen must not take that for a hanging disk.
const hangChecks = 10

// pulse counts the beginnings and the ends of operations: odd while one is under way.
type pulse struct{ n atomic.Uint64 }

// timed runs an operation.
func (p *pulse) timed(fn func() error) error {
	p.n.Add(1)
	defer p.n.Add(1)
	return fn()
}

// watchedFile is a disk as the worker uses it.
type watchedFile struct {
	file
	p *pulse
}

func (f watchedFile) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.p.timed(func() error { n, err = f.file.ReadAt(b, off); return err })
	return n, err
}

func (f watchedFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.timed(func() error { n, err = f.file.WriteAt(b, off); return err })
	return n, err
}

func (f watchedFile) Sync() error { return f.p.timed(f.file.Sync) }

func (f watchedFile) Zero(off, n int64, unmap bool) error {
	return f.p.timed(func() error { return f.file.Zero(off, n, unmap) })
}

// watchedJournal is the journal's file as the worker uses it.
type watchedJournal struct {
	journal.File
	p *pulse
}

func (f watchedJournal) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.p.timed(func() error { n, err = f.File.WriteAt(b, off); return err })
	return n, err
}

func (f watchedJournal) Sync() error { return f.p.timed(f.File.Sync) }

var (
	_ io.ReaderAt  = watchedFile{}
	_ journal.File = watchedJournal{}
)

// watch gives the worker up when one operation takes longer than limit.
func (w *worker) watch(p *pulse, limit time.Duration) {
	tick := time.NewTicker(limit / hangChecks)
	defer tick.Stop()
	var last uint64
	same := 0
	for {
		select {
		case <-w.stopped:
			return
		case <-tick.C:
		}
		now := p.n.Load()
		if now != last || now%2 == 0 {
			last, same = now, 0
			continue
		}
		if same++; same >= hangChecks {
			w.fail(fmt.Errorf("%w: one operation has taken more than %v; check the storage under it", ErrHung, limit))
			close(w.hung)
			return
		}
	}
}
