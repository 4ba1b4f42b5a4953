package virtio

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// balloonRig is a machine with a balloon alone.
type balloonRig struct {
	*platformtest.Machine
	b *Balloon
	d *virtiotest.Driver
}

func newBalloonRig(t testing.TB) *balloonRig {
	r := &balloonRig{Machine: platformtest.New(t, ramSize)}
	r.Do(func() {
		h, err := pci.NewHost(r)
		if err == nil {
			r.b, err = NewBalloon(r, h)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return r
}

func startBalloon(t testing.TB) *balloonRig {
	r := newBalloonRig(t)
	r.Activate(t, r.b)
	r.d = virtiotest.Find(t, r.Machine, r.b.Slot(), freeRAM)
	r.d.EnableMSIX()
	r.d.Start(t, virtiotest.Indirect|balloonStatsVQ|balloonDeflateOnOOM|balloonFreePageHint|balloonReporting)
	return r
}

func (r *balloonRig) move(t testing.TB) *balloonRig {
	t.Helper()
	to := newBalloonRig(t)
	to.CopyRAM(r.Machine)
	state := r.Save(r.b)
	for range 2 {
		if err := to.Restore(to.b, state); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(to.Save(to.b), state) {
		t.Fatal("a restore changes the state")
	}
	to.d = r.d.On(to.Machine)
	to.Activate(t, to.b)
	return to
}

// dirtied fills pages with something and forgets that they were written.
func (r *balloonRig) dirtied(first, n uint64) {
	r.Do(func() {
		for p := first; p < first+n; p++ {
			r.RAM().Write(p*memory.PageSize, bytes.Repeat([]byte{0xaa}, memory.PageSize))
		}
		r.RAM().HarvestDirty(make([]uint64, r.RAM().DirtyWords()), nil)
	})
}

// gone fails unless exactly the named ones of the pages in [first, first+n) were discarded and will
// travel as zero pages.
func (r *balloonRig) gone(t *testing.T, first, n uint64, want ...uint64) {
	t.Helper()
	var got []uint64
	r.Do(func() {
		written, zero := make([]uint64, r.RAM().DirtyWords()), make([]uint64, r.RAM().DirtyWords())
		r.RAM().HarvestDirty(written, zero)
		for p := first; p < first+n; p++ {
			isZero := bytes.Count(r.RAM().Page(int(p)), []byte{0}) == memory.PageSize
			if marked := written[p/64]&zero[p/64]&(1<<(p%64)) != 0; marked != isZero {
				t.Errorf("page %d: zero %v, marked %v", p, isZero, marked)
			}
			if isZero {
				got = append(got, p)
			}
		}
	})
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("pages %v were given back, want %v", got, want)
	}
}

func (r *balloonRig) numbers(q int, pages ...uint32) []virtiotest.UsedElem {
	var p []byte
	for _, n := range pages {
		p = binary.LittleEndian.AppendUint32(p, n)
	}
	r.d.Queues[q].Add(virtiotest.Desc{Addr: r.d.Put(p), Len: uint32(len(p))})
	r.d.Queues[q].Kick()
	return r.d.Queues[q].Take()
}

func TestBalloonInflates(t *testing.T) {
	r := startBalloon(t)
	const at = 0x300
	r.dirtied(at, 16)
	r.Do(func() {
		if err := r.b.SetTarget(6 * memory.PageSize); err != nil {
			t.Fatal(err)
		}
		if err := r.b.SetTarget(ramSize + memory.PageSize); err == nil {
			t.Error("more than the guest has")
		}
	})
	if got := r.Load(r.d.Device+balloonTarget, 4); got != 6 {
		t.Fatalf("num_pages %d", got)
	}
	if r.MSIs[0].Count != 1 {
		t.Fatalf("%d interrupts for a new target", r.MSIs[0].Count)
	}
	if used := r.numbers(balloonInflate, at+5, at+4, at+3, at+9, at+10, at+1, 0xffff_ffff, 0x7fff_0000); len(used) != 1 {
		t.Fatalf("used %v", used)
	}
	r.gone(t, at, 16, at+1, at+3, at+4, at+5, at+9, at+10)
	r.Store(r.d.Device+balloonActual, 4, 6)
	r.Store(r.d.Device+balloonTarget, 4, 99) // not the driver's
	if used := r.numbers(balloonDeflate, at+5); len(used) != 1 {
		t.Fatalf("used %v", used)
	}
	r.Store(r.d.Device+balloonActual, 4, 5)

	to := r.move(t)
	to.Do(func() {
		s := to.b.Status()
		if s.Target != 6*memory.PageSize || s.Actual != 5*memory.PageSize || !s.Driver {
			t.Errorf("after a takeover: %+v", s)
		}
	})
	// The guest boots again: the wish stays, what was given is the guest's again.
	to.Do(func() { to.b.Suspend(); to.b.Reset() })
	to.Activate(t, to.b)
	to.Do(func() {
		if s := to.b.Status(); s.Target != 6*memory.PageSize || s.Actual != 0 || s.Driver {
			t.Errorf("after a reset: %+v", s)
		}
	})
	to.Store(to.d.Device+balloonActual, 4, 0xffff_ffff)
	if got := to.Load(to.d.Device+balloonActual, 4); got != ramSize/memory.PageSize {
		t.Errorf("actual %d: more than there is", got)
	}
}

func TestBalloonReporting(t *testing.T) {
	r := startBalloon(t)
	const at = 0x300
	r.dirtied(at, 16)
	q := r.d.Queues[balloonReport]
	q.AddIndirect(
		virtiotest.Desc{Addr: at * memory.PageSize, Len: 2 * memory.PageSize, Flags: writable},
		virtiotest.Desc{Addr: (at+4)*memory.PageSize - 1, Len: 2*memory.PageSize + 1, Flags: writable}, // whole pages only
		virtiotest.Desc{Addr: (at+8)*memory.PageSize + 1, Len: 2*memory.PageSize - 1, Flags: writable},
		virtiotest.Desc{Addr: (at+12)*memory.PageSize + 8, Len: 64, Flags: writable})
	q.Kick()
	if used := q.Take(); len(used) != 1 {
		t.Fatalf("used %v", used)
	}
	r.gone(t, at, 16, at, at+1, at+4, at+5, at+9)
	r.Do(func() {
		if s := r.b.Status(); s.Discarded != 5*memory.PageSize {
			t.Errorf("%d bytes were given back", s.Discarded)
		}
	})
}

func TestBalloonStatistics(t *testing.T) {
	r := startBalloon(t)
	q := r.d.Queues[balloonStats]
	fill := func(free uint64) {
		var p []byte
		for _, s := range []struct {
			tag uint16
			v   uint64
		}{{4, free}, {5, 512 << 20}, {99, 1}, {6, 300 << 20}} {
			p = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(p, s.tag), s.v)
		}
		q.Add(virtiotest.Desc{Addr: r.d.Put(append(p, 7)), Len: uint32(len(p) + 1)})
		q.Kick()
	}
	fill(100 << 20)
	if used := q.Take(); len(used) != 0 {
		t.Fatal("the buffer came back before it was asked for")
	}
	r = r.move(t)
	q = r.d.Queues[balloonStats]
	status := func() (s BalloonStatus) {
		r.Do(func() { s = r.b.Status() })
		return s
	}
	if s := status().Stats; s.Free != 100<<20 || s.Total != 512<<20 || s.Available != 300<<20 {
		t.Fatalf("statistics %+v", s)
	}
	if used := q.Take(); len(used) != 1 {
		t.Fatalf("used %v", used)
	}
	fill(50 << 20)
	if s := status().Stats; s.Free != 50<<20 {
		t.Fatalf("statistics %+v", s)
	}
	if used := q.Take(); len(used) != 0 {
		t.Fatal("asked for again at once")
	}
	fill(1) // a second buffer: the first one goes back
	if used := q.Take(); len(used) != 1 {
		t.Fatalf("used %v", used)
	}
}

func TestBalloonHints(t *testing.T) {
	r := startBalloon(t)
	const at = 0x300
	r.dirtied(at, 16)
	var hinted []int
	hear := func(page, n int) { hinted = append(hinted, page, n) }
	id := func() uint32 { return uint32(r.Load(r.d.Device+balloonHintID, 4)) }
	q := r.d.Queues[balloonHint]
	say := func(id uint32) {
		q.Add(virtiotest.Desc{Addr: r.d.Put(binary.LittleEndian.AppendUint32(nil, id)), Len: 4})
		q.Kick()
	}
	free := func(page, n uint32) {
		q.Add(virtiotest.Desc{Addr: uint64(page) * memory.PageSize, Len: n * memory.PageSize, Flags: writable})
		q.Kick()
	}
	if id() != hintDone {
		t.Fatalf("command %d before anybody asked", id())
	}
	free(at, 2) // under no command
	r.Do(func() { r.b.Hints(hear) })
	first := id()
	if first < hintFirst {
		t.Fatalf("command %d", first)
	}
	free(at, 2)
	say(first)
	free(at+2, 3)
	say(hintStop)
	free(at+8, 1)
	if fmt.Sprint(hinted) != fmt.Sprint([]int{at + 2, 3}) {
		t.Fatalf("hinted %v", hinted)
	}
	r.Do(func() { r.b.Hints(nil); r.b.Hints(hear) })
	if id() == first {
		t.Fatal("a second round has the number of the first")
	}
	say(first) // late
	free(at+4, 1)
	if len(hinted) != 2 {
		t.Fatalf("hinted %v: of an earlier round", hinted)
	}
	r.gone(t, at, 16) // a hint alone takes nothing away

	r = r.move(t)
	q = r.d.Queues[balloonHint]
	if id() != hintDone {
		t.Fatalf("command %d after a takeover: the guest keeps its free pages for nobody", id())
	}
	say(id())
	free(at, 1)
	if used := q.Take(); len(used) == 0 {
		t.Fatal("hints are not taken any more")
	}
}

func TestBalloonRefusesBadState(t *testing.T) {
	r := startBalloon(t)
	good := r.Save(r.b)
	own := len(good) - (4 + 4 + 32 + 1 + 2 + 4 + 1)
	for _, bad := range []struct {
		at int
		v  byte
	}{{own + 3, 1}, {own + 7, 1}, {own + 40, 2}, {own + 42, 0xff}} {
		b := bytes.Clone(good)
		b[bad.at] = bad.v
		b[own+40] = max(b[own+40], 1)
		if r.Restore(r.b, b) == nil {
			t.Errorf("byte %d = %#x was taken", bad.at-own, bad.v)
		}
	}
	for n := range good {
		if r.Restore(r.b, good[:n]) == nil {
			t.Fatalf("%d of %d bytes were taken", n, len(good))
		}
	}
	if err := r.Restore(r.b, good); err != nil {
		t.Error(err)
	}
}

func FuzzBalloonRings(f *testing.F) {
	good := virtiotest.Desc{Addr: 0x8000, Len: 64, Flags: virtiotest.Next, Next: 1}.Append(nil)
	good = virtiotest.Desc{Addr: 0x9000, Len: 8192, Flags: virtiotest.Write}.Append(good)
	f.Add(good, []byte{0, 0, 1, 0, 0, 0}, []byte{8, 0, 0, 0, 9, 0, 0, 0}, byte(0))
	f.Add(good[:16], []byte{0, 0, 2, 0, 0, 0, 0, 0}, []byte{2, 0, 0, 0}, byte(3))
	f.Fuzz(func(t *testing.T, desc, avail, data []byte, features byte) {
		r := newBalloonRig(t)
		r.Activate(t, r.b)
		r.Do(func() {
			r.RAM().Write(fuzzDesc, desc[:min(len(desc), fuzzAvail-fuzzDesc)])
			r.RAM().Write(fuzzAvail, avail[:min(len(avail), fuzzUsed-fuzzAvail)])
			r.RAM().Write(0x8000, data[:min(len(data), 0x4000)])
			d := &r.b.device
			d.features = (uint64(features&3)<<28 | uint64(features>>2)) & d.offered
			d.features |= featureVersion1
			d.status = statusAcknowledge | statusDriver | statusFeaturesOK
			d.applyFeatures()
			for i := range d.queues {
				q := &d.queues[i]
				q.size, q.desc, q.avail, q.used, q.vector, q.enabled = 16, fuzzDesc, fuzzAvail, fuzzUsed, uint16(i), true
			}
			d.setStatus(statusDriverOK)
			r.b.Hints(func(page, n int) {
				if page < 0 || n <= 0 || page+n > r.RAM().Pages() {
					t.Errorf("a hint of %d pages from %d on", n, page)
				}
			})
			for range 2 {
				for i := range d.queues {
					d.kick(i)
				}
				r.b.Status()
			}
			r.b.Suspend()
		})
		state := r.Save(r.b)
		if err := r.Restore(r.b, state); err != nil {
			t.Fatalf("a state of its own is refused: %v", err)
		}
		if !bytes.Equal(r.Save(r.b), state) {
			t.Fatal("a restore changes the state")
		}
		r.Activate(t, r.b)
		r.Do(func() { r.b.setStatus(0) }) // who still looks at a queue finds none
	})
}
