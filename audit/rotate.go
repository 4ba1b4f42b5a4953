package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A log grows in segments. Closing one and beginning the next:
//
//  1. under the file's lock it is renamed, durably: its name ends in the number of its first line;
//  2. a new one is made at the log's path, durably;
//  3. under the new one's lock the first line continues the last one of the segment before.
//
// A crash between 1 and 2 leaves no file at the log's path: whoever opens the log makes it. A process that
// still has the closed file open finds another one at the path, and goes on there.
//
// A segment that is not to be kept is deleted after a log-trim event that holds the number and the hash of its
// last line. The first segment that is left continues just that line, so nobody can take away more unseen.

// Limits bound the log's size.
type Limits struct {
	// SegmentBytes is the size of the file at which it is closed and a new one begins; 0: never.
	SegmentBytes int64
	// KeepSegments is how many closed segments are kept; 0: all.
	KeepSegments int
}

// errClosedSegment says that this Log has just closed the segment that it had open.
var errClosedSegment = errors.New("the segment was closed")

// openFile opens the file at the log's path, and makes it where there is none.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the event log: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		f.Close()
		return nil, fmt.Errorf("make the event log %s durable: %w", path, err)
	}
	return f, nil
}

// follow makes sure that l.f is the file at the log's path. It reports false where it was not, and is now: then
// it has to be locked again. l.f is locked.
func (l *Log) follow() (bool, error) {
	same, err := sameFile(l.f, l.path)
	if same {
		return true, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if l.loaded {
		closed, err := l.isClosedSegment()
		if err != nil {
			return false, err
		}
		if !closed {
			return false, fmt.Errorf("the file was moved or deleted while it was in use: put it back, or restart what writes to it")
		}
	}
	f, err := openFile(l.path)
	if err != nil {
		return false, err
	}
	old := l.f
	l.f, l.loaded, l.trims = f, false, true
	return false, old.Close() // and with it goes the lock
}

// isClosedSegment says whether what l has open is a segment that somebody has closed since, or closed and
// deleted: where that was not this program, what follows does not continue it.
func (l *Log) isClosedSegment() (bool, error) {
	st, err := l.f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the file: %w", err)
	}
	segs, err := segmentsOf(l.path)
	if err != nil {
		return false, err
	}
	for _, s := range segs {
		if was, err := os.Lstat(s.path); err == nil && os.SameFile(st, was) {
			return true, nil
		}
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0 && len(segs) > 0, nil
}

// load finds the end of the file at the log's path, which is locked: once for each file.
func (l *Log) load() error {
	if l.loaded {
		return nil
	}
	h, err := readHead(l.f)
	if err == nil && h.seq == 0 {
		h, err = inherit(l.path)
	}
	if err != nil {
		return err
	}
	if h.seq < l.head.seq || h.seq == l.head.seq && h.hash != l.head.hash {
		return fmt.Errorf("the file ends with line %d, which does not continue line %d that this process has seen: somebody replaced it; "+
			"restore it from a backup, or move it and its closed segments away and restart", h.seq, l.head.seq)
	}
	l.head, l.loaded = h, true
	return nil
}

// rotate closes the segment where it is large enough. Where that can't be done the file goes on growing.
func (l *Log) rotate() error {
	if l.limits.SegmentBytes <= 0 || l.head.size < l.limits.SegmentBytes {
		return nil
	}
	line, err := bufio.NewReaderSize(io.NewSectionReader(l.f, 0, l.head.size), MaxLine).ReadSlice('\n')
	if err != nil {
		return nil //nolint:nilerr // the log goes on in this file, and whoever verifies it names what is wrong
	}
	e, err := decode(line)
	if err != nil {
		return &Broken{Line: 1, Reason: err.Error()}
	}
	to := segmentPath(l.path, e.Seq)
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return nil // not ours; nothing is replaced
	}
	if err := os.Rename(l.path, to); err != nil {
		return nil //nolint:nilerr // the log goes on in this file
	}
	if err := syncDir(filepath.Dir(l.path)); err != nil {
		return fmt.Errorf("close a segment of the log: %w", explain(err))
	}
	return errClosedSegment
}

// keep trims; where that fails it says so in the log, once, and tries again when the next segment is closed.
func (l *Log) keep() {
	err := l.trim()
	if err == nil {
		return
	}
	l.trims = false
	if l.told || l.broken != nil {
		return
	}
	l.told = true
	// Should this fail too, then so does the next append, which tells its caller.
	_ = l.write(Event{Kind: Fault, Actor: "audit", Detail: map[string]any{"reason": "old segments of the event log are not deleted: " + err.Error()}})
}

// trim deletes the oldest segments, of which there are more than are kept: each after an event that says so.
func (l *Log) trim() error {
	if !l.trims || l.limits.KeepSegments <= 0 {
		return nil
	}
	segs, err := segmentsOf(l.path)
	if err != nil {
		return err
	}
	for ; len(segs) > l.limits.KeepSegments; segs = segs[1:] {
		f, err := os.Open(segs[0].path)
		if err != nil {
			return fmt.Errorf("open a segment that is to be deleted: %w", err)
		}
		end, err := readHead(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("read a segment that is to be deleted: %w", err)
		}
		err = l.write(Event{Kind: LogTrim, Actor: "audit", Detail: map[string]any{
			"reason": fmt.Sprintf("%d closed segments are kept", l.limits.KeepSegments),
			"file":   filepath.Base(segs[0].path), "from": segs[0].first, "through": end.seq, "hash": end.hash,
		}})
		if err != nil {
			return err
		}
		if err := os.Remove(segs[0].path); err != nil {
			return fmt.Errorf("delete a segment: %w", err)
		}
		// One after the other: what a crash brings back must be whole.
		if err := syncDir(filepath.Dir(l.path)); err != nil {
			return fmt.Errorf("delete a segment: %w", err)
		}
	}
	l.trims = false
	return nil
}
