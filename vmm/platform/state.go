package platform

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Machine state is a list of sections, one for each Stateful part:
//
//	magic "PXVS" u32, format u16, sections u16,
//	sections x { idLen u8, id, version u16, length u32, payload }, crc32c u32 of all before
//
// All integers are little endian.
const (
	stateMagic    = 0x53565850 // "PXVS"
	stateFormat   = 1
	MaxStateBytes = 4 << 20 // of a whole machine; a 64-vCPU machine takes about 1 MiB
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrState says that machine state is damaged or not meant for this machine.
var ErrState = errors.New("machine state can't be restored")

// AppendState appends the state of all parts to b.
func AppendState(b []byte, parts []Stateful) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, stateMagic)
	b = binary.LittleEndian.AppendUint16(b, stateFormat)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(parts)))
	for _, p := range parts {
		id := p.StateID()
		b = append(b, byte(len(id)))
		b = append(b, id...)
		b = binary.LittleEndian.AppendUint16(b, p.StateVersion())
		at := len(b)
		b = append(b, 0, 0, 0, 0)
		b = p.SaveState(b)
		binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// RestoreState gives each part its section of b. Every part must find its section and every
// section its part; nothing is restored before the whole of b has been checked.
func RestoreState(b []byte, parts []Stateful) error {
	if len(b) < 12 || len(b) > MaxStateBytes {
		return fmt.Errorf("%w: %d bytes", ErrState, len(b))
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return fmt.Errorf("%w: checksum mismatch", ErrState)
	}
	if m := binary.LittleEndian.Uint32(body); m != stateMagic {
		return fmt.Errorf("%w: bad magic %#x", ErrState, m)
	}
	if f := binary.LittleEndian.Uint16(body[4:]); f != stateFormat {
		return fmt.Errorf("%w: format %d, this program reads %d", ErrState, f, stateFormat)
	}
	if n := int(binary.LittleEndian.Uint16(body[6:])); n != len(parts) {
		return fmt.Errorf("%w: %d sections for a machine of %d parts", ErrState, n, len(parts))
	}
	type section struct {
		version uint16
		data    []byte
	}
	found := make(map[string]section, len(parts))
	for r := body[8:]; len(r) > 0; {
		n := int(r[0])
		if len(r) < 1+n+6 {
			return fmt.Errorf("%w: truncated section header", ErrState)
		}
		id, h := string(r[1:1+n]), r[1+n:]
		size := binary.LittleEndian.Uint32(h[2:])
		if uint64(size) > uint64(len(h)-6) {
			return fmt.Errorf("%w: section %q is truncated", ErrState, id)
		}
		if _, twice := found[id]; twice {
			return fmt.Errorf("%w: section %q is there twice", ErrState, id)
		}
		found[id] = section{binary.LittleEndian.Uint16(h), h[6 : 6+size]}
		r = h[6+size:]
	}
	for _, p := range parts {
		s, ok := found[p.StateID()]
		if !ok {
			return fmt.Errorf("%w: no section %q", ErrState, p.StateID())
		}
		if s.version > p.StateVersion() {
			return fmt.Errorf("%w: section %q has version %d, this program reads up to %d: upgrade this host first",
				ErrState, p.StateID(), s.version, p.StateVersion())
		}
	}
	for _, p := range parts {
		s := found[p.StateID()]
		if err := p.RestoreState(s.version, s.data); err != nil {
			return fmt.Errorf("section %q: %w", p.StateID(), err)
		}
	}
	return nil
}
