package vmm

import (
	"slices"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// TestDiscardedPagesAreNotTouched: the guest writes pages and gives them back within one epoch, as a
// kernel does that clears what it puts into a balloon. They are captured as zero pages, and the host does not
// get memory for them by that.
func TestDiscardedPagesAreNotTouched(t *testing.T) {
	const first, pages, given = guestHeap / memory.PageSize, 100, 20
	c := NewCapture(16)
	done := make(chan error)
	m := newMachine(t, Config{OnPause: func(p *Pause) bool { done <- p.Capture(c); return true }})
	load(t, m, writeList(), nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	capture := func() {
		t.Helper()
		m.RequestPause()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	var all []int
	for p := range pages {
		all = append(all, first+p)
	}
	w := &writer{m: m}
	w.list(t, all)
	w.write(t)
	capture()
	w.write(t)
	m.Lock()
	err := m.RAM().DiscardPages(first+10, given)
	m.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	capture()
	var zero []uint32
	for p := range uint32(given) {
		zero = append(zero, first+10+p)
	}
	if !slices.Equal(c.Zero, zero) {
		t.Errorf("zero pages %v, want %v", c.Zero, zero)
	}
	for _, p := range c.Pages {
		if slices.Contains(zero, p) {
			t.Errorf("page %d is zero and was copied", p)
		}
	}
	if at, _, err := m.RAM().Populated(first + 10); err != nil || at < first+10+given {
		t.Errorf("page %d has memory again: %v", at, err)
	}
	// It takes some of them back.
	w.list(t, all[12:14])
	w.write(t)
	m.Lock()
	err = m.RAM().DiscardPages(first+13, 2)
	m.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	w.list(t, all[14:15])
	w.write(t) // after it was discarded
	capture()
	if !slices.Equal(c.Zero, []uint32{first + 13}) || !slices.Contains(c.Pages, first+12) || !slices.Contains(c.Pages, first+14) {
		t.Errorf("zero pages %v, pages %v", c.Zero, c.Pages)
	}
}
