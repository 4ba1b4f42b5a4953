package virtio

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/memory"
)

const (
	descSize = 16

	descNext     = 1 // VIRTQ_DESC_F_NEXT
	descWrite    = 2 // VIRTQ_DESC_F_WRITE
	descIndirect = 4 // VIRTQ_DESC_F_INDIRECT

	maxIndirect   = 1024     // descriptors in an indirect table; no driver uses more
	maxChainBytes = 64 << 20 // of a whole chain that does not say otherwise
)

// errRing says that a driver's ring makes no sense; the device needs a reset then.
var errRing = errors.New("virtqueue is malformed")

// segment is one buffer of a chain; it lies in guest RAM.
type segment struct {
	addr uint64
	len  uint32
}

// chain is a descriptor chain that has been checked: what the device reads, then what it writes
// (section 2.7.4.2). Its buffers are reused from one chain to the next.
type chain struct {
	head uint16
	out  []segment // for the device to read
	in   []segment // for the device to write

	readable, writable uint64 // bytes
	limit              uint64 // of bytes; 0: maxChainBytes
}

// parse walks the chain that starts at head.
func (c *chain) parse(ram *memory.RAM, table uint64, size, head uint16, indirect bool) error {
	c.head, c.out, c.in, c.readable, c.writable = head, c.out[:0], c.in[:0], 0, 0
	n, at := size, head
	limit := int(size)
	nested := false
	for count := 0; ; count++ {
		if at >= n {
			return fmt.Errorf("descriptor %d of %d: %w", at, n, errRing)
		}
		if count == limit {
			return fmt.Errorf("descriptor chain is longer than %d: %w", limit, errRing)
		}
		d, err := ram.View(table+descSize*uint64(at), descSize)
		if err != nil {
			return fmt.Errorf("descriptor table: %w: %w", errRing, err)
		}
		addr, length := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:])
		flags, next := binary.LittleEndian.Uint16(d[12:]), binary.LittleEndian.Uint16(d[14:])
		if flags&descIndirect != 0 {
			entries := length / descSize
			if !indirect || nested || flags&descNext != 0 || entries == 0 || entries > maxIndirect || length%descSize != 0 {
				return fmt.Errorf("indirect descriptor of %d bytes, flags %#x: %w", length, flags, errRing)
			}
			if !ram.Contains(addr, uint64(length)) {
				return fmt.Errorf("indirect table: %w: %d bytes at %#x: %w", errRing, length, addr, memory.ErrRange)
			}
			table, n, at, nested = addr, uint16(entries), 0, true
			limit = count + 1 + int(entries)
			continue
		}
		if err := c.add(ram, addr, length, flags&descWrite != 0); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		at = next
	}
}

func (c *chain) add(ram *memory.RAM, addr uint64, length uint32, write bool) error {
	if length == 0 {
		return fmt.Errorf("descriptor of no bytes: %w", errRing)
	}
	if !ram.Contains(addr, uint64(length)) {
		return fmt.Errorf("descriptor: %w: %d bytes at %#x: %w", errRing, length, addr, memory.ErrRange)
	}
	if limit := cmp.Or(c.limit, maxChainBytes); c.readable+c.writable+uint64(length) > limit {
		return fmt.Errorf("descriptor chain of more than %d bytes: %w", limit, errRing)
	}
	if write {
		c.in = append(c.in, segment{addr, length})
		c.writable += uint64(length)
		return nil
	}
	if len(c.in) > 0 {
		return fmt.Errorf("readable descriptor after a writable one: %w", errRing)
	}
	c.out = append(c.out, segment{addr, length})
	c.readable += uint64(length)
	return nil
}

// read fills p from the readable bytes, off bytes in, and says how many there were.
func (c *chain) read(ram *memory.RAM, off uint64, p []byte) int {
	done := 0
	for _, s := range c.out {
		if off >= uint64(s.len) {
			off -= uint64(s.len)
			continue
		}
		if done == len(p) {
			break
		}
		n := min(uint64(s.len)-off, uint64(len(p)-done))
		if ram.Read(s.addr+off, p[done:done+int(n)]) != nil {
			break // parse has checked it; RAM never shrinks
		}
		done += int(n)
		off = 0
	}
	return done
}

// scatter writes p into writable segments, off bytes in, and says how many bytes found room.
func scatter(ram *memory.RAM, segs []segment, off uint64, p []byte) int {
	done := 0
	for _, s := range segs {
		if off >= uint64(s.len) {
			off -= uint64(s.len)
			continue
		}
		if done == len(p) {
			break
		}
		n := min(uint64(s.len)-off, uint64(len(p)-done))
		if ram.Write(s.addr+off, p[done:done+int(n)]) != nil {
			break
		}
		done += int(n)
		off = 0
	}
	return done
}
