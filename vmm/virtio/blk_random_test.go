package virtio

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

var seedFlag = flag.Uint64("seed", 0, "run this one")

const (
	slotSectors = 8 // of a place on the disk, and the longest request
	slotBytes   = slotSectors * sectorSize
)

// slot is guest memory for one request.
type slot struct {
	queue                        int
	header, ranges, data, status uint64
}

// player drives a disk of several queues at random.
type player struct {
	t     *testing.T
	rng   *rand.Rand
	r     *rig
	d     *virtiotest.Driver
	slots []slot
	used  []uint16 // how many each queue has used, in all
	model []byte   // what a guest that waits for its requests knows of the disk
	seen  []byte   // what was reported makes of the mirror
}

func newPlayer(t *testing.T, seed uint64) *player {
	p := &player{t: t, rng: rand.New(rand.NewPCG(seed, 3)), r: newRigOf(t, 3)}
	p.r.file.exact = p.rng.IntN(3) > 0
	size := p.r.file.Size()
	p.model, p.seen, p.used = make([]byte, size), make([]byte, size), make([]uint16, 3)
	p.watch()
	p.r.activate(t)
	p.d = virtiotest.Find(t, p.r.Machine, p.r.blk.Slot(), freeRAM)
	p.d.EnableMSIX()
	p.d.Start(t, virtiotest.EventIdx|virtiotest.Indirect|blkFeatureMQ|blkFeatureDiscard|blkFeatureWriteZeroes)
	for range 24 {
		p.slots = append(p.slots, slot{header: p.d.Alloc(16), ranges: p.d.Alloc(64), data: p.d.Alloc(slotBytes), status: p.d.Alloc(1)})
	}
	return p
}

func (p *player) watch() {
	p.r.Do(func() {
		p.r.OnWrite = func(w platformtest.Write) {
			w.Apply(p.seen)
			runtime.Gosched() // with the device lock held: others finish meanwhile
		}
	})
}

// zoneAt is where a request goes: within the place that belongs to it, or anywhere.
func (p *player) zoneAt(place int) (sector uint64, n int) {
	n = 1 + p.rng.IntN(slotSectors)
	return uint64(place*slotSectors + p.rng.IntN(slotSectors-n+1)), n
}

// request puts a random request on a random queue. expect, where the request has its place to itself,
// checks the outcome and brings the model up to it.
func (p *player) request(i, place int) (expect func()) {
	s := &p.slots[i]
	s.queue = p.rng.IntN(3)
	sector, n := p.zoneAt(place)
	at, bytes_ := int(sector)*sectorSize, n*sectorSize
	header := func(op uint32, sector uint64) {
		b := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, op), 0)
		b = binary.LittleEndian.AppendUint64(b[:8], sector)
		p.r.Do(func() { p.r.RAM().Write(s.header, b); p.r.RAM().Write(s.status, []byte{0xee}) })
	}
	descs := []virtiotest.Desc{{Addr: s.header, Len: 16}}
	switch p.rng.IntN(10) {
	case 0, 1, 2, 3:
		fill := bytes.Repeat([]byte{byte(1 + p.rng.IntN(255))}, bytes_)
		header(blkOut, sector)
		p.r.Do(func() { p.r.RAM().Write(s.data, fill) })
		descs = append(descs, virtiotest.Desc{Addr: s.data, Len: uint32(bytes_)})
		expect = func() { copy(p.model[at:], fill) }
	case 4, 5, 6:
		header(blkIn, sector)
		descs = append(descs, virtiotest.Desc{Addr: s.data, Len: uint32(bytes_), Flags: writable})
		expect = func() {
			if got := p.d.Get(s.data, uint64(bytes_)); !bytes.Equal(got, p.model[at:at+bytes_]) {
				p.t.Errorf("%d sectors at %d: read what was not there", n, sector)
			}
		}
	case 7, 8:
		op, flag := uint32(blkWriteZeroes), uint32(p.rng.IntN(2))
		if p.rng.IntN(2) == 0 {
			op, flag = blkDiscard, 0
		}
		header(op, 0)
		b := binary.LittleEndian.AppendUint64(nil, sector)
		b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, uint32(n)), flag)
		if op == blkDiscard && n > 1 { // the same in two ranges
			binary.LittleEndian.PutUint32(b[8:], 1)
			b = binary.LittleEndian.AppendUint64(b, sector+1)
			b = binary.LittleEndian.AppendUint64(b, uint64(n-1))
		}
		p.r.Do(func() { p.r.RAM().Write(s.ranges, b) })
		descs = append(descs, virtiotest.Desc{Addr: s.ranges, Len: uint32(len(b))})
		expect = func() {
			if op == blkWriteZeroes || p.r.file.exact {
				clear(p.model[at : at+bytes_])
			}
		}
	default:
		header(blkFlush, 0)
		expect = func() {}
	}
	descs = append(descs, virtiotest.Desc{Addr: s.status, Len: 1, Flags: writable})
	if q := p.d.Queues[s.queue]; p.rng.IntN(2) == 0 {
		q.Add(descs...)
	} else {
		q.AddIndirect(descs...)
	}
	p.used[s.queue]++
	return expect
}

