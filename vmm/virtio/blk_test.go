package virtio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// disk is a disk's driver.
type disk struct {
	*virtiotest.Driver
	t testing.TB
	r *rig
}

func newDisk(t testing.TB, r *rig, features uint64) *disk {
	t.Helper()
	d := &disk{virtiotest.Find(t, r.Machine, r.blk.Slot(), freeRAM), t, r}
	d.EnableMSIX()
	d.Start(t, features)
	return d
}

func (d *disk) queue() *virtiotest.Queue { return d.Queues[0] }

func (d *disk) header(op uint32, sector uint64) virtiotest.Desc {
	h := binary.LittleEndian.AppendUint32(nil, op)
	h = binary.LittleEndian.AppendUint32(h, 0)
	return virtiotest.Desc{Addr: d.Put(binary.LittleEndian.AppendUint64(h, sector)), Len: 16}
}

// req is a request that the test has made; its status byte begins as 0xee.
type req struct {
	head         uint16
	data, status uint64
}

func (d *disk) add(op uint32, sector uint64, out []byte, in uint32) req {
	d.t.Helper()
	r := req{status: d.Put([]byte{0xee})}
	descs := []virtiotest.Desc{d.header(op, sector)}
	if out != nil {
		descs = append(descs, virtiotest.Desc{Addr: d.Put(out), Len: uint32(len(out))})
	}
	if in > 0 {
		r.data = d.Alloc(uint64(in))
		descs = append(descs, virtiotest.Desc{Addr: r.data, Len: in, Flags: writable})
	}
	r.head = d.queue().Add(append(descs, virtiotest.Desc{Addr: r.status, Len: 1, Flags: writable})...)
	return r
}

func (d *disk) read(sector uint64, n uint32) req     { return d.add(blkIn, sector, nil, n) }
func (d *disk) write(sector uint64, data []byte) req { return d.add(blkOut, sector, data, 0) }
func (d *disk) flush() req                           { return d.add(blkFlush, 0, nil, 0) }

func (d *disk) statusOf(r req) byte { return d.Get(r.status, 1)[0] }

func sectors(fill byte, n int) []byte { return bytes.Repeat([]byte{fill}, n*sectorSize) }

func TestBlkRequests(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	total := uint64(r.file.Size() / sectorSize)
	for _, features := range []uint64{0, virtiotest.EventIdx | virtiotest.Indirect} {
		d := newDisk(t, r, features)
		w := d.write(3, sectors('a', 2))
		rd := d.read(2, 3*sectorSize)
		last := d.read(total-1, sectorSize)
		fl := d.flush()
		id := d.add(blkGetID, 0, nil, 20)
		shortID := d.add(blkGetID, 0, nil, 4)
		bad := []req{
			d.read(total, sectorSize),
			d.read(total-1, 2*sectorSize),
			d.read(1<<63, sectorSize),
			d.read(1<<55, sectorSize),
			d.read(0, 100),
			d.write(total, sectors('x', 1)),
			d.write(0, []byte("odd")),
		}
		unknown := []req{d.add(11, 0, sectors(0, 1), 0), d.add(99, 0, nil, 0)}
		d.queue().Kick()
		used := d.queue().Wait(t, 15)
		lengths := map[uint16]uint32{}
		for _, u := range used {
			lengths[uint16(u.ID)] = u.Len
		}
		for _, q := range []req{w, rd, last, fl, id, shortID} {
			if got := d.statusOf(q); got != blkOK {
				t.Errorf("request %d: status %d", q.head, got)
			}
		}
		for _, q := range bad {
			if got := d.statusOf(q); got != blkIOErr {
				t.Errorf("bad request %d: status %d", q.head, got)
			}
		}
		for _, q := range unknown {
			if got := d.statusOf(q); got != blkUnsupported {
				t.Errorf("unknown request %d: status %d", q.head, got)
			}
		}
		if got := d.Get(rd.data, 3*sectorSize); !bytes.Equal(got, append(sectors(0, 1), sectors('a', 2)...)) {
			t.Error("wrong data were read")
		}
		if got := d.Get(id.data, 20); string(got) != "pollux-test\x00\x00\x00\x00\x00\x00\x00\x00\x00" {
			t.Errorf("serial %q", got)
		}
		if got := d.Get(shortID.data, 4); string(got) != "poll" {
			t.Errorf("short serial %q", got)
		}
		if lengths[w.head] != 1 || lengths[rd.head] != 3*sectorSize+1 || lengths[id.head] != 21 {
			t.Errorf("lengths %v", used)
		}
	}
	if got := r.Load(virtiotest.Find(t, r.Machine, r.blk.Slot(), freeRAM).Device, 8); got != total {
		t.Errorf("capacity %d", got)
	}
}

