package checkpoint

import (
	"maps"
	"runtime/debug"
	"slices"
)

// Lose says that a page of the image is of no use: it can't be read, or does not hold what it should. Deltas to
// it are passed over until an epoch brings it whole. The caller asks the primary for that (PagesLost).
func (r *Reader) Lose(page uint32) {
	if r.lost == nil {
		r.lost = make(map[uint32]bool)
	}
	r.lost[page] = true
	delete(r.found, page)
}

// Lost are the pages of the image that are of no use, ascending: those that were lost and have not come since,
// and those that the Reader itself could not read.
func (r *Reader) Lost() []uint32 {
	if len(r.lost) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(r.lost))
}

// replacer is an image that can put a fresh page in the place of a damaged one.
type replacer interface {
	Replace(index int, data []byte) error
}

// readPage copies a page of an image; false: it can't be read.
func readPage(into []byte, image Base, index uint32) (ok bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			mustBeFault(r)
			ok = false
		}
	}()
	copy(into, image.Page(int(index)))
	return true
}

// mustBeFault goes on panicking with anything but a memory fault.
func mustBeFault(recovered any) {
	if _, fault := recovered.(interface{ Addr() uintptr }); !fault {
		panic(recovered)
	}
}
