package store

import (
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/checkpoint"
)

// ChunkBytes is the unit in which disks are compared for a resync.
const ChunkBytes = 64 << 10

// Digests reads the writable disks and tells send what they hold, chunk by chunk, until send fails.
// It may run beside the worker: a chunk that changes meanwhile has its old or its new digest, and
// either is right, because the writes that follow in the stream are applied after.
func (s *Store) Digests(send func(*checkpoint.DiskDigests) error) error {
	buf := make([]byte, ChunkBytes)
	zero := digest(make([]byte, ChunkBytes))
	for i, d := range s.disks {
		if d.ReadOnly {
			continue
		}
		chunks := uint64(d.size+ChunkBytes-1) / ChunkBytes
		m := &checkpoint.DiskDigests{Disk: uint8(i), ChunkBytes: ChunkBytes}
		var data int64 // where the next data of a sparse file begins
		for c := uint64(0); c < chunks; c++ {
			at := int64(c) * ChunkBytes
			n := min(ChunkBytes, d.size-at)
			if data < at+n {
				data = max(data, nextData(d, at))
			}
			var sum checkpoint.Digest
			switch {
			case data >= at+n && n == ChunkBytes:
				sum = zero
			default:
				if k, err := d.ReadAt(buf[:n], at); err != nil && (!errors.Is(err, io.EOF) || int64(k) < n) {
					return fmt.Errorf("read disk %s for its digests: %w", d.Name(), err)
				}
				sum = digest(buf[:n])
			}
			m.Digests = append(m.Digests, sum)
			if m.Last = c+1 == chunks; m.Last || len(m.Digests) == checkpoint.MaxDigestsPerMessage {
				if err := send(m); err != nil {
					return err
				}
				m = &checkpoint.DiskDigests{Disk: uint8(i), ChunkBytes: ChunkBytes, First: c + 1}
			}
		}
	}
	return nil
}

func digest(b []byte) checkpoint.Digest { return checkpoint.Digest(xxh3.Hash128(b).Bytes()) }

// nextData is the offset of the next data at or after at, as far as the file system tells.
func nextData(d *Disk, at int64) int64 {
	off, err := unix.Seek(int(d.Fd()), at, unix.SEEK_DATA)
	switch {
	case err == nil:
		return off
	case errors.Is(err, unix.ENXIO): // only a hole up to the end
		return d.size
	}
	return at
}
