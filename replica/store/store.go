package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/durable"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/journal"
	"github.com/pollux-ha/pollux/replica/mark"
)

// syncBytes is after how many bytes applied to the disks they are made durable: what a promotion may
// have to wait for.
const syncBytes = 8 << 20

// zeroCost is what a range that becomes zero counts among them.
const zeroCost = 4096

// queued bounds the epochs with disk writes that wait for the worker.
const queued = 1024

// ErrClosed says that the store has been closed.
var ErrClosed = errors.New("the disks are closed")

// Config names a guest's disks.
type Config struct {
	Guest        string
	Disks        []DiskConfig
	Journal      string // path; not used where there are no writable disks
	JournalBytes int64
	HangLimit    time.Duration // how long one operation of the worker may take; 0: DefaultHangLimit
}

// DiskConfig is one disk.
type DiskConfig struct {
	Path     string
	Size     int64
	ReadOnly bool
}

// file is what the worker needs of a disk.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64
	Zero(offset, n int64, unmap bool) error
	NextData(offset int64) int64
}

// Store is a guest's disks on this host.
type Store struct {
	guest string
	disks []*Disk
	marks []mark.Mark // owned by the worker after Open
	jfile *os.File

	w *worker

	closing sync.Once
	err     error
}

// Open opens and locks all disks and replays the journal. ctx bounds the wait for a predecessor.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	s := &Store{guest: cfg.Guest}
	p := &pulse{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeFiles())
		}
	}()
	writable := false
	var files []file
	for _, d := range cfg.Disks {
		disk, err := OpenDisk(ctx, d.Path, d.Size, d.ReadOnly)
		if err != nil {
			return nil, err
		}
		s.disks = append(s.disks, disk)
		files = append(files, watchedFile{disk, p})
		m, err := s.readMark(disk)
		if err != nil {
			return nil, err
		}
		s.marks = append(s.marks, m)
		writable = writable || !d.ReadOnly
	}
	var j *journal.Journal
	if writable {
		if j, err = s.openJournal(cfg, files, p); err != nil {
			return nil, err
		}
	}
	s.w = newWorker(files, j, s.settled)
	limit := cfg.HangLimit
	if limit == 0 {
		limit = DefaultHangLimit
	}
	go s.w.run()
	go s.w.watch(p, limit)
	return s, nil
}

