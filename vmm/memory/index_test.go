package memory

import (
	"math/rand/v2"
	"testing"
)

// TestHoles compares with what was written, page by page.
func TestHoles(t *testing.T) {
	const pages = 64 * 20
	rnd := rand.New(rand.NewPCG(1, 2))
	r, err := New(pages * PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	used := make([]bool, pages)
	for range 300 {
		first := rnd.IntN(pages)
		n := min(1+rnd.IntN(40), pages-first)
		if rnd.IntN(2) == 0 {
			if err := r.DiscardPages(first, n); err != nil {
				t.Fatal(err)
			}
			for p := first; p < first+n; p++ {
				used[p] = false
			}
		} else {
			r.Write(uint64(first)*PageSize, []byte{1})
			used[first] = true
		}
		word, asked := rnd.IntN(pages/64), rnd.Uint64()
		got := r.Holes(word, asked)
		for bit := range 64 {
			want := asked&(1<<bit) != 0 && !used[word*64+bit]
			if got&(1<<bit) != 0 != want {
				t.Fatalf("page %d: hole %v, want %v", word*64+bit, !want, want)
			}
		}
	}
	if r.DiscardPages(pages-1, 2) == nil || r.DiscardPages(-1, 1) == nil || r.DiscardPages(0, -1) == nil {
		t.Error("pages that there are not")
	}
	if _, ok := r.Index(PageSize/2, PageSize); ok {
		t.Error("half a page")
	}
	if page, ok := r.Index(7*PageSize, PageSize); !ok || page != 7 {
		t.Errorf("page %d", page)
	}
}
