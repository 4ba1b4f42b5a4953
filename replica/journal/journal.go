package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	block       = 4096
	format      = 2
	headerMagic = 0x484a5850 // "PXJH"
	segMagic    = 0x534a5850 // "PXJS"
	recMagic    = 0x524a5850 // "PXJR"

	writeData  = 0
	writeZeros = 1
	writeUnmap = 2

	recHeader   = 64
	writeHeader = 18
	oldHeader   = 13 // in format 1, which knew no zeros
	segments    = 2

	// MinBytes is the size of the smallest journal.
	MinBytes = 2*block + segments*4*block
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of this package.
var (
	// ErrFull says that the epoch does not fit at the moment: records have to reach the disks first.
	ErrFull = errors.New("disk journal is full")
	// ErrTooLarge says that the epoch would not fit into an empty journal.
	ErrTooLarge = errors.New("epoch's disk writes exceed the disk journal")
)

// File is where a journal lies.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Epoch is the content of a record.
type Epoch struct {
	Term   pact.Term
	Number pact.Epoch
	Writes []checkpoint.DiskWrite
}

// Slot is reserved space for one epoch.
type Slot struct {
	seg   int
	off   int64 // within the file
	size  int64
	first bool // the first record of its segment
	undo  plan
	era   uint64 // the generation in which it was reserved
}

type plan struct {
	seg int
	off int64 // next free byte of the segment, relative to its start
}

// Journal is an open journal. Reserve and Cancel may be called beside the other methods, which belong
// to one goroutine.
type Journal struct {
	f       File
	segSize int64
	want    int64 // segSize from the next Reset on: the file may have been made for another size

	found      uint32 // format of what the file held
	generation uint64
	slot       uint64 // number of the newest header slot
	next       uint64 // number of the next record
	done       uint64 // newest record known to be on the disks
	buf        []byte

	mu      sync.Mutex
	cond    *sync.Cond
	plan    plan
	busy    [segments]bool   // holds records that are not known to be on the disks, or is reserved
	last    [segments]uint64 // newest record in it
	open    [segments]int    // reserved and not yet appended or cancelled
	err     error
	voiding bool // a Reset is under way
}

// Open opens the journal in f, which has size bytes, and hands every whole epoch that may not be on
// the disks yet to replay, in order. Afterwards the caller makes the disks durable and calls Reset. An
// empty file becomes an empty journal.
func Open(f File, size int64, replay func(Epoch) error) (*Journal, error) {
	if size < MinBytes {
		return nil, fmt.Errorf("disk journal of %d bytes: at least %d are needed", size, MinBytes)
	}
	j := &Journal{f: f, want: (size - 2*block) / segments &^ (block - 1), next: 1}
	j.segSize = j.want
	j.cond = sync.NewCond(&j.mu)
	if err := j.readHeader(); err != nil {
		return nil, err
	}
	n, err := j.replay(replay)
	if err != nil {
		return nil, err
	}
	j.next = n
	return j, nil
}

// Reset makes all records void, durably. The disks hold what is needed of them.
func (j *Journal) Reset() error {
	j.mu.Lock()
	j.voiding = true
	j.mu.Unlock()
	// Not under the lock: where the disk does not answer, Reserve must still be able to fail.
	err := j.writeHeader(j.generation+1, j.next-1, j.want)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.voiding = false
	j.cond.Broadcast()
	if err != nil {
		return err
	}
	j.generation++
	j.done = j.next - 1
	j.segSize = j.want
	j.plan = plan{}
	j.busy, j.last, j.open = [segments]bool{}, [segments]uint64{}, [segments]int{}
	return nil
}

// Size is the number of bytes that an epoch with these writes takes.
func Size(writes []checkpoint.DiskWrite) int64 {
	n := int64(recHeader)
	for _, w := range writes {
		n += writeHeader + int64(len(w.Data))
	}
	return (n + block - 1) &^ (block - 1)
}

// Reserve finds space for an epoch of so many bytes (see Size). It does not wait: ErrFull says that
// the caller should, with WaitFree. Slots are appended or cancelled in the order of their reservation;
// only the newest may be cancelled.
func (j *Journal) Reserve(size int64) (Slot, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return Slot{}, j.err
	}
	if size > j.segSize-block {
		return Slot{}, fmt.Errorf("%w: %d bytes of at most %d (set journal_bytes higher)", ErrTooLarge, size, j.segSize-block)
	}
	p := j.plan
	if j.voiding {
		return Slot{}, ErrFull
	}
	if p.off+size > j.segSize {
		p = plan{seg: (p.seg + 1) % segments}
		if j.busy[p.seg] {
			return Slot{}, ErrFull
		}
	}
	s := Slot{seg: p.seg, size: size, undo: j.plan, era: j.generation}
	if p.off == 0 {
		s.first, p.off = true, block
	}
	s.off = j.start(p.seg) + p.off
	p.off += size
	j.plan = p
	j.busy[p.seg] = true
	j.open[p.seg]++
	return s, nil
}

// Cancel gives the newest reservation back.
func (j *Journal) Cancel(s Slot) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if s.era != j.generation {
		return
	}
	j.plan = s.undo
	j.open[s.seg]--
	if s.first {
		j.busy[s.seg] = false
	}
	j.cond.Broadcast()
}

// WaitFree waits until Done, Cancel, Reset or Fail may have made room.
func (j *Journal) WaitFree(size int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.err == nil && (j.voiding || j.plan.off+size > j.segSize && j.busy[(j.plan.seg+1)%segments]) {
		j.cond.Wait()
	}
	return j.err
}

