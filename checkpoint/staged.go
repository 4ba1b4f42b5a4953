package checkpoint

import (
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Staged is a whole, verified epoch on the replica's side. Nothing of it has touched the memory image
// yet: it can be applied, or dropped as if it had never arrived.
type Staged struct {
	Number   pact.Epoch
	Term     pact.Term
	Flags    Flags
	Previous Digest
	Digest   Digest
	State    []byte
	Writes   []DiskWrite
	Frames   []Frame
	// Lost are the pages of the image that are of no use and stay so with this epoch, ascending.
	Lost []uint32

	pages    []stagedPage // a page may be there twice: the later one counts
	contents int          // pages that have content of their own, in blocks
	blocks   []*stageBlock
}

// stagedPage is a page of guest memory and where its content lies; zeroSlot: it is all zero.
type stagedPage struct {
	index uint32
	slot  int32
}

const zeroSlot = -1

// stageBlock holds the content of up to stageBlockPages staged pages. Blocks are pooled, so that their
// memory stays populated from epoch to epoch.
type stageBlock [stageBlockPages * PageSize]byte

const stageBlockPages = 64

var stagePool = sync.Pool{New: func() any { return new(stageBlock) }}

// PageCount is the number of staged pages.
func (s *Staged) PageCount() int { return len(s.pages) }

// discarder is an image that can give pages back to the host: they are zero then, and cost no memory.
type discarder interface{ DiscardPages(first, n int) error }

// discardRun is from how many zero pages in a row on they are given back; for fewer, writing zeros is the
// lesser effort, and the guest will want most of them again soon.
const discardRun = 8

// Apply writes the staged pages to the memory image that the Reader was given as its Base. A page that turns
// out to be damaged is replaced, where the image can do that: what it is to hold is known.
func (s *Staged) Apply(image Base) {
	for i := 0; i < len(s.pages); {
		at, damaged := s.applyFrom(i, image)
		if !damaged {
			return
		}
		i = at
		r, ok := image.(replacer)
		if !ok {
			panic(fmt.Sprintf("page %d of the image can't be written", s.pages[i].index))
		}
		if err := r.Replace(int(s.pages[i].index), s.content(s.pages[i])); err != nil {
			panic(fmt.Sprintf("the epoch is acknowledged, and can't be applied: %v", err))
		}
		i++
	}
}

// applyFrom writes the staged pages from number i on. Damaged: the page with the returned number is.
func (s *Staged) applyFrom(i int, image Base) (at int, damaged bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			mustBeFault(r)
			at, damaged = i, true
		}
	}()
	give, _ := image.(discarder)
	for i < len(s.pages) {
		p := s.pages[i]
		if p.slot != zeroSlot {
			copy(image.Page(int(p.index)), s.page(p.slot))
			i++
			continue
		}
		n := 1
		for i+n < len(s.pages) && s.pages[i+n] == (stagedPage{p.index + uint32(n), zeroSlot}) {
			n++
		}
		if give != nil && n >= discardRun && give.DiscardPages(int(p.index), n) == nil {
			i += n
			continue
		}
		for ; n > 0; n-- {
			clear(image.Page(int(s.pages[i].index)))
			i++
		}
	}
	return i, false
}

// Release gives the pages' memory back. State, Writes and Frames stay valid.
func (s *Staged) Release() {
	for _, b := range s.blocks {
		stagePool.Put(b)
	}
	s.blocks, s.pages = nil, nil
}

func (s *Staged) page(slot int32) []byte {
	at := slot % stageBlockPages * PageSize
	return s.blocks[slot/stageBlockPages][at : at+PageSize : at+PageSize]
}

// content is what a staged page will hold.
func (s *Staged) content(p stagedPage) []byte {
	if p.slot == zeroSlot {
		return zeroPage[:]
	}
	return s.page(p.slot)
}

// zeroPage is the content of all zero pages. Nobody writes to it.
var zeroPage [PageSize]byte

// add makes room for one more page and returns it, with whatever content it had.
func (s *Staged) add(index uint32) []byte {
	slot := s.contents
	if slot%stageBlockPages == 0 {
		s.blocks = append(s.blocks, stagePool.Get().(*stageBlock))
	}
	s.contents++
	s.pages = append(s.pages, stagedPage{index, int32(slot)})
	return s.page(int32(slot))
}

// takeBack undoes the last add.
func (s *Staged) takeBack() {
	s.pages = s.pages[:len(s.pages)-1]
	s.contents--
	if s.contents%stageBlockPages == 0 {
		last := len(s.blocks) - 1
		stagePool.Put(s.blocks[last])
		s.blocks = s.blocks[:last]
	}
}

// addZero adds a page that will be zero. It takes no room.
func (s *Staged) addZero(index uint32) { s.pages = append(s.pages, stagedPage{index, zeroSlot}) }
