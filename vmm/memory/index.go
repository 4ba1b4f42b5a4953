package memory

import "math/bits"

// Index is the page index of the first of the n bytes at a guest address, where both are whole pages in
// one region.
func (r *RAM) Index(gpa, n uint64) (page int, ok bool) {
	off, err := r.offset(gpa, n)
	if err != nil || gpa%PageSize != 0 || n%PageSize != 0 {
		return 0, false
	}
	return int(off / PageSize), true
}

// Holes are those of the pages of a bitmap's word that the host keeps no memory for. They are zero, and
// looking does not change that.
func (r *RAM) Holes(word int, pages uint64) (holes uint64) {
	for from := word * 64; pages != 0 && from < (word+1)*64; {
		from = word*64 + bits.TrailingZeros64(pages)
		start, end, err := r.Populated(from)
		if err != nil {
			return holes
		}
		for ; pages != 0 && from < min(end, (word+1)*64); from++ {
			bit := pages & (1 << (from % 64))
			if pages &^= bit; from < start {
				holes |= bit
			}
		}
	}
	return holes
}

// DiscardPages is Discard by page index.
func (r *RAM) DiscardPages(first, n int) error {
	if first < 0 || n < 0 || n > r.Pages()-first {
		return ErrRange
	}
	return r.discard(uint64(first)*PageSize, uint64(n)*PageSize)
}
