package lockstep

import "math/bits"

// BlockBytes is the unit in which written disk blocks are remembered.
const BlockBytes = 64 << 10

// blockSet is a bitmap of a disk's blocks.
type blockSet []uint64

func newBlockSet(diskBytes int64) blockSet {
	blocks := (diskBytes + BlockBytes - 1) / BlockBytes
	return make(blockSet, (blocks+63)/64)
}

func (s blockSet) add(offset, n int64) {
	if n <= 0 || offset < 0 {
		return
	}
	for b := offset / BlockBytes; b <= (offset+n-1)/BlockBytes && b/64 < int64(len(s)); b++ {
		s[b/64] |= 1 << (b % 64)
	}
}

func (s blockSet) addAll(t blockSet) {
	for i := range s {
		s[i] |= t[i]
	}
}

func (s blockSet) count() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// pageSet is a bitmap of memory pages with its population.
type pageSet struct {
	words []uint64
	left  int
}

func (s *pageSet) fill(pages int) {
	s.words = make([]uint64, (pages+63)/64)
	for i := range s.words {
		s.words[i] = ^uint64(0)
	}
	if rest := pages % 64; rest != 0 {
		s.words[len(s.words)-1] = 1<<rest - 1
	}
	s.left = pages
}

func (s *pageSet) remove(page int) {
	if w := &s.words[page/64]; *w&(1<<(page%64)) != 0 {
		*w &^= 1 << (page % 64)
		s.left--
	}
}

// next returns the first page of the set from a page on, or -1.
func (s *pageSet) next(from int) int {
	if from >= len(s.words)*64 {
		return -1
	}
	w := s.words[from/64] &^ (1<<(from%64) - 1)
	for i := from / 64; ; w = s.words[i] {
		if w != 0 {
			return i*64 + bits.TrailingZeros64(w)
		}
		if i++; i == len(s.words) {
			return -1
		}
	}
}
