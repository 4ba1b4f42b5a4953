package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Broken tells of a line that is not what it must be.
type Broken struct {
	Line   uint64 // of the file, counted from 1; 0 where only the end of the log was looked at
	Offset int64  // of its first byte in the file
	File   string // the name of a closed segment; "": the file at the log's path
	Reason string
	// Torn says that it is the rest of an append that a crash interrupted: no sign of tampering. The
	// next process that writes to the log cuts it off.
	Torn bool
}

func (b *Broken) Error() string {
	of := ""
	if b.File != "" {
		of = " of " + b.File
	}
	if b.Line == 0 {
		return fmt.Sprintf("the last line%s (byte %d) %s", of, b.Offset, b.Reason)
	}
	return fmt.Sprintf("line %d%s (byte %d) %s", b.Line, of, b.Offset, b.Reason)
}

// Summary is the result of a verification.
type Summary struct {
	Events uint64    `json:"events"`
	From   uint64    `json:"from,omitempty"` // number of the first event; those before it were deleted, as log-trim events say
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
	Head   string    `json:"head"` // hash of the last line
}

// Verify checks every line of the log at path, closed segments included, and that each continues the one
// before, and that only segments of which the log says so are deleted. It reports
// the first broken line as a *Broken; the Summary then covers the lines before it. Writers may go on
// meanwhile: what was there at the call is verified.
func Verify(path string) (Summary, error) {
	s := Summary{Head: genesis}
	before, trimmed := genesis, false
	err := scan(path, func(e Event, err error) bool {
		if err != nil {
			return false
		}
		s.Events++
		if s.From == 0 {
			s.From, s.First, before = e.Seq, e.Time, e.Prev
		}
		s.Last, s.Head = e.Time, e.Hash
		trimmed = trimmed || e.trims(s.From-1, before)
		return true
	})
	if err == nil && s.From > 1 && !trimmed {
		err = &Broken{Line: 1, File: filepath.Base(segmentPath(path, s.From)), Reason: fmt.Sprintf(
			"has sequence number %d, and no event says that what was before it has been deleted: a segment was taken away", s.From)}
	}
	if err != nil {
		return s, fmt.Errorf("verify the event log %s: %w", path, err)
	}
	return s, nil
}

// trims says whether e tells that a segment was deleted whose last line has that number and hash.
func (e *Event) trims(seq uint64, hash string) bool {
	through, ok := e.Detail["through"].(float64)
	return e.Kind == LogTrim && ok && uint64(through) == seq && e.Detail["hash"] == hash
}

// Filter selects events. Its zero value selects all.
type Filter struct {
	Guest string    // this guest's
	Kinds []Kind    // one of these; none: all
	Since time.Time // at or after this moment
}

// Match reports whether the filter selects e.
func (f Filter) Match(e Event) bool {
	if f.Guest != "" && e.Guest != f.Guest || e.Time.Before(f.Since) {
		return false
	}
	for _, k := range f.Kinds {
		if e.Kind == k {
			return true
		}
	}
	return len(f.Kinds) == 0
}

// Read goes through the events that are in the log at path. A line that is broken comes as an error, a
// *Broken; whoever goes on gets the lines behind it.
func Read(path string, f Filter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		err := scan(path, func(e Event, err error) bool {
			if err != nil {
				return yield(Event{}, err)
			}
			return !f.Match(e) || yield(e, nil)
		})
		var broken *Broken
		if err != nil && !errors.As(err, &broken) { // broken lines have been told of
			yield(Event{}, fmt.Errorf("read the event log %s: %w", path, err))
		}
	}
}

// followInterval is how often Follow looks for new events.
const followInterval = 200 * time.Millisecond