func (s *Store) readMark(d *Disk) (mark.Mark, error) {
	if d.ReadOnly {
		return mark.Mark{}, nil
	}
	m, err := mark.Read(d.Name())
	if err != nil && !errors.Is(err, mark.ErrDamaged) {
		return m, err
	}
	if d.Created && m.State != mark.None {
		// The mark speaks of a file that is gone. What is there now is empty.
		m.State = mark.Inconsistent
		if err := mark.Write(d.Name(), m); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (s *Store) openJournal(cfg Config, files []file, p *pulse) (*journal.Journal, error) {
	size := max(cfg.JournalBytes, journal.MinBytes)
	f, err := os.OpenFile(cfg.Journal, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the disk journal: %w", err)
	}
	s.jfile = f
	// Reserved space must not run out because the file system has.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil && err != unix.EOPNOTSUPP {
		return nil, fmt.Errorf("allocate %d bytes for the disk journal %s (make room, or set journal_bytes lower): %w", size, cfg.Journal, err)
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("make the disk journal durable: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(cfg.Journal)); err != nil {
		return nil, err
	}
	// The journal belongs to a disk that is whole. On one that is being overwritten it means nothing.
	keep := mark.Worst(s.marks).State != mark.Inconsistent
	return recoverJournal(watchedJournal{f, p}, size, files, keep)
}

// recoverJournal brings the disks to the newest epoch that the journal holds, and empties it.
func recoverJournal(f journal.File, size int64, disks []file, keep bool) (*journal.Journal, error) {
	j, err := journal.Open(f, size, func(e journal.Epoch) error {
		if !keep {
			return nil
		}
		_, err := applyWrites(disks, e.Writes, func() error { return nil })
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if err := d.Sync(); err != nil {
			return nil, err
		}
	}
	return j, j.Reset()
}

// applyWrites brings writes to the disks and returns how many bytes that were. pause is called in the midst of
// long ones.
func applyWrites(disks []file, writes []checkpoint.DiskWrite, pause func() error) (int64, error) {
	var bytes int64
	for i := range writes {
		w := &writes[i]
		if int(w.Disk) >= len(disks) || w.Offset < 0 || w.Len() > disks[w.Disk].Size()-w.Offset {
			return bytes, fmt.Errorf("write of %d bytes at %d of disk %d, which is not there", w.Len(), w.Offset, w.Disk)
		}
		d := disks[w.Disk]
		var n int64
		var err error
		if w.Zeros > 0 {
			n, err = zero(d, w, pause)
			n += zeroCost
		} else {
			_, err = d.WriteAt(w.Data, w.Offset)
			n = int64(len(w.Data))
		}
		if bytes += n; err != nil {
			return bytes, fmt.Errorf("write %d bytes at %d of disk %d: %w", w.Len(), w.Offset, w.Disk, err)
		}
	}
	return bytes, nil
}

// Disks are the open disk files, for the machine.
func (s *Store) Disks() []*Disk { return s.disks }

// Sizes are the disks' sizes in bytes.
func (s *Store) Sizes() []uint64 {
	out := make([]uint64, len(s.disks))
	for i, d := range s.disks {
		out[i] = uint64(d.size)
	}
	return out
}

// Mark returns the mark that forbids most.
func (s *Store) Mark() (m mark.Mark, err error) {
	err = s.w.do(func() error { m = mark.Worst(s.writableMarks()); return nil })
	return m, err
}

func (s *Store) writableMarks() []mark.Mark {
	var out []mark.Mark
	for i, d := range s.disks {
		if !d.ReadOnly {
			out = append(out, s.marks[i])
		}
	}
	return out
}

// setMarks changes the marks durably; it runs on the worker. change returns false to leave one as it is.
func (s *Store) setMarks(change func(*mark.Mark) bool) error {
	for i, d := range s.disks {
		m := s.marks[i]
		if d.ReadOnly || !change(&m) {
			continue
		}
		m.Guest = s.guest
		if err := mark.Write(d.Name(), m); err != nil {
			return err
		}
		s.marks[i] = m
	}
	return nil
}

// BeginResync makes the disks ready to be overwritten: when it returns, the old journal is void and
// every disk is marked inconsistent, durably. Until the first epoch that is not Syncing, writes go to
// the disks without a journal.
func (s *Store) BeginResync(term pact.Term) error {
	s.w.setDirect(true)
	return s.w.do(func() error {
		if err := s.w.discard(); err != nil {
			return err
		}
		return s.setMarks(func(m *mark.Mark) bool {
			m.State, m.Since = mark.Inconsistent, term
			return true
		})
	})
}

// BeginJournal prepares for the writes of a twin that goes on from this host's own state, as after a
// switchover: what this host wrote itself is made durable first.
func (s *Store) BeginJournal() error {
	s.w.setDirect(false)
	return s.w.do(s.w.flush)
}

// settled runs on the worker when a synchronization has come to its end with epoch e of term t: the
// disks are whole again, and not the current ones.
func (s *Store) settled(t pact.Term, _ pact.Epoch) error {
	return s.setMarks(func(m *mark.Mark) bool {
		if m.State != mark.Inconsistent {
			return false
		}
		m.State, m.Since = mark.Outdated, t
		return true
	})
}

// MarkOutdated says that the guest's current disk copy is another host's, as of a term.
func (s *Store) MarkOutdated(term pact.Term) error {
	return s.w.do(func() error {
		return s.setMarks(func(m *mark.Mark) bool {
			if m.State == mark.Outdated || m.State == mark.Inconsistent || m.State == mark.Current && m.Term >= term {
				return false
			}
			m.State, m.Since = mark.Outdated, term
			return true
		})
	})
}

// Flush makes the journal durable, brings the disks up to it and empties it. When it returns the
// machine may write to the disks.
func (s *Store) Flush() error {
	s.w.setDirect(false)
	return s.w.do(s.w.flush)
}

// WriteMarker makes it durable that this host goes on from epoch as the guest's primary in term: its
// copy is the current one. It comes after Flush and before any output.
func (s *Store) WriteMarker(term pact.Term, epoch pact.Epoch) error {
	return s.w.do(func() error {
		return s.setMarks(func(m *mark.Mark) bool {
			if m.State == mark.Current && m.Term >= term {
				return false
			}
			m.State, m.Term, m.Epoch, m.Since = mark.Current, term, epoch, 0
			return true
		})
	})
}

// Reservation is journal space for one epoch.
type Reservation struct {
	slot   journal.Slot
	held   bool // slot is reserved
	writes []checkpoint.DiskWrite
}

// Reserve checks an epoch's writes and finds journal space for them, waiting for older epochs to reach
// the disks where there is none.
func (s *Store) Reserve(writes []checkpoint.DiskWrite, syncing bool) (Reservation, error) {
	for i := range writes {
		w := &writes[i]
		if int(w.Disk) >= len(s.disks) || s.disks[w.Disk].ReadOnly {
			return Reservation{}, fmt.Errorf("%w: a write to disk %d, which this guest can't write to", checkpoint.ErrCorrupt, w.Disk)
		}
		if w.Offset < 0 || w.Len() > s.disks[w.Disk].size-w.Offset {
			return Reservation{}, fmt.Errorf("%w: a write of %d bytes at %d of disk %d", checkpoint.ErrCorrupt, w.Len(), w.Offset, w.Disk)
		}
	}
	return s.w.reserve(writes)
}

// Cancel gives a reservation back: the epoch is not committed.
func (s *Store) Cancel(r Reservation) { s.w.cancel(r) }

// Commit takes the writes of a committed epoch; they reach the disks in order. It blocks only where
// a thousand epochs wait already.
func (s *Store) Commit(r Reservation, t pact.Term, e pact.Epoch, syncing bool) {
	s.w.commit(r, t, e, syncing)
}

// Durable is the newest epoch of which it is known that its disk writes and all earlier ones survive
// a crash of this host; 0: none, or a synchronization is under way.
func (s *Store) Durable() pact.Epoch { return pact.Epoch(s.w.durable.Load()) }

// Failed is closed when a disk or the journal could not be written; Err says why. Nothing is
// committed any more.
func (s *Store) Failed() <-chan struct{} { return s.w.failed }

// Err is why Failed is closed.
func (s *Store) Err() error { return s.w.failure() }

// Close lets what is queued reach the disks, makes them durable and gives the locks back. The machine
// has stopped before. Where a disk hangs the locks stay until the process has ended, and it with the disk's
// answer: nobody else may write there before.
func (s *Store) Close() error {
	s.closing.Do(func() {
		err := s.w.do(s.w.flush)
		select {
		case <-s.w.hung:
			s.err = err
			return
		default:
		}
		s.w.stop()
		s.err = errors.Join(err, s.closeFiles())
	})
	return s.err
}

func (s *Store) closeFiles() error {
	var err error
	if s.jfile != nil {
		err = s.jfile.Close()
	}
	for _, d := range s.disks {
		err = errors.Join(err, d.Close())
	}
	return err
}
