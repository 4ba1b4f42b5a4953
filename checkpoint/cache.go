package checkpoint

// pageCache holds the content that was sent last of a bounded number of pages, which is what deltas
// are made against. Which pages stay is decided by the CLOCK algorithm: a page that was dirty again
// since the hand passed it stays.
type pageCache struct {
	limit int
	slabs [][]byte  // of slabPages pages each, allocated as they are needed
	owner []uint32  // slot -> page index
	used  []bool    // slot -> touched since the hand passed
	slots [][]int32 // page index / slotChunk -> slot+1 of each; 0: not cached
	hand  int
}

const (
	slabPages = 256
	slotChunk = 4096

	nobody = ^uint32(0) // owner of a slot whose page was dropped; no guest has a page of that index
)

func newPageCache(pages int) *pageCache { return &pageCache{limit: pages} }

// get returns the content sent last of a page, or nil.
func (c *pageCache) get(index uint32) []byte {
	chunk := int(index / slotChunk)
	if chunk >= len(c.slots) || c.slots[chunk] == nil {
		return nil
	}
	s := c.slots[chunk][index%slotChunk]
	if s == 0 {
		return nil
	}
	c.used[s-1] = true
	return c.page(int(s - 1))
}

func (c *pageCache) page(slot int) []byte {
	at := slot % slabPages * PageSize
	return c.slabs[slot/slabPages][at : at+PageSize : at+PageSize]
}

// put remembers content for a page that is not cached yet, at the cost of another if need be.
func (c *pageCache) put(index uint32, content []byte) {
	if c.limit == 0 {
		return
	}
	slot := len(c.owner)
	if slot < c.limit {
		if slot/slabPages == len(c.slabs) {
			c.slabs = append(c.slabs, make([]byte, min(slabPages, c.limit-slot)*PageSize))
		}
		c.owner = append(c.owner, index)
		c.used = append(c.used, false)
	} else {
		for c.used[c.hand] {
			c.used[c.hand] = false
			c.hand = (c.hand + 1) % c.limit
		}
		slot = c.hand
		c.hand = (c.hand + 1) % c.limit
		if old := c.owner[slot]; old != nobody {
			c.slots[old/slotChunk][old%slotChunk] = 0
		}
		c.owner[slot] = index
	}
	chunk := int(index / slotChunk)
	for chunk >= len(c.slots) {
		c.slots = append(c.slots, nil)
	}
	if c.slots[chunk] == nil {
		c.slots[chunk] = make([]int32, slotChunk)
	}
	c.slots[chunk][index%slotChunk] = int32(slot + 1)
	copy(c.page(slot), content)
}

// drop forgets a page. Its slot stays as it is until the hand comes by.
func (c *pageCache) drop(index uint32) {
	chunk := int(index / slotChunk)
	if chunk >= len(c.slots) || c.slots[chunk] == nil || c.slots[chunk][index%slotChunk] == 0 {
		return
	}
	slot := c.slots[chunk][index%slotChunk] - 1
	c.slots[chunk][index%slotChunk] = 0
	c.owner[slot], c.used[slot] = nobody, false
}

// clear forgets everything and keeps the memory.
func (c *pageCache) clear() {
	for _, index := range c.owner {
		if index == nobody {
			continue
		}
		c.slots[index/slotChunk][index%slotChunk] = 0
	}
	c.owner, c.used, c.hand = c.owner[:0], c.used[:0], 0
}
