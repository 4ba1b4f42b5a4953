package checkpoint

import (
	"encoding/binary"
	"fmt"
)

// A word-run delta turns one buffer into another of the same length. It is a list of runs
//
//	skip u8 | count u8 | count x 8 bytes
//
// in units of 64-bit words: skip words stay as they are, count words are replaced. A run of
// count 0 only skips. Words after the last run stay.
const (
	wordBytes = 8
	maxRun    = 255
	// maxPageDelta is the longest delta of a page that is worth more than the page itself.
	maxPageDelta = PageSize / 2
)

// appendDelta appends to dst the delta that turns old into new, which have the same length, a
// multiple of 8 bytes. It gives up, with ok false, as soon as the delta exceeds limit bytes.
// Equal buffers give an empty delta.
func appendDelta(dst, old, new []byte, limit int) (delta []byte, ok bool) {
	le := binary.LittleEndian
	start := len(dst)
	n := len(new)
	old = old[:n]
	next := 0 // first byte that no run covers yet
	for i := 0; i < n; {
		// Eight words at a time while nothing differs: most of a page does not.
		for i+64 <= n {
			a, b := old[i:i+64:i+64], new[i:i+64:i+64]
			d := (le.Uint64(a[0:]) ^ le.Uint64(b[0:])) | (le.Uint64(a[8:]) ^ le.Uint64(b[8:])) |
				(le.Uint64(a[16:]) ^ le.Uint64(b[16:])) | (le.Uint64(a[24:]) ^ le.Uint64(b[24:])) |
				(le.Uint64(a[32:]) ^ le.Uint64(b[32:])) | (le.Uint64(a[40:]) ^ le.Uint64(b[40:])) |
				(le.Uint64(a[48:]) ^ le.Uint64(b[48:])) | (le.Uint64(a[56:]) ^ le.Uint64(b[56:]))
			if d != 0 {
				break
			}
			i += 64
		}
		for i < n && le.Uint64(old[i:]) == le.Uint64(new[i:]) {
			i += wordBytes
		}
		if i >= n {
			break
		}
		end := i + wordBytes
		for end < n && end-i < maxRun*wordBytes && le.Uint64(old[end:]) != le.Uint64(new[end:]) {
			end += wordBytes
		}
		skip := (i - next) / wordBytes
		for ; skip > maxRun; skip -= maxRun {
			dst = append(dst, maxRun, 0)
		}
		dst = append(dst, byte(skip), byte((end-i)/wordBytes))
		dst = append(dst, new[i:end]...)
		if len(dst)-start > limit {
			return dst[:start], false
		}
		i, next = end, end
	}
	return dst, true
}

// applyDelta changes buf, which holds the old content, into the new one.
func applyDelta(buf, delta []byte) error {
	at := 0
	for len(delta) > 0 {
		if len(delta) < 2 {
			return fmt.Errorf("%w: delta ends inside a run header", ErrCorrupt)
		}
		at += int(delta[0]) * wordBytes
		n := int(delta[1]) * wordBytes
		delta = delta[2:]
		if n > len(delta) || at+n > len(buf) {
			return fmt.Errorf("%w: delta run of %d bytes at %d leaves its buffer", ErrCorrupt, n, at)
		}
		copy(buf[at:at+n], delta)
		at, delta = at+n, delta[n:]
	}
	return nil
}