func TestBlkMalformed(t *testing.T) {
	for name, bufs := range map[string][]virtiotest.Desc{
		"no header":    {{Addr: 0x9000, Len: 1, Flags: writable}},
		"short header": {{Addr: 0x9000, Len: 15}, {Addr: 0x9000, Len: 1, Flags: writable}},
		"no status":    {{Addr: 0x9000, Len: 16}},
	} {
		r := newRig(t)
		r.activate(t)
		d := newDisk(t, r, 0)
		d.queue().Add(bufs...)
		d.queue().Kick()
		if d.Status()&statusNeedsReset == 0 {
			t.Errorf("%s: status %#x", name, d.Status())
		}
	}
	// The same chain twice, while the first is under way.
	r := newRig(t)
	begun := r.file.hold()
	r.activate(t)
	d := newDisk(t, r, 0)
	w := d.write(0, sectors(1, 1))
	d.queue().Offer(w.head)
	d.queue().Kick()
	<-begun
	if d.Status()&statusNeedsReset == 0 {
		t.Errorf("a chain in flight twice: status %#x", d.Status())
	}
	r.move(t)
}

func TestBlkReadOnly(t *testing.T) {
	m := platformtest.New(t, ramSize)
	file := newMemFile(4096)
	var b *Blk
	m.Do(func() {
		h, err := pci.NewHost(m)
		if err != nil {
			t.Fatal(err)
		}
		if b, err = NewBlk(m, h, BlkConfig{File: file, ReadOnly: true}); err != nil {
			t.Fatal(err)
		}
	})
	m.Activate(t, b)
	d := &disk{virtiotest.Find(t, m, b.Slot(), freeRAM), t, nil}
	d.Start(t, 0)
	if d.Offered()&blkFeatureRO == 0 {
		t.Error("read-only is not announced")
	}
	w, rd := d.write(0, sectors(1, 1)), d.read(0, sectorSize)
	d.queue().Kick()
	d.queue().Wait(t, 2)
	if d.statusOf(w) != blkIOErr || d.statusOf(rd) != blkOK || file.data[0] != 0 {
		t.Errorf("write %d, read %d", d.statusOf(w), d.statusOf(rd))
	}
	b.Drain()
}

func TestBlkErrors(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, 0)
	r.file.setFail(errors.New("input/output error"))
	reqs := []req{d.write(0, sectors(1, 1)), d.read(0, sectorSize), d.flush()}
	d.queue().Kick()
	d.queue().Wait(t, 3)
	for _, q := range reqs {
		if got := d.statusOf(q); got != blkIOErr {
			t.Errorf("request %d: status %d", q.head, got)
		}
	}
	if len(r.Writes) != 0 {
		t.Error("a write that did not land was reported")
	}
	failed := make(chan error, 1)
	r.blk.CopyRange(0, 512, func(err error) { failed <- err })
	if err := <-failed; err == nil {
		t.Error("a copy that could not be read succeeded")
	}
}

// TestBlkWriteReportedBeforeUsed proves the order that output commit rests on: the write is reported
// before the used index moves.
func TestBlkWriteReportedBeforeUsed(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, virtiotest.EventIdx)
	q := d.queue()
	reported := uint16(0)
	r.Do(func() {
		r.OnWrite = func(w platformtest.Write) {
			if used := q.UsedIndex(); used > reported {
				t.Errorf("write %d is reported when the used index is %d", reported, used)
			}
			if !bytes.Equal(r.file.data[w.Offset:w.Offset+int64(len(w.Data))], w.Data) {
				t.Errorf("write %d is reported before it has landed", reported)
			}
			reported++
		}
	})
	for i := range 80 {
		d.write(uint64(i), sectors(byte(i+1), 1))
	}
	q.Kick()
	q.Wait(t, 80)
	if reported != 80 {
		t.Errorf("%d writes reported", reported)
	}
	for i, w := range r.Writes {
		if w.Offset != int64(i*sectorSize) || w.Data[0] != byte(i+1) {
			t.Fatalf("write %d is out of order", i)
		}
	}
}

