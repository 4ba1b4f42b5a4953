package diskimage

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Create makes an empty raw disk: a sparse file of size bytes, a multiple of SectorBytes.
func Create(path string, size uint64, overwrite bool) (Info, error) {
	if err := checkSize(size); err != nil {
		return Info{}, err
	}
	err := replace(path, overwrite, func(temporary string) error {
		f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(f.Truncate(int64(size)), f.Close())
	})
	if err != nil {
		return Info{}, fmt.Errorf("create %s: %w", path, err)
	}
	return describeRaw(path)
}

// Resize makes a raw disk larger, with zeroes at its end, or, with shrink, smaller, which cuts off what
// lies there.
func Resize(path string, size uint64, shrink bool) (Info, error) {
	if err := checkSize(size); err != nil {
		return Info{}, err
	}
	f, err := OpenLocked(path, os.O_RDWR)
	if err != nil {
		return Info{}, fmt.Errorf("resize: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return Info{}, fmt.Errorf("resize %s: %w", path, err)
	case !st.Mode().IsRegular():
		return Info{}, fmt.Errorf("resize %s: it is no regular file", path)
	case uint64(st.Size()) > size && !shrink:
		return Info{}, fmt.Errorf("resize %s: it has %d bytes, and a smaller size cuts off what lies behind byte %d: shrink the file systems in it first, then give --shrink",
			path, st.Size(), size)
	}
	if err := errors.Join(f.Truncate(int64(size)), f.Sync()); err != nil {
		return Info{}, fmt.Errorf("resize %s: %w", path, err)
	}
	return describeRaw(path)
}

func checkSize(size uint64) error {
	if size == 0 || size%SectorBytes != 0 || size > 1<<62 {
		return fmt.Errorf("a disk of %d bytes: its size is a multiple of %d, and not 0", size, SectorBytes)
	}
	return nil
}

func describeRaw(path string) (Info, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Info{}, err
	}
	i := Info{Path: path, Format: Raw, SizeBytes: uint64(st.Size())}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		i.ActualBytes = uint64(s.Blocks) * 512 // stat(2): units of 512 bytes, whatever the file system's
	}
	return i, nil
}
