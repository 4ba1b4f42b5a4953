package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrClosed says that the log has been closed.
	ErrClosed = errors.New("event log is closed")
	// ErrUncertain says that the event may or may not be in the log. The change must not be made.
	ErrUncertain = errors.New("outcome of writing to the event log is not known")
)

// file is what a Log needs of its file; tests put a failing one in its place.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
	Fd() uintptr
}

// Log is a log that is open for writing. Its methods are safe for concurrent use, and so are several Logs,
// in one process or many, on the same file.
type Log struct {
	path, host string
	f          file
	turn       chan struct{} // holds one token; whoever has it may use the fields below
	now        func() time.Time

	limits Limits
	head   head
	loaded bool  // head is of f
	trims  bool  // there may be more segments than are kept
	told   bool  // that they can't be deleted
	broken error // set by a failure after which the file's content is not known
	closed bool

	headSeen atomic.Pointer[head]
}

// head is the end of the verified part of the file.
type head struct {
	seq  uint64
	hash string
	size int64
}

// Open opens the log at path for writing, and makes it where there is none. host goes into each event. The rest
// of an unfinished append is cut off and logged; other damage at the end of the log is an error of type
// *Broken. Open does not look at older lines: Verify does.
func Open(path, host string) (*Log, error) { return OpenLimited(path, host, Limits{}) }

// OpenLimited is Open for the one of a log's writers that keeps it within limits.
func OpenLimited(path, host string, limits Limits) (*Log, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	return open(f, path, host, limits)
}

func open(f file, path, host string, limits Limits) (*Log, error) {
	l := &Log{path: path, host: host, limits: limits, trims: true, f: f, turn: make(chan struct{}, 1), now: time.Now, head: head{hash: genesis}}
	l.turn <- struct{}{}
	err := l.locked(context.Background(), l.finishRepair)
	if err != nil {
		l.f.Close()
		var broken *Broken
		if errors.As(err, &broken) {
			err = fmt.Errorf("%w: nothing can be written to a damaged log; keep the file for the auditor, see what "+
				"\"pollux events verify\" says, then move it away: a new one begins", err)
		}
		return nil, fmt.Errorf("open the event log %s: %w", path, err)
	}
	l.publish()
	return l, nil
}

// Append adds an event and returns nil once it is durable. On any error the change that the event stands
// for must not be made. A cancelled ctx ends the wait; where the event may have reached the file by then,
// the error wraps ErrUncertain.
func (l *Log) Append(ctx context.Context, e Event) error {
	select {
	case <-l.turn:
	case <-ctx.Done():
		return fmt.Errorf("write to the event log %s: another event is still being written: %w", l.path, ctx.Err())
	}
	done := make(chan error, 1)
	go func() {
		defer func() { l.turn <- struct{}{} }()
		done <- l.append(ctx, e)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done: // both were ready: the outcome is known
		return err
	default:
		return fmt.Errorf("write to the event log %s: %w: %w", l.path, ErrUncertain, ctx.Err())
	}
}

// append runs with the turn.
func (l *Log) append(ctx context.Context, e Event) error {
	if l.closed {
		return ErrClosed
	}
	err := l.broken
	if err == nil {
		err = l.locked(ctx, func() error {
			if err := l.catchUp(nil); err != nil {
				return err
			}
			if err := l.rotate(); err != nil {
				return err
			}
			if err := l.write(e); err != nil {
				return err
			}
			l.keep()
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("write to the event log %s: %w", l.path, err)
	}
	l.publish()
	return nil
}

// Head is the number and the hash of the newest line that this Log knows of: what an operator keeps
// elsewhere to prove later that nothing was cut off.
func (l *Log) Head() (seq uint64, hash string) {
	h := l.headSeen.Load()
	return h.seq, h.hash
}

func (l *Log) publish() {
	h := l.head
	l.headSeen.Store(&h)
}

// Close closes the file; what has been appended is durable already. It waits for an Append that is
// under way.
func (l *Log) Close() error {
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.f.Close()
}

// locked runs fn while no other process writes, with l.head as of the file at the log's path.
func (l *Log) locked(ctx context.Context, fn func() error) error {
	for {
		if err := l.lock(ctx); err != nil {
			return err
		}
		same, err := l.follow()
		if err == nil && !same {
			continue
		}
		if err == nil {
			err = l.load()
		}
		if err == nil {
			err = fn()
		}
		_ = unix.Flock(int(l.f.Fd()), unix.LOCK_UN) // it can't fail on a descriptor that took the lock
		if !errors.Is(err, errClosedSegment) {
			return err
		}
	}
}

// lock takes the lock of the file. Others hold it for one append at a time, and the lock has no way of
// being waited for and given up: so it is asked for again, a little later each time.
func (l *Log) lock(ctx context.Context) error {
	fd := int(l.f.Fd())
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		if ctx.Err() != nil {
			return fmt.Errorf("wait for the file's lock: %w", ctx.Err())
		}
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err == unix.EINTR {
			continue
		}
		if err != unix.EWOULDBLOCK {
			return fmt.Errorf("lock the file: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// catchUp takes in what other processes have appended since l.head, and repairs the end of the file where a
// crash interrupted one of them. The file is locked. kept is what an interrupted repair had cut off.
func (l *Log) catchUp(kept []byte) error {
	st, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	if st.Size() < l.head.size {
		return fmt.Errorf("the file has shrunk from %d to %d bytes: somebody cut off events; restore it from a backup, "+
			"or move it away and restart", l.head.size, st.Size())
	}
	if st.Size() == l.head.size {
		return nil
	}
	r := bufio.NewReaderSize(io.NewSectionReader(l.f, l.head.size, st.Size()-l.head.size), MaxLine)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return l.repair(bytes.Clone(line), kept)
		case l.head.size+int64(len(line)) == st.Size() && notTorn(line, l.head.seq+1, l.head.size) == "":
			return l.repair(bytes.Clone(line), kept)
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("read what was appended: %w", err)
		}
		e, err := decode(line) // refuses one that did not fit into the buffer
		if err == nil {
			err = e.follows(l.head.seq, l.head.hash)
		}
		if err != nil {
			return &Broken{Line: l.head.seq + 1, Offset: l.head.size, Reason: err.Error()}
		}
		l.head = head{e.Seq, e.Hash, l.head.size + int64(len(line))}
	}
}

// write appends one event at l.head. The file is locked and ends there.
func (l *Log) write(e Event) error {
	e.Seq, e.Prev, e.Host = l.head.seq+1, l.head.hash, l.host
	if e.Time.IsZero() {
		e.Time = l.now()
	}
	e.Time = e.Time.Round(0).UTC()
	line, err := e.encode()
	if err != nil {
		return err
	}
	if _, err := l.f.WriteAt(line, l.head.size); err != nil {
		// Nobody was told that it is there. Should this fail too, the next writer cuts it off.
		return errors.Join(explain(err), l.f.Truncate(l.head.size))
	}
	if err := l.f.Sync(); err != nil {
		// The kernel may have thrown the data away and call the next fsync a success.
		l.broken = fmt.Errorf("the disk failed: %w; repair it and restart", explain(err))
		return errors.Join(l.broken, l.f.Truncate(l.head.size))
	}
	l.head = head{e.Seq, e.Hash, l.head.size + int64(len(line))}
	return nil
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: make room on its file system; nothing can be changed until then", err)
	case errors.Is(err, unix.EIO):
		return fmt.Errorf("%w: check the disk under the state directory", err)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