// TestBlkDataIsTakenAtSubmission changes a write's buffer while the write waits.
func TestBlkDataIsTakenAtSubmission(t *testing.T) {
	r := newRig(t)
	begun := r.file.hold()
	r.activate(t)
	d := newDisk(t, r, 0)
	buf := d.Put(sectors('a', 1))
	d.queue().Add(d.header(blkOut, 0), virtiotest.Desc{Addr: buf, Len: sectorSize},
		virtiotest.Desc{Addr: d.Alloc(1), Len: 1, Flags: writable})
	d.queue().Kick()
	<-begun
	r.Do(func() { r.RAM().Write(buf, sectors('b', 1)) })
	r.file.release()
	d.queue().Wait(t, 1)
	if r.file.data[0] != 'a' || r.Writes[0].Data[0] != 'a' {
		t.Error("the data were taken late")
	}
}

// TestBlkInFlight takes a checkpoint while requests are under way, and goes on from it elsewhere.
func TestBlkInFlight(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, virtiotest.EventIdx|virtiotest.Indirect)
	d.write(0, sectors('0', 1))
	d.queue().Kick()
	d.queue().Wait(t, 1)
	begun := r.file.hold()
	reqs := []req{d.write(1, sectors('1', 1)), d.read(0, 2*sectorSize), d.flush(), d.write(1, sectors('2', 1)), d.read(1, sectorSize)}
	d.queue().Kick()
	<-begun // the first is under way, the rest waits

	to := r.move(t)
	copy(to.file.data, r.file.data)
	e := &disk{d.On(to.Machine), t, to}
	if len(to.file.log) != 0 {
		t.Fatal("a restore starts requests")
	}
	again := to.move(t) // a machine that was restored and never ran can be saved too
	if got := len(again.blk.inflight); got != len(reqs) {
		t.Fatalf("%d requests in flight", got)
	}
	to.activate(t)
	e.queue().Wait(t, 6)
	for i, q := range reqs {
		if got := e.statusOf(q); got != blkOK {
			t.Errorf("request %d: status %d", i, got)
		}
	}
	syncs := len(to.file.log)
	done := slices.DeleteFunc(slices.Clone(to.file.log), func(op string) bool { return op == "sync" })
	if want := []string{"write", "read", "write", "read"}; !reflect.DeepEqual(done, want) || syncs != 5 {
		t.Errorf("operations %v", to.file.log)
	}
	if got := e.Get(reqs[1].data, 2*sectorSize); !bytes.Equal(got, append(sectors('0', 1), sectors('1', 1)...)) {
		t.Error("the first read is wrong")
	}
	if got := e.Get(reqs[4].data, sectorSize); !bytes.Equal(got, sectors('2', 1)) {
		t.Error("the second read is wrong")
	}
	if len(to.Writes) != 2 {
		t.Errorf("%d writes reported on the other host", len(to.Writes))
	}
}

// TestBlkSuspendKeepsMemory suspends a disk whose worker is in the middle of a request: guest memory
// must stay as it is, and the requests stay in flight.
func TestBlkSuspendKeepsMemory(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, 0)
	begun := r.file.hold()
	w, rd := d.write(0, sectors('w', 1)), d.read(0, sectorSize)
	d.queue().Kick()
	<-begun
	copied := make(chan error, 1)
	r.blk.CopyRange(0, 512, func(err error) { copied <- err })
	r.Do(r.blk.Suspend)
	before := bytes.Clone(r.RAM().Bytes())
	r.file.release()
	r.blk.Drain()
	if !bytes.Equal(before, r.RAM().Bytes()) {
		t.Fatal("guest memory has changed")
	}
	if len(r.Writes) != 1 {
		t.Errorf("%d writes reported, though one has landed", len(r.Writes))
	}
	if got := r.file.log; len(got) > 2 {
		t.Errorf("operations after the suspension: %v", got)
	}
	if err := <-copied; err != nil && !errors.Is(err, ErrDrained) {
		t.Error(err)
	}
	d.write(5, sectors('x', 1))
	d.queue().Kick()
	r.blk.Drain()
	if r.file.data[5*sectorSize] != 0 {
		t.Fatal("a drained disk works")
	}
	r.activate(t)
	d.queue().Wait(t, 3)
	if d.statusOf(w) != blkOK || d.statusOf(rd) != blkOK || !bytes.Equal(d.Get(rd.data, sectorSize), sectors('w', 1)) {
		t.Error("the requests were not done again")
	}
}

func TestBlkResetForgetsRequests(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, 0)
	begun := r.file.hold()
	old := d.write(0, sectors('o', 1))
	d.write(1, sectors('n', 1))
	d.queue().Kick()
	<-begun
	d.Start(t, 0)
	rd := d.read(0, sectorSize)
	d.queue().Kick()
	r.file.release()
	used := d.queue().Wait(t, 1)
	if len(used) != 1 || used[0].ID != uint32(rd.head) || d.statusOf(rd) != blkOK {
		t.Fatalf("used %v", used)
	}
	if d.statusOf(old) != 0xee {
		t.Error("a request from before the reset was completed")
	}
	r.Wait(t, "the write that had landed", func() bool { return len(r.Writes) == 1 })
	if r.file.data[sectorSize] != 0 {
		t.Error("a request that had not begun before the reset was done")
	}
}