// Fail makes every waiting and later Reserve return err.
func (j *Journal) Fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = err
	}
	j.cond.Broadcast()
}

// Append writes an epoch into its slot and returns its number. It is durable after Sync.
func (j *Journal) Append(s Slot, e Epoch) (uint64, error) {
	if Size(e.Writes) != s.size {
		return 0, fmt.Errorf("epoch %d takes %d bytes of the disk journal, %d were reserved", e.Number, Size(e.Writes), s.size)
	}
	if s.era != j.generation {
		return 0, fmt.Errorf("epoch %d was reserved in a disk journal that has been made void since", e.Number)
	}
	if s.first {
		if err := j.beginSegment(s.seg); err != nil {
			return 0, err
		}
	}
	j.encode(e)
	if _, err := j.f.WriteAt(j.buf, s.off); err != nil {
		return 0, fmt.Errorf("append epoch %d to the disk journal: %w", e.Number, err)
	}
	n := j.next
	j.next++
	j.mu.Lock()
	j.last[s.seg] = n
	j.open[s.seg]--
	j.mu.Unlock()
	return n, nil
}

// Sync makes all appended epochs durable.
func (j *Journal) Sync() error {
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("make the disk journal durable: %w", err)
	}
	return nil
}

// Done says that the records up to number n are durable on the disks. Segments that hold nothing
// newer, and into which nothing goes any more, become free.
func (j *Journal) Done(n uint64) error {
	j.mu.Lock()
	free := j.frees(n)
	var last uint64
	if free >= 0 {
		last = j.last[free]
	}
	j.mu.Unlock()
	if free < 0 {
		return nil
	}
	// All that precede the other segment's first record are on the disks. The header must say so
	// before the segment is overwritten: a replay that found the gap would cut what follows.
	if last > j.done {
		if err := j.writeHeader(j.generation, last, j.segSize); err != nil {
			return err
		}
		j.done = last
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.frees(n) == free { // else a cancelled reservation has led back into it
		j.busy[free] = false
		j.cond.Broadcast()
	}
	return nil
}

// Frees says whether Done(n) would make room.
func (j *Journal) Frees(n uint64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.frees(n) >= 0
}

// frees is the segment that Done(n) frees, or -1; j.mu is held.
func (j *Journal) frees(n uint64) int {
	for i := range j.busy {
		if i != j.plan.seg && j.busy[i] && j.open[i] == 0 && j.last[i] <= n {
			return i
		}
	}
	return -1
}

func (j *Journal) start(seg int) int64 { return 2*block + int64(seg)*j.segSize }

// encode puts the record into j.buf.
func (j *Journal) encode(e Epoch) {
	size := Size(e.Writes)
	if int64(cap(j.buf)) < size {
		j.buf = make([]byte, size+size/2)
	}
	j.buf = j.buf[:recHeader]
	clear(j.buf)
	le := binary.LittleEndian
	for i := range e.Writes {
		w := &e.Writes[i]
		j.buf = append(j.buf, w.Disk, kindOf(w))
		j.buf = le.AppendUint64(j.buf, uint64(w.Offset))
		j.buf = le.AppendUint64(j.buf, uint64(w.Len()))
		j.buf = append(j.buf, w.Data...)
	}
	h, body := j.buf[:recHeader], j.buf[recHeader:]
	le.PutUint32(h[0:], recMagic)
	le.PutUint32(h[4:], uint32(len(e.Writes)))
	le.PutUint64(h[8:], j.generation)
	le.PutUint64(h[16:], j.next)
	le.PutUint64(h[24:], uint64(e.Term))
	le.PutUint64(h[32:], uint64(e.Number))
	le.PutUint64(h[40:], uint64(len(body)))
	le.PutUint64(h[48:], xxh3.Hash(body))
	le.PutUint32(h[60:], crc32.Checksum(h[:60], castagnoli))
	n := len(j.buf)
	j.buf = j.buf[:size]
	clear(j.buf[n:])
}

func kindOf(w *checkpoint.DiskWrite) byte {
	switch {
	case w.Zeros == 0:
		return writeData
	case w.Unmap:
		return writeUnmap
	}
	return writeZeros
}

func (j *Journal) beginSegment(seg int) error {
	var b [block]byte
	le := binary.LittleEndian
	le.PutUint32(b[0:], segMagic)
	le.PutUint32(b[4:], format)
	le.PutUint64(b[8:], j.generation)
	le.PutUint64(b[16:], j.next)
	le.PutUint32(b[24:], crc32.Checksum(b[:24], castagnoli))
	if _, err := j.f.WriteAt(b[:], j.start(seg)); err != nil {
		return fmt.Errorf("begin a segment of the disk journal: %w", err)
	}
	return nil
}

// writeHeader writes these into the older slot, durably.
func (j *Journal) writeHeader(generation, done uint64, segSize int64) error {
	j.slot++
	var b [block]byte
	le := binary.LittleEndian
	le.PutUint32(b[0:], headerMagic)
	le.PutUint32(b[4:], format)
	le.PutUint64(b[8:], j.slot)
	le.PutUint64(b[16:], generation)
	le.PutUint64(b[24:], done)
	le.PutUint64(b[32:], uint64(segSize))
	le.PutUint32(b[40:], crc32.Checksum(b[:40], castagnoli))
	if _, err := j.f.WriteAt(b[:], int64(j.slot%2)*block); err != nil {
		return fmt.Errorf("write the disk journal's header: %w", err)
	}
	return j.Sync()
}