func (p *player) round() {
	apart := p.rng.IntN(2) == 0
	places := p.rng.Perm(40)
	var expect []func()
	count := 1 + p.rng.IntN(len(p.slots))
	moves := p.rng.IntN(6) == 0
	for i := range count {
		place := places[i]
		if !apart {
			place = p.rng.IntN(3)
		}
		expect = append(expect, p.request(i, place))
		if p.rng.IntN(3) == 0 {
			p.d.Queues[p.slots[i].queue].Kick()
		}
	}
	for _, q := range p.d.Queues {
		q.Kick()
	}
	if p.rng.IntN(5) == 0 {
		p.r.blk.CopyRange(0, p.r.file.Size()/2, nil)
	}
	if moves {
		p.move()
	}
	for i, q := range p.d.Queues {
		q.Wait(p.t, p.used[i])
	}
	for i := range count {
		if got := p.d.Get(p.slots[i].status, 1)[0]; got != blkOK {
			p.t.Fatalf("request %d: status %d", i, got)
		}
		if apart {
			expect[i]()
		}
	}
	p.r.Do(func() {
		if !apart {
			p.r.file.mu.Lock()
			copy(p.model, p.r.file.data)
			p.r.file.mu.Unlock()
		}
		if !bytes.Equal(p.r.file.data, p.model) {
			p.t.Fatal("the disk is not what the guest's requests make of it")
		}
		if !bytes.Equal(p.r.file.data, p.seen) {
			p.t.Fatal("the mirror is not what the disk is")
		}
	})
}

// move goes on in another machine, on the mirror of the disk, as a takeover does.
func (p *player) move() {
	p.r.Do(p.r.blk.Suspend)
	p.r.blk.Drain()
	to := p.r.move(p.t)
	p.r.Do(func() {
		copy(to.file.data, p.seen)
		to.file.exact = p.r.file.exact
	})
	p.r, p.d = to, p.d.On(to.Machine)
	p.watch()
	to.activate(p.t)
}

// TestBlkRandom plays requests of every kind on several queues, side by side and over each other, with
// copies between and takeovers in their midst: the guest finds what it wrote, no two accesses to the file
// meet where one of them changes it, and what is reported makes the mirror what the disk is.
func TestBlkRandom(t *testing.T) {
	base, n := rand.Uint64N(1<<40), 12
	if *seedFlag != 0 {
		base, n = *seedFlag, 1
	}
	for i := range n {
		seed := base + uint64(i)
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			p := newPlayer(t, seed)
			for range 60 {
				p.round()
			}
		})
		if !ok {
			t.Fatalf("repeat with: go test -run TestBlkRandom -seed %d", seed)
		}
	}
}
