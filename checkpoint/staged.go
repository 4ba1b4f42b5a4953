package checkpoint

import (
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

	index  []uint32 // page index of each staged page; a page may be there twice: the later one counts
	blocks []*stageBlock
}

// stageBlock holds the content of up to stageBlockPages staged pages. Blocks are pooled, so that their
// memory stays populated from epoch to epoch.
type stageBlock [stageBlockPages * PageSize]byte

const stageBlockPages = 64

var stagePool = sync.Pool{New: func() any { return new(stageBlock) }}

// PageCount is the number of staged pages.
func (s *Staged) PageCount() int { return len(s.index) }

// Apply writes the staged pages to the memory image that the Reader was given as its Base.
func (s *Staged) Apply(image Base) {
	for i, index := range s.index {
		copy(image.Page(int(index)), s.page(i))
	}
}

// Release gives the pages' memory back. State, Writes and Frames stay valid.
func (s *Staged) Release() {
	for _, b := range s.blocks {
		stagePool.Put(b)
	}
	s.blocks, s.index = nil, nil
}

func (s *Staged) page(i int) []byte {
	at := i % stageBlockPages * PageSize
	return s.blocks[i/stageBlockPages][at : at+PageSize : at+PageSize]
}

// add makes room for one more page and returns it, with whatever content it had.
func (s *Staged) add(index uint32) []byte {
	i := len(s.index)
	if i%stageBlockPages == 0 {
		s.blocks = append(s.blocks, stagePool.Get().(*stageBlock))
	}
	s.index = append(s.index, index)
	return s.page(i)
}
