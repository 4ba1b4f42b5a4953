package lockstep

import (
	"bytes"
	"testing"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// hintPause is a pause of a machine whose guest hints.
type hintPause struct {
	ram    *memory.RAM
	hint   func(page, pages int)
	zeroed int
}

func (p *hintPause) Capture(*vmm.Capture) error     { return nil }
func (p *hintPause) Forget() error                  { return nil }
func (p *hintPause) Hints(fn func(page, pages int)) { p.hint = fn }
func (p *hintPause) Discard(page, pages int) error {
	p.zeroed += pages
	return p.ram.DiscardPages(page, pages)
}

func newTestFill(t *testing.T, pages int) (*fill, *hintPause) {
	ram, err := memory.New(uint64(pages) * memory.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	e := &Engine{cfg: Config{Machine: &fakeMachine{ram: ram}, FillPages: 2 * pages}, log: zap.NewNop()}
	return newFill(e, nil), &hintPause{ram: ram}
}

// resident says how many pages of RAM the host keeps.
func resident(t *testing.T, ram *memory.RAM) (n int) {
	for from := 0; ; {
		start, end, err := ram.Populated(from)
		if err != nil {
			t.Fatal(err)
		}
		if start == ram.Pages() {
			return n
		}
		n, from = n+end-start, end
	}
}

// TestHoles: memory that the guest never touched is copied as zero pages, and is not touched by that.
func TestHoles(t *testing.T) {
	f, p := newTestFill(t, 2048)
	for _, page := range []uint64{3, 4, 1000, 2047} {
		p.ram.Write(page*memory.PageSize, []byte("in use"))
	}
	p.ram.Write(500*memory.PageSize, make([]byte, 8)) // memory that holds zeros
	f.begin()
	for {
		did, err := f.copyPages()
		if err != nil {
			t.Fatal(err)
		}
		if !did {
			break
		}
	}
	list, _ := f.take()
	if len(list) != 2048 {
		t.Fatalf("%d pages copied", len(list))
	}
	for _, page := range list {
		if want := p.ram.Page(int(page.Index))[:6]; page.Index == 3 && !bytes.Equal(page.Data[:6], want) {
			t.Errorf("page %d is copied as %q", page.Index, page.Data[:6])
		}
	}
	if n := resident(t, p.ram); n > 6 { // the test itself has looked at one more
		t.Errorf("the host keeps %d pages for the guest, which uses 4", n)
	}
}

// TestHints: a hinted page becomes zero on both sides, unless it was written after the record of written
// pages began, or has been copied.
func TestHints(t *testing.T) {
	const pages = 8192
	f, p := newTestFill(t, pages)
	fillAll := func() {
		for page := range uint64(pages) {
			p.ram.Write(page*memory.PageSize, []byte("old content of a free page"))
		}
		p.ram.HarvestDirty(make([]uint64, p.ram.DirtyWords()), nil)
	}
	fillAll()
	f.begin()
	f.askHints(p)
	p.hint(0, 6000)
	p.hint(7000, 100)
	p.hint(7050, 100) // twice
	f.sealed([]uint32{10, 5999}, []uint32{20})
	f.discardFree(p)
	if p.zeroed != discardPages {
		t.Fatalf("%d pages in one pause", p.zeroed)
	}
	f.sealed([]uint32{5000, 5998}, nil) // written since
	for range 3 {
		f.discardFree(p)
	}
	f.endHints()
	zero := make([]uint64, p.ram.DirtyWords())
	p.ram.HarvestDirty(make([]uint64, p.ram.DirtyWords()), zero)
	for page := range pages {
		hinted := page < 6000 || page >= 7000 && page < 7150
		want := hinted && page != 10 && page != 20 && page != 5000 && page != 5998 && page != 5999
		isZero := p.ram.Page(page)[0] == 0
		if marked := zero[page/64]&(1<<(page%64)) != 0; marked != want || isZero != want {
			t.Fatalf("page %d: zero %v, travels as such %v, want %v", page, isZero, marked, want)
		}
	}
	if want := pages - 6000 - 150; f.pages.left != want {
		t.Errorf("%d pages are left to copy, want %d", f.pages.left, want)
	}

	// What has been copied already stays as it is: the copy may be on its way.
	f, p = newTestFill(t, 1024)
	f.begin()
	f.askHints(p)
	for f.pages.left > 0 {
		if _, err := f.copyPages(); err != nil {
			t.Fatal(err)
		}
	}
	p.hint(0, 1024)
	f.discardFree(p)
	if p.zeroed != 0 {
		t.Errorf("%d pages were discarded after they were copied", p.zeroed)
	}

	// What a failed capture gives back to be copied again may have been written since it was copied first.
	f, p = newTestFill(t, 1024)
	f.begin()
	f.askHints(p)
	p.hint(0, 100)
	if _, err := f.copyPages(); err != nil {
		t.Fatal(err)
	}
	list, slab := f.take()
	f.sealed([]uint32{list[0].Index}, nil)
	f.untake(list, slab)
	p.hint(100, 100)
	f.discardFree(p)
	if p.zeroed != 0 {
		t.Errorf("%d pages were discarded that may have been written", p.zeroed)
	}
}

// TestListsAscend: pages that a failed capture gives back come in a list of their own, since those that were
// copied meanwhile lie behind them.
func TestListsAscend(t *testing.T) {
	f, p := newTestFill(t, 16*fillChunk)
	for page := range uint64(16 * fillChunk) {
		p.ram.Write(page*memory.PageSize, []byte("in use"))
	}
	f.begin()
	copyOnce := func() bool {
		did, err := f.copyPages()
		if err != nil {
			t.Fatal(err)
		}
		return did
	}
	copyOnce()
	first, slab := f.take()
	copyOnce()
	f.untake(first, slab)
	seen := map[uint32]bool{}
	for range 4 {
		for copyOnce() {
		}
		if !f.full() {
			t.Fatal("nobody would ask for the list's epoch")
		}
		list, slab := f.take()
		for i, page := range list {
			if i > 0 && page.Index <= list[i-1].Index {
				t.Fatalf("page %d after %d", page.Index, list[i-1].Index)
			}
			seen[page.Index] = true
		}
		f.giveBack(slab)
		if f.pages.left == 0 {
			break
		}
	}
	if len(seen) != 16*fillChunk {
		t.Errorf("%d of %d pages travelled", len(seen), 16*fillChunk)
	}
}
