package store

import (
	"errors"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/vmm/blockfile"
)

// zeroStep is how much of a range is looked at, and written where it has to be, at a time, in bytes.
const zeroStep = 256 << 10

// zero makes a range zero: the way the twin did, or keeping its space, or by writing where this host's storage
// can do neither. Then only what is not zero yet is written, and pause is called after each step. It returns how many
// bytes were written.
func zero(d file, w *checkpoint.DiskWrite, pause func() error) (int64, error) {
	err := d.Zero(w.Offset, w.Zeros, w.Unmap)
	if w.Unmap && errors.Is(err, errors.ErrUnsupported) {
		err = d.Zero(w.Offset, w.Zeros, false)
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return 0, err
	}
	var written int64
	var buf []byte
	for at, end := w.Offset, w.Offset+w.Zeros; at < end; {
		if at = d.NextData(at); at >= end {
			break // nothing but holes
		}
		n := min(zeroStep-at%zeroStep, end-at)
		if buf == nil {
			buf = make([]byte, zeroStep)
		}
		// What can't be read is not known to be zero: writing may even heal it.
		if k, err := d.ReadAt(buf[:n], at); int64(k) < n || err != nil || !blockfile.IsZero(buf[:n]) {
			k, err := blockfile.WriteZeros(d, at, n)
			written += k
			if err != nil {
				return written, err
			}
		}
		at += n
		if err := pause(); err != nil {
			return written, err
		}
	}
	return written, nil
}
