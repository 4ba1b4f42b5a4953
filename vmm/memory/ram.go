// Package memory holds a guest's RAM: one memfd, mapped once, seen by the guest as one
// or two regions (below and above the hole under 4 GiB), and the bitmap of pages that the
// VMM itself has written. KVM's dirty log does not see those writes (virtio DMA), so every
// write of the VMM into guest memory must go through this package.
package memory

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// PageSize is the unit of dirty tracking, in bytes.
	PageSize = 4096
	// LowLimit is the guest-physical address at which the RAM below 4 GiB ends at the
	// latest. From here to 4 GiB lie PCI windows, ECAM, IOAPIC, LAPIC and flash. Firmware for the Q35
	// chipset takes for granted that it is not above 0xB0000000.
	LowLimit = 0x8000_0000
	// HighBase is where RAM that does not fit below LowLimit goes on.
	HighBase = 1 << 32
	// MinSize and MaxSize bound a guest's RAM, in bytes.
	MinSize = 1 << 20
	MaxSize = 4 << 40
)

// ErrRange says that an access leaves the guest's RAM. Devices report it to the guest as
// the device error that their specification has for a bad address, never as a crash.
var ErrRange = errors.New("address outside of guest RAM")

// Region is a stretch of guest-physical address space that is backed by RAM.
type Region struct {
	GPA    uint64 // guest-physical address of its first byte
	Size   uint64 // in bytes, a multiple of PageSize
	Offset uint64 // of its first byte in the RAM file; Offset/PageSize is its first page index
}

// RAM is a guest's memory. Reads and writes from several goroutines are safe as far as Go
// is concerned only where they do not overlap; against the guest's own vCPUs they are as
// unordered as DMA is on a real machine.
//
// Pages are named by their page index: the offset in the RAM file divided by PageSize. It
// is dense, unlike the guest frame number, and is what checkpoints carry.
type RAM struct {
	fd      int
	mem     []byte
	regions []Region
	dirty   []atomic.Uint64 // written by the VMM since the last HarvestDirty, one bit a page
	zeroed  []atomic.Uint64 // those of dirty that were discarded, and not written by the VMM since

	healing sync.Mutex
	healed  map[int]bool // pages that lie in a file of their own
	damaged map[int]bool // pages that can't be read
	uffd    int          // of Poison; 0: none

	mend func(page int) error // nil: nobody can
}

// New makes size bytes of RAM, zeroed and not yet populated. size is rounded up to a page.
func New(size uint64) (*RAM, error) {
	if size < MinSize || size > MaxSize {
		return nil, fmt.Errorf("guest memory of %d bytes: must be between 1 MiB and 4 TiB", size)
	}
	size = (size + PageSize - 1) &^ (PageSize - 1)
	fd, err := unix.MemfdCreate("pollux-guest-ram", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create the memfd for guest memory: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("size the memfd for guest memory to %d bytes: %w", size, err)
	}
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map %d bytes of guest memory: %w", size, err)
	}
	words := (size/PageSize + 63) / 64
	r := &RAM{fd: fd, mem: mem, dirty: make([]atomic.Uint64, words), zeroed: make([]atomic.Uint64, words)}
	low := min(size, LowLimit)
	r.regions = append(r.regions, Region{GPA: 0, Size: low})
	if size > low {
		r.regions = append(r.regions, Region{GPA: HighBase, Size: size - low, Offset: low})
	}
	return r, nil
}

// Close unmaps the memory. Nothing may use it afterwards.
func (r *RAM) Close() error {
	err := unix.Munmap(r.mem)
	r.mem = nil
	if r.uffd != 0 {
		err = errors.Join(err, unix.Close(r.uffd))
	}
	return errors.Join(err, unix.Close(r.fd))
}

// Size is the number of bytes of RAM.
func (r *RAM) Size() uint64 { return uint64(len(r.mem)) }

// Pages is the number of pages of RAM; page indexes run from 0 to Pages()-1.
func (r *RAM) Pages() int { return len(r.mem) / PageSize }

