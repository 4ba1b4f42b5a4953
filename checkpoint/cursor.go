package checkpoint

import (
	"encoding/binary"
	"fmt"
)

// cursor reads fields from a payload. The first read past the end sets short; every later read
// returns zero values, so that a parser checks once, at its end.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) bytes(n uint64) []byte {
	if c.short || n > uint64(len(c.b)) {
		c.short = true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u8() uint8 {
	if v := c.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if v := c.bytes(2); v != nil {
		return binary.LittleEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if v := c.bytes(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if v := c.bytes(8); v != nil {
		return binary.LittleEndian.Uint64(v)
	}
	return 0
}

func (c *cursor) str() string { return string(c.bytes(uint64(c.u16()))) }

func (c *cursor) digest() (d Digest) {
	copy(d[:], c.bytes(uint64(len(d))))
	return d
}

// end checks that the payload was neither shorter nor longer than what was read from it.
func (c *cursor) end(what string) error {
	if c.short {
		return fmt.Errorf("%w: %s is truncated", ErrCorrupt, what)
	}
	if len(c.b) > 0 {
		return fmt.Errorf("%w: %s has %d bytes too many", ErrCorrupt, what, len(c.b))
	}
	return nil
}

func appendString(b []byte, s string) []byte {
	if len(s) > 0xffff {
		s = s[:0xffff]
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}
