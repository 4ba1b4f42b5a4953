package memory

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Discard gives whole pages of guest memory back to the host: they are zero from now on, and count as
// written. It costs the host nothing to keep such a page, and a capture next to nothing to take it. A page
// that was healed keeps its memory.
func (r *RAM) Discard(gpa, n uint64) error {
	off, err := r.offset(gpa, n)
	if err != nil {
		return err
	}
	if off%PageSize != 0 || n%PageSize != 0 {
		return fmt.Errorf("discard %d bytes at guest address %#x: not whole pages: %w", n, gpa, unix.EINVAL)
	}
	return r.discard(off, n)
}

// discard makes the pages in [off, off+n) of the RAM file zero.
func (r *RAM) discard(off, n uint64) error {
	if n == 0 {
		return nil
	}
	r.healing.Lock()
	defer r.healing.Unlock()
	if err := r.clearHealed(off, n); err != nil {
		return err
	}
	if err := unix.Fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil {
		return fmt.Errorf("give %d bytes of guest memory back to the host: %w", n, err)
	}
	// As with any other write: marked once the zeros are there.
	for p := off / PageSize; p < (off+n)/PageSize; p++ {
		r.zeroed[p/64].Or(1 << (p % 64))
		r.dirty[p/64].Or(1 << (p % 64))
	}
	return nil
}

// clearHealed writes zeros into the pages of the range that do not lie in the RAM file, and puts zero pages in
// the place of damaged ones. r.healing is held.
func (r *RAM) clearHealed(off, n uint64) error {
	if len(r.damaged)+len(r.healed) == 0 {
		return nil
	}
	zeros := make([]byte, PageSize)
	for p := range r.damaged {
		if at := uint64(p) * PageSize; at >= off && at < off+n {
			if err := r.replace(p, zeros); err != nil {
				return err
			}
		}
	}
	for p := range r.healed {
		if at := uint64(p) * PageSize; at >= off && at < off+n {
			if guardedCopy(r.Page(p), zeros) == 0 {
				continue
			}
			if err := r.replace(p, zeros); err != nil { // damaged once more
				return err
			}
		}
	}
	return nil
}

// Clear makes guest memory zero from the page with index from on, until it has discarded about pages
// pages. It returns where to go on; Pages() says that all is zero. Pages that the host does not keep are
// zero already and cost nothing.
func (r *RAM) Clear(from, pages int) (next int, err error) {
	for next = from; pages > 0 && next < r.Pages(); {
		start, end, err := r.Populated(next)
		if err != nil {
			return next, err
		}
		end = min(end, start+pages)
		if err := r.discard(uint64(start)*PageSize, uint64(end-start)*PageSize); err != nil {
			return next, err
		}
		pages -= end - start
		next = end
	}
	return next, nil
}

// Populated returns the first run of pages, from an index on, that the host keeps memory for, as two page
// indexes; both are Pages() where there is none. All others are zero. It must not run beside Clear.
func (r *RAM) Populated(from int) (start, end int, err error) {
	start, end, err = r.inFile(from)
	if err != nil {
		return start, end, err
	}
	r.healing.Lock()
	defer r.healing.Unlock()
	for p := range r.healed {
		if p >= from && p < start {
			start, end = p, p+1
		}
	}
	return start, end, nil
}

// inFile is Populated for the RAM file alone.
func (r *RAM) inFile(from int) (start, end int, err error) {
	if from >= r.Pages() {
		return r.Pages(), r.Pages(), nil
	}
	data, err := unix.Seek(r.fd, int64(from)*PageSize, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return r.Pages(), r.Pages(), nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look for used guest memory: %w", err)
	}
	hole, err := unix.Seek(r.fd, data, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, fmt.Errorf("look for unused guest memory: %w", err)
	}
	return int(data / PageSize), int((hole + PageSize - 1) / PageSize), nil
}
