// Package bus dispatches the guest's port I/O and MMIO accesses to devices.
package bus

import (
	"fmt"
	"sort"
)

// Handler is one device's window in an address space. Accesses arrive with the device lock
// held. offset counts from the start of the window; data has 1, 2, 4 or 8 bytes, little
// endian, and offset+len(data) never leaves the window. A handler can't fail: hardware has
// no way of telling a CPU either. Where nothing is there, Read leaves data as it is (0xff).
type Handler interface {
	Read(offset uint64, data []byte)
	Write(offset uint64, data []byte)
}

// Space is an address space: the 64 KiB of ports, or the MMIO part of guest-physical memory.
// The zero value is empty and ready for use. It is guarded by the device lock.
type Space struct {
	windows []window // ascending, disjoint
}

type window struct {
	base, size uint64
	h          Handler
}

// Map puts a window into the space. It fails where it would overlap another.
func (s *Space) Map(base, size uint64, h Handler) error {
	if size == 0 || base+size-1 < base {
		return fmt.Errorf("window of %d bytes at %#x is empty or wraps around", size, base)
	}
	i := sort.Search(len(s.windows), func(i int) bool { return s.windows[i].base >= base })
	if i < len(s.windows) && s.windows[i].base-base < size {
		return fmt.Errorf("window %#x+%#x overlaps the one at %#x", base, size, s.windows[i].base)
	}
	if i > 0 && base-s.windows[i-1].base < s.windows[i-1].size {
		return fmt.Errorf("window %#x+%#x overlaps the one at %#x", base, size, s.windows[i-1].base)
	}
	s.windows = append(s.windows, window{})
	copy(s.windows[i+1:], s.windows[i:])
	s.windows[i] = window{base, size, h}
	return nil
}

// Unmap removes the window that starts at base, if there is one.
func (s *Space) Unmap(base uint64) {
	for i, w := range s.windows {
		if w.base == base {
			s.windows = append(s.windows[:i], s.windows[i+1:]...)
			return
		}
	}
}

// Read performs a guest's read. Where no window holds the whole access, all bits read as one,
// as on a PC, and the result is false.
func (s *Space) Read(addr uint64, data []byte) bool {
	for i := range data {
		data[i] = 0xff
	}
	w := s.find(addr, len(data))
	if w != nil {
		w.h.Read(addr-w.base, data)
	}
	return w != nil
}

// Write performs a guest's write; where no window holds the whole access it has no effect, and the
// result is false.
func (s *Space) Write(addr uint64, data []byte) bool {
	w := s.find(addr, len(data))
	if w != nil {
		w.h.Write(addr-w.base, data)
	}
	return w != nil
}

func (s *Space) find(addr uint64, n int) *window {
	i := sort.Search(len(s.windows), func(i int) bool { return s.windows[i].base > addr }) - 1
	if i < 0 {
		return nil
	}
	w := &s.windows[i]
	if off := addr - w.base; off < w.size && uint64(n) <= w.size-off {
		return w
	}
	return nil
}