// Regions lists the RAM as the guest sees it, in ascending order of address.
func (r *RAM) Regions() []Region { return r.regions }

// Bytes is the whole RAM, indexed by file offset. It is for the code that moves pages
// (checkpoints) and for KVM's memory slots; devices use Read, Write and View.
func (r *RAM) Bytes() []byte { return r.mem }

// Page returns the bytes of a page by its page index, which must be in range.
func (r *RAM) Page(index int) []byte {
	return r.mem[index*PageSize : (index+1)*PageSize : (index+1)*PageSize]
}

// offset translates n bytes at gpa into an offset of the RAM file.
func (r *RAM) offset(gpa, n uint64) (uint64, error) {
	for _, g := range r.regions {
		if gpa >= g.GPA && gpa-g.GPA < g.Size && n <= g.Size-(gpa-g.GPA) {
			return g.Offset + (gpa - g.GPA), nil
		}
	}
	return 0, fmt.Errorf("%d bytes at guest address %#x: %w", n, gpa, ErrRange)
}

// View returns the n bytes at gpa for reading, at once: they can be read when it returns. They must lie in
// one region. Never write through it: such a write would be missing in the next checkpoint.
func (r *RAM) View(gpa, n uint64) ([]byte, error) {
	off, err := r.offset(gpa, n)
	if err == nil {
		err = r.probe(off, n)
	}
	if err != nil {
		return nil, err
	}
	return r.mem[off : off+n : off+n], nil
}

// Read fills p from gpa.
func (r *RAM) Read(gpa uint64, p []byte) error {
	off, err := r.offset(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	return r.copyMending(p, r.mem[off:off+uint64(len(p))])
}

// Write stores p at gpa and marks the pages dirty after the bytes have landed.
func (r *RAM) Write(gpa uint64, p []byte) error {
	off, err := r.offset(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	if err := r.copyMending(r.mem[off:off+uint64(len(p))], p); err != nil {
		return err
	}
	r.markDirty(off, uint64(len(p)))
	return nil
}

// Fill lets fn write into the n bytes at gpa (a read from a file or a tap, say) and marks
// all of their pages dirty afterwards, also where fn fails half-way.
func (r *RAM) Fill(gpa, n uint64, fn func(p []byte) error) error {
	off, err := r.offset(gpa, n)
	if err == nil {
		err = r.probe(off, n)
	}
	if err != nil {
		return err
	}
	defer r.markDirty(off, n)
	return fn(r.mem[off : off+n : off+n])
}

func (r *RAM) markDirty(off, n uint64) {
	if n == 0 {
		return
	}
	for p := off / PageSize; p <= (off+n-1)/PageSize; p++ {
		if bit := uint64(1) << (p % 64); r.zeroed[p/64].Load()&bit != 0 {
			r.zeroed[p/64].And(^bit)
		}
		r.dirty[p/64].Or(1 << (p % 64))
	}
}

// DirtyWords is the length, in 64-bit words, of a bitmap with one bit for each page.
func (r *RAM) DirtyWords() int { return len(r.dirty) }

// HarvestDirty adds the pages that the VMM has written since the last call to into, which
// has DirtyWords words, and forgets them. zero, which may be nil, follows: it has a bit for each page of
// into that the VMM has discarded and not written since; a guest may have. The caller has stopped all
// device threads.
func (r *RAM) HarvestDirty(into, zero []uint64) {
	for i := range r.dirty {
		if r.dirty[i].Load() == 0 {
			continue
		}
		written, discarded := r.dirty[i].Swap(0), r.zeroed[i].Swap(0)
		into[i] |= written
		if zero != nil {
			zero[i] = zero[i]&^written | discarded
		}
	}
}

// AddDirty adds the pages that the VMM has written since the last HarvestDirty to into, and forgets none.
// It may be called at any time.
func (r *RAM) AddDirty(into []uint64) {
	for i := range r.dirty {
		if w := r.dirty[i].Load(); w != 0 {
			into[i] |= w
		}
	}
}
