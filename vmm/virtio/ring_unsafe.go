package virtio

import (
	"sync/atomic"
	"unsafe"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// Ring indexes are 16 bits wide and 16-bit aligned; Go has atomics for 32 bits and more. The word
// around an index never leaves its page, so it is RAM wherever the index is. Go's atomics order
// these accesses as sections 2.7.13 and 2.7.14 ask; both architecture and rings are little endian.

// load16 reads the index at gpa, which is even.
func load16(ram *memory.RAM, gpa uint64) (uint16, error) {
	w, err := ram.View(gpa&^3, 4)
	if err != nil {
		return 0, err
	}
	v := atomic.LoadUint32((*uint32)(unsafe.Pointer(&w[0])))
	return uint16(v >> (8 * (gpa & 2))), nil
}

// store16 writes the index at gpa, which is even, and leaves the bytes beside it alone, even where
// the guest writes them at the same time. It is a full memory barrier.
func store16(ram *memory.RAM, gpa uint64, v uint16) error {
	shift := 8 * (gpa & 2)
	return ram.Fill(gpa&^3, 4, func(w []byte) error {
		p := (*uint32)(unsafe.Pointer(&w[0]))
		for {
			old := atomic.LoadUint32(p)
			if atomic.CompareAndSwapUint32(p, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
				return nil
			}
		}
	})
}

// store32 writes the word at gpa, a multiple of four. It is a full memory barrier.
func store32(ram *memory.RAM, gpa uint64, v uint32) error {
	return ram.Fill(gpa, 4, func(w []byte) error {
		atomic.StoreUint32((*uint32)(unsafe.Pointer(&w[0])), v)
		return nil
	})
}
