package virtio

import (
	"encoding/binary"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// Hints asks the guest which pages are free, from now on, and has fn told of each run of them by page
// index, with the device lock held. A hinted page may be in use again at any time: the hint says no more
// than that what the page held when Hints was called does not matter. Nil ends that: the guest may have its
// free pages back. The device lock is held.
func (b *Balloon) Hints(fn func(page, pages int)) {
	if fn == nil && b.hintID == hintDone {
		return
	}
	b.hint, b.hinting = fn, false
	b.hintID = hintDone
	if fn != nil {
		b.lastHint = max(b.lastHint+1, hintFirst)
		b.hintID = b.lastHint
	}
	b.configChanged()
}

// takeHint takes a command ID, or free pages, from the driver.
func (b *Balloon) takeHint(c *chain) uint32 {
	var id [4]byte
	if n := c.read(b.p.RAM(), 0, id[:]); n == len(id) {
		// The driver begins with the ID that it was given, and ends with hintStop. Pages under an ID of
		// long ago may have been written since.
		b.hinting = b.hint != nil && binary.LittleEndian.Uint32(id[:]) == b.hintID
	}
	if !b.hinting || b.hint == nil { // after a takeover the driver may go on for somebody who is gone
		return 0
	}
	for _, s := range c.in {
		first, n := wholePages(s)
		if n == 0 {
			continue
		}
		if index, ok := b.p.RAM().Index(first*memory.PageSize, n*memory.PageSize); ok {
			b.hint(index, int(n))
		}
	}
	return 0
}
