// Package codec reads and writes the state of a device: a flat sequence of little-endian
// integers and counted bytes. Writing is done with encoding/binary's Append functions and the
// few helpers here; reading goes through Reader, which never panics, whatever the bytes are.
package codec

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// AppendBool appends one byte, 0 or 1.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// AppendBytes appends p with its length (32 bits) before it.
func AppendBytes(b, p []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
	return append(b, p...)
}

// Reader takes values off a state. After the first failure all further values are zero and Err
// says what was wrong, so that a decoder checks once, at its end.
type Reader struct {
	b   []byte
	err error
}

// NewReader reads b.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Failf records an error of the caller's own, a value out of range for example. The first one stays.
func (r *Reader) Failf(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", platform.ErrState, fmt.Sprintf(format, args...))
	}
	r.b = nil
}

// Err is the first failure.
func (r *Reader) Err() error { return r.err }

// Done is the first failure, or an error when bytes are left over.
func (r *Reader) Done() error {
	if r.err == nil && len(r.b) != 0 {
		r.Failf("%d bytes too many", len(r.b))
	}
	return r.err
}

// Take returns the next n bytes, which alias the state, or nil.
func (r *Reader) Take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > len(r.b) {
		r.Failf("%d bytes are missing", n-len(r.b))
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

// Fill copies the next len(p) bytes into p.
func (r *Reader) Fill(p []byte) { copy(p, r.Take(len(p))) }

// Bytes returns a counted sequence of at most limit bytes; it aliases the state.
func (r *Reader) Bytes(limit int) []byte {
	n := r.U32()
	if uint64(n) > uint64(limit) {
		r.Failf("a field of %d bytes where %d are the most", n, limit)
		return nil
	}
	return r.Take(int(n))
}

// U8 takes an 8-bit value.
func (r *Reader) U8() uint8 {
	if p := r.Take(1); p != nil {
		return p[0]
	}
	return 0
}

// Bool takes a byte that must be 0 or 1.
func (r *Reader) Bool() bool {
	v := r.U8()
	if v > 1 {
		r.Failf("%d where a truth value is expected", v)
	}
	return v == 1
}

// U16 takes a 16-bit value.
func (r *Reader) U16() uint16 {
	if p := r.Take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

// U32 takes a 32-bit value.
func (r *Reader) U32() uint32 {
	if p := r.Take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// U64 takes a 64-bit value.
func (r *Reader) U64() uint64 {
	if p := r.Take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}
