package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// readHeader takes the newer of the two slots; a file without any is an empty journal.
func (j *Journal) readHeader() error {
	le := binary.LittleEndian
	var found bool
	for i := range 2 {
		var b [44]byte
		if err := readAt(j.f, b[:], int64(i)*block); err != nil {
			return fmt.Errorf("read the disk journal's header: %w", err)
		}
		if le.Uint32(b[0:]) != headerMagic || le.Uint32(b[40:]) != crc32.Checksum(b[:40], castagnoli) {
			continue
		}
		v := le.Uint32(b[4:])
		if v < 1 || v > format {
			return fmt.Errorf("disk journal has format %d, this program reads up to %d: upgrade this host first", v, format)
		}
		if s := le.Uint64(b[8:]); !found || s > j.slot {
			found, j.slot, j.found = true, s, v
			j.generation, j.done = le.Uint64(b[16:]), le.Uint64(b[24:])
			j.segSize = int64(le.Uint64(b[32:]))
		}
	}
	if j.segSize < block || j.segSize%block != 0 {
		return fmt.Errorf("disk journal's header speaks of segments of %d bytes", j.segSize)
	}
	return nil
}

// replay hands out the whole epochs that may not be on the disks, and returns the number of the next
// record.
func (j *Journal) replay(apply func(Epoch) error) (uint64, error) {
	type segment struct {
		at    int64
		first uint64
	}
	le := binary.LittleEndian
	var segs []segment
	for i := range segments {
		var b [28]byte
		at := j.start(i)
		if err := readAt(j.f, b[:], at); err != nil {
			return 0, fmt.Errorf("read a segment of the disk journal: %w", err)
		}
		if le.Uint32(b[0:]) != segMagic || le.Uint32(b[24:]) != crc32.Checksum(b[:24], castagnoli) || le.Uint64(b[8:]) != j.generation {
			continue
		}
		segs = append(segs, segment{at, le.Uint64(b[16:])})
	}
	if len(segs) == 2 && segs[0].first > segs[1].first {
		segs[0], segs[1] = segs[1], segs[0]
	}
	next := j.done + 1
	for _, s := range segs {
		if s.first > next {
			break // a gap: what precedes this segment was torn off
		}
		n, err := j.replaySegment(s.at, s.first, apply)
		if err != nil {
			return 0, err
		}
		next = max(next, n)
	}
	return next, nil
}

// replaySegment goes through the records of a segment and returns the number after its last whole one.
func (j *Journal) replaySegment(start int64, number uint64, apply func(Epoch) error) (uint64, error) {
	le := binary.LittleEndian
	for at := start + block; at+recHeader <= start+j.segSize; number++ {
		var h [recHeader]byte
		if err := readAt(j.f, h[:], at); err != nil {
			return 0, fmt.Errorf("read a record of the disk journal: %w", err)
		}
		n := le.Uint64(h[40:])
		if le.Uint32(h[0:]) != recMagic || le.Uint32(h[60:]) != crc32.Checksum(h[:60], castagnoli) ||
			le.Uint64(h[8:]) != j.generation || le.Uint64(h[16:]) != number || n > uint64(start+j.segSize-at-recHeader) {
			return number, nil
		}
		size := (int64(n) + recHeader + block - 1) &^ (block - 1)
		if number > j.done {
			body := make([]byte, n)
			if err := readAt(j.f, body, at+recHeader); err != nil {
				return 0, fmt.Errorf("read a record of the disk journal: %w", err)
			}
			if xxh3.Hash(body) != le.Uint64(h[48:]) {
				return number, nil
			}
			e := Epoch{Term: pact.Term(le.Uint64(h[24:])), Number: pact.Epoch(le.Uint64(h[32:]))}
			var ok bool
			if e.Writes, ok = parseWrites(body, int(le.Uint32(h[4:])), j.found); !ok {
				return 0, fmt.Errorf("epoch %d in the disk journal has a good checksum and can't be parsed: it was written by another program", e.Number)
			}
			if err := apply(e); err != nil {
				return 0, fmt.Errorf("replay epoch %d from the disk journal: %w", e.Number, err)
			}
		}
		at += size
	}
	return number, nil
}

func parseWrites(b []byte, count int, format uint32) ([]checkpoint.DiskWrite, bool) {
	le := binary.LittleEndian
	var out []checkpoint.DiskWrite
	for len(b) > 0 {
		var w checkpoint.DiskWrite
		var kind byte
		var n uint64
		switch {
		case format == 1 && len(b) >= oldHeader:
			w.Disk, w.Offset, n = b[0], int64(le.Uint64(b[1:])), uint64(le.Uint32(b[9:]))
			b = b[oldHeader:]
		case format > 1 && len(b) >= writeHeader:
			w.Disk, kind, w.Offset, n = b[0], b[1], int64(le.Uint64(b[2:])), le.Uint64(b[10:])
			b = b[writeHeader:]
		default:
			return nil, false
		}
		switch {
		case w.Offset < 0 || n > uint64(math.MaxInt64-w.Offset) || kind > writeUnmap:
			return nil, false
		case kind != writeData:
			w.Zeros, w.Unmap = int64(n), kind == writeUnmap
		case n > uint64(len(b)):
			return nil, false
		default:
			w.Data, b = b[:n:n], b[n:]
		}
		out = append(out, w)
	}
	return out, len(out) == count
}

// readAt is ReadAt where what lies beyond the end of the file reads as zeros.
func readAt(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}
