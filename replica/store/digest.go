package store

import (
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/checkpoint"
)

// ChunkBytes is the unit in which disks are compared for a resync.
const ChunkBytes = 64 << 10

// minRun is how many chunks of a hole are worth a message that only counts them.
const minRun = 64

// Digests reads the disks and tells send what they hold, chunk by chunk, until send fails. Those that can only
// be read are among them: they have to be the same on both hosts.
// It may run beside the worker: a chunk that changes meanwhile has its old or its new digest, and
// either is right, because the writes that follow in the stream are applied after.
func (s *Store) Digests(send func(*checkpoint.DiskDigests) error) error {
	buf := make([]byte, ChunkBytes)
	zero := digest(make([]byte, ChunkBytes))
	for i, d := range s.disks {
		chunks := uint64(d.size+ChunkBytes-1) / ChunkBytes
		m := &checkpoint.DiskDigests{Disk: uint8(i), ChunkBytes: ChunkBytes}
		var data int64 // where the next data of a sparse file begins
		for c := uint64(0); c < chunks; {
			at := int64(c) * ChunkBytes
			n := min(ChunkBytes, d.size-at)
			if data < at+n {
				data = d.NextData(max(at, data))
			}
			run := uint64(max(data-at, 0)) / ChunkBytes // whole chunks without data
			switch {
			case run >= minRun && len(m.Digests) == 0:
				m.Zeros += run
				c += run
			case run >= minRun: // begins a message of its own
			case run > 0:
				m.Digests = append(m.Digests, zero)
				c++
			default:
				if k, err := d.ReadAt(buf[:n], at); err != nil && (!errors.Is(err, io.EOF) || int64(k) < n) {
					return fmt.Errorf("read disk %s for its digests: %w", d.Name(), err)
				}
				m.Digests = append(m.Digests, digest(buf[:n]))
				c++
			}
			m.Last = c == chunks
			if m.Last || len(m.Digests) == checkpoint.MaxDigestsPerMessage || run >= minRun && len(m.Digests) > 0 {
				if err := send(m); err != nil {
					return err
				}
				m = &checkpoint.DiskDigests{Disk: uint8(i), ChunkBytes: ChunkBytes, First: c}
			}
		}
	}
	return nil
}

func digest(b []byte) checkpoint.Digest { return checkpoint.Digest(xxh3.Hash128(b).Bytes()) }
