package replica

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/core"
	realmemory "github.com/pollux-ha/pollux/vmm/memory"
)

// protectedRig is a replica on real memory, entitled since epoch 4, with a stream of term 2.
func protectedRig(t *testing.T) (*rig, *twin, *realmemory.RAM) {
	ram, err := realmemory.New(realmemory.MinSize) // 256 pages
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	r := newRig(t, func(c *Config) { c.RAM = window{ram} })
	r.applied(1, pact.Solo, a1, pact.Party{}, 0)
	p := r.dial(checkpoint.Hello{Term: 1})
	for e := pact.Epoch(1); e <= 4; e++ {
		p.send(e, 1, 0, nil)
		p.acked(e)
	}
	r.applied(2, pact.Protected, a1, b2, 4)
	return r, p, ram
}

// window is the first pages of a RAM.
type window struct{ *realmemory.RAM }

func (window) Pages() int { return pages }

func poison(t *testing.T, ram *realmemory.RAM, page int) {
	t.Helper()
	if err := ram.Poison(page); errors.Is(err, realmemory.ErrNoPoison) {
		t.Skipf("needs userfaultfd: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// same compares the image with the primary's, once the epoch that was acknowledged last has been applied.
func same(t *testing.T, p *twin, ram *realmemory.RAM) {
	t.Helper()
	if err := p.w.Write(&checkpoint.PagesWanted{Epoch: 1, Pages: []uint32{0}}); err != nil {
		t.Fatal(err)
	}
	expect[*checkpoint.PageCopy](p)
	got := make([]byte, checkpoint.PageSize)
	for i := range pages {
		if err := ram.Try(i, got); err != nil || !bytes.Equal(got, p.ram.Page(i)) {
			t.Errorf("page %d: %v, begins with %x, want %x", i, err, got[:4], p.ram.Page(i)[:4])
		}
	}
}

// A primary that has lost a page gets it as of the epoch that it names, or learns that there is none.
func TestCopies(t *testing.T) {
	_, p, ram := protectedRig(t)
	ask := func(epoch pact.Epoch, page uint32) *checkpoint.PageCopy {
		t.Helper()
		if err := p.w.Write(&checkpoint.PagesWanted{Epoch: epoch, Pages: []uint32{page}}); err != nil {
			t.Fatal(err)
		}
		return expect[*checkpoint.PageCopy](p)
	}
	if c := ask(4, 3); c.Page != 3 || c.Epoch != 4 || !bytes.Equal(c.Data, p.ram.Page(3)) {
		t.Errorf("page %d of epoch %d, %d bytes", c.Page, c.Epoch, len(c.Data))
	}
	if c := ask(5, 3); c.Data != nil {
		t.Errorf("a page of an epoch that is not here: %+v", c.Epoch)
	}
	poison(t, ram, 2)
	if c := ask(4, 2); c.Data != nil {
		t.Error("a copy of a page that can't be read")
	}
	if err := p.w.Write(&checkpoint.PagesWanted{Epoch: 4, Pages: []uint32{pages}}); err != nil {
		t.Fatal(err)
	}
	for range p.messages { // the stream ends: there is no such page
	}
}

// A page that an epoch brings whole, or does not touch, is no obstacle; one to which a delta comes is asked for,
// and nothing is acknowledged until it is there.
func TestDamagedPageIsAskedForAgain(t *testing.T) {
	r, p, ram := protectedRig(t)
	p.send(5, 2, 0, nil)
	p.acked(5)
	poison(t, ram, 6)
	p.send(6, 2, 0, nil) // page 6, whole: the image gets a fresh one
	p.acked(6)
	same(t, p, ram)

	poison(t, ram, 5)
	delta := func(ep *checkpoint.Epoch) {
		p.ram.Page(5)[9]++
		ep.Pages, ep.Data = []uint32{5}, p.ram.Page(5)
	}
	p.send(7, 2, 0, func(ep *checkpoint.Epoch) { clear(p.ram.Page(7)); delta(ep) })
	if m := expect[*checkpoint.PagesLost](p); !slices.Equal(m.Pages, []uint32{5}) || m.Differs {
		t.Fatalf("%+v", m)
	}
	p.send(8, 2, 0, func(ep *checkpoint.Epoch) { clear(p.ram.Page(8)); delta(ep) }) // it was on its way
	p.enc.Forget(5)
	p.send(9, 2, 0, func(ep *checkpoint.Epoch) { clear(p.ram.Page(9)); delta(ep) })
	p.acked(9) // and none before
	same(t, p, ram)
	if s, acked, whole := r.side.State(); s != core.Replica || acked != 9 || !whole {
		t.Errorf("%s at %d, whole %t", s, acked, whole)
	}
	p.conn.Close()
	if c := await(t, r.h.proposals, "proposal"); c.Kind != pact.Promote || c.Epoch != 9 {
		t.Errorf("%+v", c)
	}
}

// A page that is found damaged while nothing goes on is asked for; a stream that goes on asks for it too. Without a
// primary the image is of no use.
func TestLostPage(t *testing.T) {
	r, p, _ := protectedRig(t)
	p.send(5, 2, 0, nil)
	p.acked(5)
	if err := p.w.Write(&checkpoint.Heartbeat{Term: 2}); err != nil {
		t.Fatal(err)
	}
	r.side.LosePage(3)
	if err := p.w.Write(&checkpoint.Heartbeat{Term: 2}); err != nil {
		t.Fatal(err)
	}
	if m := expect[*checkpoint.PagesLost](p); !slices.Equal(m.Pages, []uint32{3}) {
		t.Fatalf("%+v", m)
	}
	if err := p.w.Write(&checkpoint.Goodbye{}); err != nil {
		t.Fatal(err)
	}
	for range p.messages {
	}
	again := r.dial(checkpoint.Hello{Term: 2, Resume: true})
	again.ram = p.ram
	if err := again.w.Write(&checkpoint.Heartbeat{Term: 2}); err != nil {
		t.Fatal(err)
	}
	if m := expect[*checkpoint.PagesLost](again); !slices.Equal(m.Pages, []uint32{3}) {
		t.Fatalf("%+v", m)
	}
	again.send(6, 2, 0, nil)
	again.send(7, 2, 0, func(ep *checkpoint.Epoch) { clear(p.ram.Page(7)); ep.Pages, ep.Data = []uint32{3}, p.ram.Page(3) })
	again.acked(7)
	r.side.LosePage(4)
	again.conn.Close()
	if how := await(t, r.h.ended, "end"); how != core.EndDiscarded {
		t.Errorf("ended %v", how)
	}
}

// A page that has silently changed is found by its sum, of the image's own epoch only, and asked for again.
func TestScrubFindsAChangedPage(t *testing.T) {
	r, p, ram := protectedRig(t)
	sums := func(epoch pact.Epoch) {
		t.Helper()
		m := &checkpoint.PageSums{Epoch: epoch}
		for i := range uint32(pages) {
			m.Pages, m.Sums = append(m.Pages, i), append(m.Sums, checkpoint.PageSum(p.ram.Page(int(i))))
		}
		if err := p.w.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	sums(4) // all is well
	p.send(5, 2, 0, nil)
	p.acked(5)
	same(t, p, ram)
	ram.Page(3)[100] ^= 4 // a bit turns over
	sums(4)               // of an epoch that the image has left
	p.send(6, 2, 0, nil)
	p.acked(6)
	sums(6)
	if m := expect[*checkpoint.PagesLost](p); !slices.Equal(m.Pages, []uint32{3}) || !m.Differs {
		t.Fatalf("%+v", m)
	}
	sums(6) // once more: it has been asked for
	p.send(7, 2, 0, nil)
	p.enc.Forget(3)
	p.send(8, 2, 0, func(ep *checkpoint.Epoch) { clear(p.ram.Page(8)); ep.Pages, ep.Data = []uint32{3}, p.ram.Page(3) })
	p.acked(8) // and not 7
	same(t, p, ram)
	if _, acked, _ := r.side.State(); acked != 8 {
		t.Errorf("at %d", acked)
	}
	for len(p.messages) > 0 {
		if m, again := (<-p.messages).(*checkpoint.PagesLost); again {
			t.Errorf("asked for once more: %+v", m)
		}
	}
}
