package memory

// Index is the page index of the first of the n bytes at a guest address, where both are whole pages in
// one region.
func (r *RAM) Index(gpa, n uint64) (page int, ok bool) {
	off, err := r.offset(gpa, n)
	if err != nil || gpa%PageSize != 0 || n%PageSize != 0 {
		return 0, false
	}
	return int(off / PageSize), true
}

// DiscardPages is Discard by page index.
func (r *RAM) DiscardPages(first, n int) error {
	if first < 0 || n < 0 || n > r.Pages()-first {
		return ErrRange
	}
	return r.discard(uint64(first)*PageSize, uint64(n)*PageSize)
}
