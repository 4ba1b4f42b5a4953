// Package blockfile does to a raw disk image what io.WriterAt can't: it gives space back, zeroes
// ranges without writing them, and finds holes. It serves regular files and block devices alike:
// fallocate(2) means the same on both, and unlike BLKDISCARD it promises zeros.
package blockfile

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Zero makes n bytes at offset read as zeros, exactly those, without writing them. With unmap their
// space goes back to the file system or the device; without it they stay allocated, so that a later
// write can't run out of space. An error that is errors.ErrUnsupported says that the storage has no such
// operation and nothing has changed; after any other error each of the bytes is what it was or zero.
func Zero(f *os.File, offset, n int64, unmap bool) error {
	mode := uint32(unix.FALLOC_FL_KEEP_SIZE)
	if unmap {
		mode |= unix.FALLOC_FL_PUNCH_HOLE
	} else {
		mode |= unix.FALLOC_FL_ZERO_RANGE
	}
	for {
		err := unix.Fallocate(int(f.Fd()), mode, offset, n)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENODEV, unix.EINVAL:
			// EINVAL: a block device whose blocks are larger than the range's alignment.
			return fmt.Errorf("zero %d bytes at %d of %s: %w (%w)", n, offset, f.Name(), errors.ErrUnsupported, err)
		}
		return fmt.Errorf("zero %d bytes at %d of %s: %w", n, offset, f.Name(), err)
	}
}

var zeros [256 << 10]byte

// WriteZeros writes n zero bytes at offset and says how many of them have been written.
func WriteZeros(w io.WriterAt, offset, n int64) (int64, error) {
	for done := int64(0); done < n; {
		k, err := w.WriteAt(zeros[:min(n-done, int64(len(zeros)))], offset+done)
		if done += int64(k); err != nil {
			return done, err
		}
	}
	return n, nil
}

// IsZero says whether all bytes of p are zero.
func IsZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if string(p[:n]) != string(zeros[:n]) { // a comparison without copies
			return false
		}
		p = p[n:]
	}
	return true
}

// NextData is the offset of the first byte at or after offset that may not be zero, as far as the file
// system tells: offset itself where it knows nothing of holes, size where only a hole follows. It moves
// the file's own offset, which nobody here uses.
func NextData(f *os.File, offset, size int64) int64 {
	at, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	switch {
	case err == nil:
		return min(max(at, offset), size)
	case errors.Is(err, unix.ENXIO):
		return size
	}
	return offset
}

// Sync makes what was written and zeroed durable, with as much of the metadata as is needed to read it
// back.
func Sync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("make %s durable: %w", f.Name(), err)
		}
		return nil
	}
}
