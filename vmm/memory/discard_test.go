package memory

import (
	"bytes"
	"slices"
	"testing"
)

func newRAM(t *testing.T, size uint64) *RAM {
	t.Helper()
	r, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func indexes(bitmap []uint64) (pages []int) {
	for i, w := range bitmap {
		for b := range 64 {
			if w&(1<<b) != 0 {
				pages = append(pages, i*64+b)
			}
		}
	}
	return pages
}

func harvest(r *RAM) (dirty, zero []int) {
	d, z := make([]uint64, r.DirtyWords()), make([]uint64, r.DirtyWords())
	r.HarvestDirty(d, z)
	return indexes(d), indexes(z)
}

func TestDiscard(t *testing.T) {
	r := newRAM(t, 4<<20)
	full := bytes.Repeat([]byte{7}, 4*PageSize)
	if err := r.Write(10*PageSize, full); err != nil {
		t.Fatal(err)
	}
	if err := r.Discard(11*PageSize, 2*PageSize); err != nil {
		t.Fatal(err)
	}
	if err := r.Write(12*PageSize+5, []byte{1}); err != nil { // and written again
		t.Fatal(err)
	}
	dirty, zero := harvest(r)
	if !slices.Equal(dirty, []int{10, 11, 12, 13}) || !slices.Equal(zero, []int{11}) {
		t.Errorf("dirty %v, zero %v", dirty, zero)
	}
	if r.Page(11)[0] != 0 || r.Page(12)[0] != 0 || r.Page(12)[5] != 1 || r.Page(10)[0] != 7 || r.Page(13)[0] != 7 {
		t.Error("the pages do not hold what they should")
	}
	for _, bad := range [][2]uint64{{100, PageSize}, {PageSize, 100}, {4 << 20, PageSize}, {0, 5 << 20}} {
		if r.Discard(bad[0], bad[1]) == nil {
			t.Errorf("%d bytes at %#x could be discarded", bad[1], bad[0])
		}
	}
	// What a harvest was told of is corrected by the next one.
	d, z := make([]uint64, r.DirtyWords()), make([]uint64, r.DirtyWords())
	if err := r.Discard(20*PageSize, 2*PageSize); err != nil {
		t.Fatal(err)
	}
	r.HarvestDirty(d, z)
	if err := r.Write(20*PageSize, []byte{1}); err != nil {
		t.Fatal(err)
	}
	r.HarvestDirty(d, z)
	if got := indexes(z); !slices.Equal(got, []int{21}) {
		t.Errorf("zero after a later write: %v", got)
	}
}

func TestClear(t *testing.T) {
	r := newRAM(t, 8<<20)
	used := []int{0, 1, 5, 6, 7, 900, 1500, 2047}
	for _, p := range used {
		if err := r.Write(uint64(p)*PageSize, []byte{9}); err != nil {
			t.Fatal(err)
		}
	}
	// A page with a file of its own is not reached by punching holes into the RAM file.
	if err := r.Replace(1000, bytes.Repeat([]byte{3}, PageSize)); err != nil {
		t.Fatal(err)
	}
	harvest(r)
	for round := range 2 {
		var cleared []int
		steps := 0
		for from := 0; from < r.Pages(); steps++ {
			next, err := r.Clear(from, 3)
			if err != nil || next <= from {
				t.Fatalf("clear from %d: to %d, %v", from, next, err)
			}
			from = next
			_, zero := harvest(r)
			if len(zero) > 3 {
				t.Errorf("%d pages in one step", len(zero))
			}
			cleared = append(cleared, zero...)
		}
		want := append([]int{1000}, used...)
		slices.Sort(want)
		if round == 0 && (!slices.Equal(cleared, want) || steps < 3) {
			t.Errorf("cleared %v in %d steps, want %v", cleared, steps, want)
		}
		if round == 1 && !slices.Equal(cleared, []int{1000}) {
			t.Errorf("clearing empty memory cleared %v", cleared)
		}
	}
	for p := range r.Pages() {
		if !bytes.Equal(r.Page(p), make([]byte, PageSize)) {
			t.Fatalf("page %d is not zero", p)
		}
	}
}
