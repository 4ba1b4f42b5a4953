package memory

import (
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Replace puts a fresh page that holds data in the place of one that can't be read any more. The
// guest may run meanwhile: it meets the old page or the new one, never anything between. The page
// does not count as written: data is what it held at the last checkpoint.
func (r *RAM) Replace(index int, data []byte) error {
	r.healing.Lock()
	defer r.healing.Unlock()
	return r.replace(index, data)
}

// replace is Replace with healing held.
func (r *RAM) replace(index int, data []byte) error {
	if index < 0 || index >= r.Pages() || len(data) != PageSize {
		return fmt.Errorf("replace page %d of %d with %d bytes: %w", index, r.Pages(), len(data), unix.EINVAL)
	}
	// Punching the bad page out of the RAM file and writing it anew would let the guest see zeros
	// for a moment. A file of one page, mapped over it, does not.
	fd, err := unix.MemfdCreate("pollux-healed-page", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create a memfd for page %d: %w", index, err)
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, data, 0); err != nil {
		return fmt.Errorf("fill a fresh page for page %d: %w", index, err)
	} else if n != PageSize {
		return fmt.Errorf("fill a fresh page for page %d: %w", index, io.ErrShortWrite)
	}
	if r.healed == nil {
		r.healed = make(map[int]bool)
	}
	r.healed[index] = true
	at := unsafe.Pointer(&r.mem[index*PageSize])
	if _, err := unix.MmapPtr(fd, 0, at, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return fmt.Errorf("map a fresh page over page %d: %w", index, err)
	}
	delete(r.damaged, index)
	return nil
}
