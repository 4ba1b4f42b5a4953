package memory

import (
	"errors"
	"fmt"
	"runtime/debug"
	"unsafe"
)

// ErrDamaged says that a page can't be read any more, and that nobody has mended it.
var ErrDamaged = errors.New("guest memory is damaged")

// Contains reports that the n bytes at gpa lie in one region of RAM, without a look at them.
func (r *RAM) Contains(gpa, n uint64) bool {
	_, err := r.offset(gpa, n)
	return err == nil
}

// OnDamage sets who mends a page that an access has found damaged: fn returns once the page holds what it
// held before, or with an error where it never will. The access then goes on, or fails with ErrDamaged.
// Without it such an access ends the process, as it does on a thread that blocks SIGBUS: there the kernel
// kills. It is set before the RAM is used.
func (r *RAM) OnDamage(fn func(page int) error) { r.mend = fn }

// NoteDamage says that a page can't be read, until Mend, Replace or a discard puts another in its place, and
// reports whether that is new.
func (r *RAM) NoteDamage(page int) bool {
	r.healing.Lock()
	defer r.healing.Unlock()
	if r.damaged == nil {
		r.damaged = make(map[int]bool)
	}
	known := r.damaged[page]
	r.damaged[page] = true
	return !known
}

// WasDamaged says that a page is noted as damaged, or has been replaced at some time.
func (r *RAM) WasDamaged(page int) bool {
	r.healing.Lock()
	defer r.healing.Unlock()
	return r.damaged[page] || r.healed[page]
}

// Mend is Replace for a page that was noted as damaged. Where it is none any more, because it has been
// discarded since, data is too old and nothing happens.
func (r *RAM) Mend(page int, data []byte) error {
	r.healing.Lock()
	defer r.healing.Unlock()
	if !r.damaged[page] {
		return nil
	}
	return r.replace(page, data)
}

// MarkDirty makes a page count as written.
func (r *RAM) MarkDirty(page int) error {
	if page < 0 || page >= r.Pages() {
		return fmt.Errorf("page %d of %d: %w", page, r.Pages(), ErrRange)
	}
	r.markDirty(uint64(page)*PageSize, PageSize)
	return nil
}

// IsDirty says whether the VMM has written a page since the last HarvestDirty.
func (r *RAM) IsDirty(page int) bool { return r.dirty[page/64].Load()&(1<<(page%64)) != 0 }

// Try copies a page into p, or says with ErrDamaged that it can't be read. It mends nothing.
func (r *RAM) Try(page int, p []byte) error {
	return r.failed(guardedCopy(p, r.Page(page)))
}

// Access is Read or Write for whoever can't wait for a page to be mended.
func (r *RAM) Access(gpa uint64, p []byte, write bool) error {
	off, err := r.offset(gpa, uint64(len(p)))
	if err != nil {
		return err
	}
	at := r.mem[off : off+uint64(len(p))]
	if !write {
		return r.failed(guardedCopy(p, at))
	}
	if err := r.failed(guardedCopy(at, p)); err != nil {
		return err
	}
	r.markDirty(off, uint64(len(p)))
	return nil
}

func (r *RAM) failed(fault uintptr) error {
	if fault == 0 {
		return nil
	}
	return fmt.Errorf("page %d: %w", r.faultPage(fault), ErrDamaged)
}

// copyMending copies between guest memory and other memory, and has damaged pages mended on its way.
func (r *RAM) copyMending(dst, src []byte) error {
	for {
		fault := guardedCopy(dst, src)
		if fault == 0 {
			return nil
		}
		if err := r.mended(fault); err != nil {
			return err
		}
	}
}

// probe makes sure that the n bytes at an offset can be read, at the time.
func (r *RAM) probe(off, n uint64) error {
	if n == 0 {
		return nil
	}
	for p := off / PageSize; p <= (off+n-1)/PageSize; {
		fault := guardedLoad(&r.mem[p*PageSize])
		if fault == 0 {
			p++
			continue
		}
		if err := r.mended(fault); err != nil {
			return err
		}
	}
	return nil
}

// mended has the page at a faulting address mended.
func (r *RAM) mended(fault uintptr) error {
	page := r.faultPage(fault)
	if r.mend == nil {
		panic(fmt.Sprintf("page %d of guest memory can't be read", page))
	}
	if err := r.mend(page); err != nil {
		return fmt.Errorf("page %d: %w: %w", page, ErrDamaged, err)
	}
	return nil
}

// faultPage is the page at an address; a fault elsewhere is nothing that could be survived.
func (r *RAM) faultPage(fault uintptr) int {
	off := fault - uintptr(unsafe.Pointer(unsafe.SliceData(r.mem)))
	if off >= uintptr(len(r.mem)) {
		panic(fmt.Sprintf("memory error at %#x, outside of the guest's RAM", fault))
	}
	return int(off / PageSize)
}

// guardedCopy copies, and returns the address at which that has failed; 0: it has not.
func guardedCopy(dst, src []byte) (fault uintptr) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			fault = FaultAddress(r)
		}
	}()
	copy(dst, src)
	return 0
}

// guardedLoad is guardedCopy for one byte that nobody wants.
func guardedLoad(p *byte) (fault uintptr) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			fault = FaultAddress(r)
		}
	}()
	sink(*p)
	return 0
}

//go:noinline
func sink(byte) {}

// FaultAddress is the address of a recovered memory fault. It goes on panicking with anything else.
func FaultAddress(recovered any) uintptr {
	f, ok := recovered.(interface{ Addr() uintptr })
	if !ok {
		panic(recovered)
	}
	return f.Addr()
}