// Follow is Read, and then waits for further events until ctx is done.
func Follow(ctx context.Context, path string, f Filter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		log, err := openAll(path)
		if err != nil {
			yield(Event{}, fmt.Errorf("open the event log: %w", err))
			return
		}
		defer func() { log.Close() }()
		s, err := log.scanner()
		if err != nil {
			yield(Event{}, fmt.Errorf("read the event log %s: %w", path, err))
			return
		}
		told := int64(-1) // offset of an end that is damaged: it stays where it is
		tick := time.NewTicker(followInterval)
		defer tick.Stop()
		for {
			more, err := s.run(log.files[0], func(e Event, err error) bool {
				var b *Broken
				if errors.As(err, &b) {
					if b.Torn || b.Offset == told {
						return true // the next writer repairs it
					}
					told = b.Offset
				}
				if err != nil {
					return yield(Event{}, err)
				}
				return !f.Match(e) || yield(e, nil)
			})
			if err != nil {
				yield(Event{}, fmt.Errorf("read the event log %s: %w", path, err))
				return
			}
			if !more {
				return
			}
			switch on, err := s.next(log, path); {
			case err != nil:
				yield(Event{}, fmt.Errorf("read the event log %s: %w", path, err))
				return
			case on:
				told = -1
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// scan hands every line to fn, broken ones as an error, until fn returns false. It returns the first
// broken line, or what kept it from reading.
func scan(path string, fn func(Event, error) bool) error {
	log, err := openAll(path)
	if err != nil {
		return err
	}
	defer log.Close()
	s, err := log.scanner()
	if err != nil {
		return err
	}
	var first error
	for i, f := range log.files {
		if i > 0 {
			s.begin(log.name(i))
		}
		more, err := s.run(f, func(e Event, err error) bool {
			if first == nil {
				first = err
			}
			return fn(e, err)
		})
		if err != nil || !more {
			return errors.Join(err, first)
		}
	}
	return first
}

// scanner goes through a log, in one run or several.
type scanner struct {
	file   string // the closed segment's name; "": the file at the log's path
	offset int64
	line   uint64
	closed bool // the file will not grow any more
	seq    uint64
	hash   string
}

// begin goes on at the beginning of another file.
func (s *scanner) begin(name string) {
	s.file, s.offset, s.line, s.closed = name, 0, 0, false
}

// run goes on to the end that the file has now. It reports false where fn did.
func (s *scanner) run(f *os.File, fn func(Event, error) bool) (bool, error) {
	end, err := settledSize(f)
	if err != nil {
		return false, err
	}
	if end < s.offset {
		return false, fmt.Errorf("the file has shrunk from %d to %d bytes while it was read", s.offset, end)
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, s.offset, end-s.offset), MaxLine)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if len(line) == 0 {
				return true, nil
			}
			return fn(Event{}, s.tail(line)), nil
		}
		size := int64(len(line))
		if errors.Is(err, bufio.ErrBufferFull) {
			n, err := skipLine(r)
			if err != nil {
				return false, err
			}
			size += n
			line = nil // too long to be one of ours
		} else if err != nil {
			return false, err
		}
		e, bad := decode(line)
		if bad != nil && s.offset+size == end {
			if b := s.tail(line); b.Torn {
				return fn(Event{}, b), nil
			}
		}
		s.line++
		if bad == nil {
			bad = e.follows(s.seq, s.hash)
			s.seq, s.hash = e.Seq, e.Hash
		} else {
			s.seq++
			s.hash = prevOf(r, s.hash)
		}
		at := s.offset
		s.offset += size
		if bad != nil {
			if !fn(Event{}, &Broken{Line: s.line, Offset: at, File: s.file, Reason: bad.Error()}) {
				return false, nil
			}
		} else if !fn(e, nil) {
			return false, nil
		}
	}
}

// tail is what is wrong with the last line, which has no end or does not hold what it should.
func (s *scanner) tail(line []byte) *Broken {
	b := &Broken{Line: s.line + 1, Offset: s.offset, File: s.file, Reason: notTorn(line, s.seq+1, s.offset)}
	if b.Reason == "" && s.file == "" {
		b.Torn = true
		b.Reason = fmt.Sprintf("is the rest of an append of which a crash left %d bytes; the next writer cuts it off and logs that", len(line))
	} else if b.Reason == "" {
		b.Reason = "has no end, though another segment follows"
	}
	return b
}

// prevOf peeks at the line behind a broken one for the hash that it continues: the broken line is told
// of once, not its neighbour too.
func prevOf(r *bufio.Reader, otherwise string) string {
	b, _ := r.Peek(r.Size())
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		if e, err := decode(b[:i+1]); err == nil {
			return e.Prev
		}
	}
	return otherwise
}

// skipLine reads up to the next newline, or to the end, and counts the bytes.
func skipLine(r *bufio.Reader) (int64, error) {
	var n int64
	for {
		b, err := r.ReadSlice('\n')
		n += int64(len(b))
		if err == nil || errors.Is(err, io.EOF) {
			return n, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return n, err
		}
	}
}

// settledSize is the size of the file at a moment at which nobody was appending.
func settledSize(f *os.File) (int64, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("lock the file: %w", err)
		}
		break
	}
	defer func() { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// readHead finds the last line of the log and checks it. What follows it, without a newline, is not
// looked at.
func readHead(f file) (head, error) {
	st, err := f.Stat()
	if err != nil {
		return head{}, err
	}
	// Room for the rest of an append, a whole line before it, and that line's predecessor's newline.
	start := max(0, st.Size()-2*MaxLine-1)
	b := make([]byte, st.Size()-start)
	if _, err := f.ReadAt(b, start); err != nil && len(b) > 0 {
		return head{}, fmt.Errorf("read its end: %w", err)
	}
	last := bytes.LastIndexByte(b, '\n')
	if last < 0 {
		if start > 0 {
			return head{}, &Broken{Offset: start, Reason: "has no line end: the file is not an event log"}
		}
		return head{hash: genesis}, nil
	}
	begin := bytes.LastIndexByte(b[:last], '\n') + 1
	e, err := decode(b[begin : last+1])
	if err != nil && last == len(b)-1 && bytes.IndexByte(b[begin:], 0) >= 0 {
		// What a crash has left may have the line's end and not all before it. The line before is what counts.
		if begin == 0 && start == 0 {
			return head{hash: genesis}, nil
		}
		if begin > 0 {
			last = begin - 1
			begin = bytes.LastIndexByte(b[:last], '\n') + 1
			e, err = decode(b[begin : last+1])
		}
	}
	if err != nil {
		return head{}, &Broken{Offset: start + int64(begin), Reason: err.Error()}
	}
	return head{e.Seq, e.Hash, start + int64(last) + 1}, nil
}