// TestCopyRangeKeepsOrder copies the whole disk while the guest writes: replaying what is reported
// must give the file.
func TestCopyRangeKeepsOrder(t *testing.T) {
	r := newRig(t)
	for i := range r.file.data {
		r.file.data[i] = byte(i / 4096)
	}
	r.activate(t)
	d := newDisk(t, r, virtiotest.EventIdx)
	mirror := make([]byte, r.file.Size())
	reports := 0
	r.Do(func() {
		r.OnWrite = func(w platformtest.Write) {
			w.Apply(mirror)
			reports++
		}
	})
	begun := r.file.hold()
	done := make(chan error, 2)
	r.blk.CopyRange(0, r.file.Size(), func(err error) { done <- err })
	<-begun // the first piece is being read
	for i := range 60 {
		d.write(uint64(i*37)%(1<<20/sectorSize), sectors(byte(i+100), 1))
	}
	d.queue().Kick()
	r.file.release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	d.queue().Wait(t, 60)
	if !bytes.Equal(mirror, r.file.data) {
		t.Fatal("the mirror differs from the file")
	}
	if reports < 60+4 {
		t.Errorf("%d reports", reports)
	}
	for _, c := range [][2]int64{{-1, 10}, {0, -1}, {0, 1<<20 + 1}, {1 << 20, 1}, {1, 1<<63 - 1}} {
		r.blk.CopyRange(c[0], c[1], func(err error) { done <- err })
		if <-done == nil {
			t.Errorf("copying %v worked", c)
		}
	}
	r.blk.CopyRange(5, 0, nil)
	r.blk.CopyRange(5, 10, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestBlkWaitingIsBounded offers more data than may wait at once.
func TestBlkWaitingIsBounded(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, 0)
	begun := r.file.hold()
	data := d.Put(make([]byte, 1<<20))
	const n = 40 // a MiB each, all from the same buffer
	for i := range n {
		d.queue().SetDesc(uint16(4*i), virtiotest.Desc{Addr: d.header(blkOut, 0).Addr, Len: 16, Flags: virtiotest.Next, Next: uint16(4*i + 1)})
		d.queue().SetDesc(uint16(4*i+1), virtiotest.Desc{Addr: data, Len: 1 << 20, Flags: virtiotest.Next, Next: uint16(4*i + 2)})
		d.queue().SetDesc(uint16(4*i+2), virtiotest.Desc{Addr: d.Alloc(1), Len: 1, Flags: writable})
		d.queue().Offer(uint16(4 * i))
	}
	d.queue().Kick()
	<-begun
	r.Wait(t, "all that may wait", func() bool { return r.blk.full })
	r.Do(func() {
		if r.blk.waiting > blkWaitingMax+blkRequestMax || len(r.blk.inflight) >= n {
			t.Errorf("%d bytes in %d requests wait", r.blk.waiting, len(r.blk.inflight))
		}
	})
	r.file.release()
	d.queue().Wait(t, n)
	if len(r.Writes) != n {
		t.Errorf("%d writes", len(r.Writes))
	}
}

func TestBlkConfigErrors(t *testing.T) {
	r := newRig(t)
	r.Do(func() {
		for _, c := range []BlkConfig{{File: newMemFile(511)}, {File: newMemFile(512), Serial: "123456789012345678901"}} {
			if _, err := NewBlk(r, r.host, c); err == nil {
				t.Errorf("%+v was accepted", c)
			}
		}
	})
}

// BenchmarkBlkWrite measures a 4 KiB write from the notification to the used index.
func BenchmarkBlkWrite(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth %d", depth), func(b *testing.B) {
			r := newRig(b)
			r.activate(b)
			d := newDisk(b, r, virtiotest.EventIdx)
			header, data, status := d.header(blkOut, 0), d.Put(make([]byte, 4096)), d.Alloc(1)
			r.Do(func() { r.OnWrite = func(platformtest.Write) { r.Writes = r.Writes[:0] } })
			for n := uint16(0); b.Loop(); {
				for range depth {
					d.queue().Add(header, virtiotest.Desc{Addr: data, Len: 4096}, virtiotest.Desc{Addr: status, Len: 1, Flags: writable})
				}
				n += uint16(depth)
				d.queue().Kick()
				d.queue().Wait(b, n)
			}
		})
	}
}
