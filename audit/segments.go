package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// segment is a part of the log that has been closed: the file at path, whose first line has that number.
type segment struct {
	path  string
	first uint64
}

const seqDigits = 20 // of the largest uint64

// segmentPath is where the log at path keeps the closed segment that begins with that line.
func segmentPath(path string, first uint64) string {
	return fmt.Sprintf("%s.%0*d", path, seqDigits, first)
}

// segmentsOf lists the closed segments of the log at path, oldest first.
func segmentsOf(path string) ([]segment, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("look for segments of the log: %w", err)
	}
	prefix := filepath.Base(path) + "."
	var out []segment
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || len(digits) != seqDigits {
			continue
		}
		first, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || first == 0 {
			continue
		}
		out = append(out, segment{filepath.Join(filepath.Dir(path), e.Name()), first})
	}
	slices.SortFunc(out, func(a, b segment) int { return strings.Compare(a.path, b.path) })
	return out, nil
}

// inherit is the head of an empty file: the end of the newest closed segment.
func inherit(path string) (head, error) {
	segs, err := segmentsOf(path)
	if err != nil {
		return head{}, err
	}
	if len(segs) == 0 {
		return head{hash: genesis}, nil
	}
	f, err := os.Open(segs[len(segs)-1].path)
	if err != nil {
		return head{}, fmt.Errorf("open the segment before: %w", err)
	}
	defer f.Close()
	h, err := readHead(f)
	if err != nil {
		return head{}, fmt.Errorf("the segment %s: %w", f.Name(), err)
	}
	return head{seq: h.seq, hash: h.hash}, nil
}

// opened is the log as it is found at one moment: its closed segments that hold nothing newer than the file at
// its path, and that file.
type opened struct {
	files  []*os.File // oldest first
	active bool       // the last one is the file at the log's path
	first  uint64     // number of the first line as the first file's name has it; 1 where it is the only one
}

// name is what scanner.file is for file i.
func (o *opened) name(i int) string {
	if o.active && i == len(o.files)-1 {
		return ""
	}
	return filepath.Base(o.files[i].Name())
}

// scanner is one for the first file: it takes what its first line continues from that line, where segments
// before it were deleted.
func (o *opened) scanner() (*scanner, error) {
	s := &scanner{hash: genesis, file: o.name(0)}
	if o.first == 1 {
		return s, nil
	}
	line, err := bufio.NewReaderSize(o.files[0], MaxLine).ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return nil, err
	}
	if e, err := decode(line); err == nil && e.Seq == o.first {
		s.seq, s.hash = e.Seq-1, e.Prev
	}
	return s, nil
}

// next goes on to the file behind log.files[0], which has been read to its end: to the next that was open from the
// beginning, or to one that a writer has begun since. It reports false where there is none.
func (s *scanner) next(log *opened, path string) (bool, error) {
	if len(log.files) > 1 {
		if err := log.files[0].Close(); err != nil {
			return false, err
		}
		log.files = log.files[1:]
		s.begin(log.name(0))
		return true, nil
	}
	same, err := sameFile(log.files[0], path)
	if same || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !s.closed { // it was closed after it had been read
		s.closed = true
		return true, nil
	}
	name := ""
	f, err := os.Open(segmentPath(path, s.seq+1))
	if err == nil {
		name = filepath.Base(f.Name())
	} else if f, err = os.Open(path); err != nil {
		return false, err
	}
	if err := log.files[0].Close(); err != nil {
		return false, errors.Join(err, f.Close())
	}
	log.files[0], log.active = f, name == ""
	s.begin(name)
	return true, nil
}

func (o *opened) Close() error {
	var err error
	for _, f := range o.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// openAll opens the log at path for reading. Segments that are being deleted meanwhile are left out.
func openAll(path string) (*opened, error) {
	var active *os.File
	o := &opened{first: 1}
	var segs []segment
	var err error
	for { // until no segment was closed between the two looks
		if active, err = os.Open(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		missing := err
		if segs, err = segmentsOf(path); err != nil || missing != nil && len(segs) == 0 {
			return nil, errors.Join(missing, err, closeIf(active))
		}
		if active == nil { // a crash, or right now a writer, came between closing a segment and beginning the next
			break
		}
		if same, err := sameFile(active, path); err == nil && same {
			break
		}
		active.Close()
	}
	for _, s := range segs {
		f, err := os.Open(s.path)
		if errors.Is(err, fs.ErrNotExist) && len(o.files) == 0 {
			continue
		}
		if err != nil {
			return nil, errors.Join(err, o.Close(), closeIf(active))
		}
		if len(o.files) == 0 {
			o.first = s.first
		}
		o.files = append(o.files, f)
	}
	if o.active = active != nil; o.active {
		o.files = append(o.files, active)
	}
	return o, nil
}

func closeIf(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// sameFile says whether f is what is at path now.
func sameFile(f interface{ Stat() (fs.FileInfo, error) }, path string) (bool, error) {
	st, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the file: %w", err)
	}
	named, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	return os.SameFile(st, named), nil
}
