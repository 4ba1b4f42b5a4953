package virtio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
	"github.com/pollux-ha/pollux/vmm/tap/taptest"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

const (
	ramSize  = 4 << 20
	freeRAM  = 0x1000 // where drivers begin to use guest memory
	readable = 0
	writable = virtiotest.Write
)

var testMAC = []byte{0x52, 0x54, 0, 1, 2, 3}

// rig is a machine with one device of each kind.
type rig struct {
	*platformtest.Machine
	host    *pci.Host
	net     *Net
	blk     *Blk
	console *Console
	rng     *RNG
	file    *memFile
	tap     *taptest.Tap
	wire    int // the other end of the tap's first queue: a descriptor
}

func newRig(t testing.TB) *rig { t.Helper(); return newRigOf(t, 1) }

// newRigOf makes a rig whose disk has so many queues.
func newRigOf(t testing.TB, queues int) *rig {
	t.Helper()
	return newRigWith(t, queues, taptest.New(t, 1), NetConfig{})
}

// newRigWith makes one whose NIC, moreover, is on a tap and has what c says.
func newRigWith(t testing.TB, queues int, tap *taptest.Tap, c NetConfig) *rig {
	t.Helper()
	r := &rig{Machine: platformtest.New(t, ramSize), file: newMemFile(1 << 20)}
	r.tap, r.wire = tap, tap.Wire(t)
	c.Tap, c.MAC = tap, testMAC
	var err error
	r.Do(func() {
		if r.host, err = pci.NewHost(r); err != nil {
			t.Fatal(err)
		}
		if r.net, err = NewNet(r, r.host, c); err != nil {
			t.Fatal(err)
		}
		if r.blk, err = NewBlk(r, r.host, BlkConfig{File: r.file, Serial: "pollux-test", Queues: queues}); err != nil {
			t.Fatal(err)
		}
		if r.console, err = NewConsole(r, r.host); err != nil {
			t.Fatal(err)
		}
		if r.rng, err = NewRNG(r, r.host); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		r.Do(r.blk.Suspend)
		r.file.release()
		r.blk.Drain()
		r.Do(func() {
			for _, err := range []error{r.net.Close(), r.blk.Close(), r.console.Close(), r.rng.Close()} {
				if err != nil {
					t.Error(err)
				}
			}
			if r.file.broken != "" {
				t.Error(r.file.broken)
			}
			if n := r.Notifications(); n != 0 || r.Polling() {
				t.Errorf("%d notifications left, polling %v", n, r.Polling())
			}
			for _, s := range r.MSIs {
				if !s.Closed {
					t.Errorf("MSI %d was not closed", s.Number)
				}
			}
		})
	})
	return r
}

func (r *rig) devices() []platform.Stateful {
	return []platform.Stateful{r.host, r.net, r.blk, r.console, r.rng}
}

func (r *rig) activate(t testing.TB) {
	t.Helper()
	r.Machine.Activate(t, r.host, r.net, r.blk, r.console, r.rng)
}

// move restores what r holds into another machine and returns it.
func (r *rig) move(t testing.TB) *rig {
	t.Helper()
	to := newRigWith(t, len(r.blk.queues), taptest.New(t, len(r.tap.Far)), NetConfig{MTU: r.net.mtu, USO: r.net.offered&netHostUSO != 0})
	for range 2 { // a replica restores again and again
		var state []byte
		r.Do(func() { state = platform.AppendState(nil, r.devices()); to.CopyRAM(r.Machine) })
		to.Do(func() {
			if err := platform.RestoreState(state, to.devices()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(platform.AppendState(nil, to.devices()), state) {
				t.Fatal("a restore changes the state")
			}
		})
	}
	return to
}

// memFile is a disk image in memory that can be made to fail and to wait.
type memFile struct {
	mu    sync.Mutex
	data  []byte
	log   []string // what was done, in order
	fail  error    // of the next operations
	gate  chan struct{}
	begun chan string // receives each operation as it begins, while gated

	exact  bool   // Zero works
	active []zone // under way; unmap stands for a change
	broken string // two operations that should not have met
}

func newMemFile(n int) *memFile { return &memFile{data: make([]byte, n)} }

// hold makes every operation wait: each is announced on the returned channel, and goes on when step
// is called or the file is released.
func (f *memFile) hold() <-chan string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate, f.begun = make(chan struct{}), make(chan string, 1024)
	return f.begun
}

func (f *memFile) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gate != nil {
		close(f.gate)
		f.gate = nil
	}
}

// enter begins an operation on a range; leave is called in its end.
func (f *memFile) enter(op string, z zone) (leave func(), err error) {
	f.mu.Lock()
	f.log = append(f.log, op)
	for _, o := range f.active {
		if (z.unmap || o.unmap) && z.overlaps(&o) {
			f.broken = fmt.Sprintf("%s of %+v beside %+v (unmap: changes)", op, z, o)
		}
	}
	f.active = append(f.active, z)
	gate, begun := f.gate, f.begun
	f.mu.Unlock()
	if gate != nil {
		begun <- op
		<-gate
	}
	runtime.Gosched() // so that others get between
	f.mu.Lock()
	return func() {
		f.active = slices.Delete(f.active, slices.Index(f.active, z), slices.Index(f.active, z)+1)
		f.mu.Unlock()
	}, f.fail
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	leave, err := f.enter("read", zone{offset: off, n: int64(len(p))})
	defer leave()
	if err != nil {
		return 0, err
	}
	return copy(p, f.data[off:]), nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	leave, err := f.enter("write", zone{off, int64(len(p)), true})
	defer leave()
	if err != nil {
		return 0, err
	}
	return copy(f.data[off:], p), nil
}

func (f *memFile) Sync() error {
	leave, err := f.enter("sync", zone{})
	defer leave()
	return err
}

// Zero is what makes it a Zeroer; on a file that is not exact it is of no use.
func (f *memFile) Zero(off, n int64, unmap bool) error {
	op := "zero"
	if unmap {
		op = "unmap"
	}
	leave, err := f.enter(op, zone{off, n, true})
	defer leave()
	if err != nil {
		return err
	}
	if !f.exact {
		return fmt.Errorf("zero: %w", errors.ErrUnsupported)
	}
	clear(f.data[off : off+n])
	return nil
}

func (f *memFile) Size() int64 { return int64(len(f.data)) }

func (f *memFile) setFail(err error) {
	f.mu.Lock()
	f.fail = err
	f.mu.Unlock()
}

func TestFeaturesAndStatus(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.net.Slot(), freeRAM)
	if got, want := d.Offered(), uint64(1<<32|1<<29|1<<28|netOffered); got != want {
		t.Fatalf("offered features %#x, want %#x", got, want)
	}
	for _, c := range []struct {
		name     string
		features uint64
		ok       bool
	}{
		{"none", 0, false},
		{"without VERSION_1", 1 << 5, false},
		{"one that is not offered", 1<<32 | netGuestUSO4, false},
		{"VERSION_1", 1 << 32, true},
	} {
		d.Write(0x14, 1, 0)
		d.Write(0x14, 1, 3)
		d.Write(8, 4, 0)
		d.Write(12, 4, c.features&0xffffffff)
		d.Write(8, 4, 1)
		d.Write(12, 4, c.features>>32)
		d.Write(0x14, 1, 3|8)
		if got := d.Status()&8 != 0; got != c.ok {
			t.Errorf("%s: accepted is %v", c.name, got)
		}
		d.Write(0x14, 1, 15)
		if got := d.Status()&4 != 0; got != c.ok {
			t.Errorf("%s: DRIVER_OK is %v", c.name, got)
		}
	}
	d.Write(12, 4, 0xffff)
	if got := d.Read(12, 4); got != 1 {
		t.Errorf("features changed after FEATURES_OK: %#x", got)
	}
	d.Write(0x16, 2, 7)
	if got := d.Read(0x18, 2); got != 0 {
		t.Errorf("a queue that is not there has %d entries", got)
	}
	d.Write(0x10, 2, 9)
	if got := d.Read(0x10, 2); got != 0xffff {
		t.Errorf("vector 9 was accepted: %#x", got)
	}
	if got := r.Load(d.Device, 8); got != 1<<48|0x030201005452 {
		t.Errorf("NIC configuration %#x", got)
	}
}

func TestQueueRefusals(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
	for _, c := range []struct {
		name              string
		size              uint64
		desc, avail, used uint64
	}{
		{"size 0", 0, 0x1000, 0x2000, 0x3000},
		{"table outside of RAM", 64, ramSize, 0x2000, 0x3000},
		{"table over the end", 64, ramSize - 16, 0x2000, 0x3000},
		{"table wraps around", 64, 1<<64 - 16, 0x2000, 0x3000},
		{"table not aligned", 64, 0x1008, 0x2000, 0x3000},
		{"available ring not aligned", 64, 0x1000, 0x2001, 0x3000},
		{"used ring not aligned", 64, 0x1000, 0x2000, 0x3002},
		{"used ring over the end", 64, 0x1000, 0x2000, ramSize - 8},
	} {
		d.Write(0x14, 1, 0)
		d.Write(0x18, 2, c.size)
		d.Write(0x20, 8, c.desc)
		d.Write(0x28, 8, c.avail)
		d.Write(0x30, 8, c.used)
		d.Write(0x1c, 2, 1)
		if d.Read(0x1c, 2) != 0 || d.Status()&statusNeedsReset == 0 {
			t.Errorf("%s: enabled %d, status %#x", c.name, d.Read(0x1c, 2), d.Status())
		}
	}
	d.Write(0x14, 1, 0)
	d.Write(0x18, 2, 63)
	d.Write(0x18, 2, 128)
	if got := d.Read(0x18, 2); got != 64 {
		t.Errorf("size %d", got)
	}
}

// TestMalformedRings gives each device rings that make no sense. Each must ask for a reset and work
// after it.
func TestMalformedRings(t *testing.T) {
	type ring = *virtiotest.Queue
	buf := virtiotest.Desc{Addr: 0x8000, Len: 64, Flags: writable}
	for _, c := range []struct {
		name   string
		break_ func(d *virtiotest.Driver, q ring)
	}{
		{"available index jumps", func(_ *virtiotest.Driver, q ring) { q.SetAvail(q.Size + 1) }},
		{"available index far behind", func(_ *virtiotest.Driver, q ring) { q.SetAvail(0x8000) }},
		{"head out of range", func(_ *virtiotest.Driver, q ring) { q.Offer(q.Size) }},
		{"next out of range", func(_ *virtiotest.Driver, q ring) {
			q.SetDesc(0, virtiotest.Desc{Addr: 0x8000, Len: 1, Flags: virtiotest.Next | writable, Next: q.Size})
			q.Offer(0)
		}},
		{"loop", func(_ *virtiotest.Driver, q ring) {
			q.SetDesc(0, virtiotest.Desc{Addr: 0x8000, Len: 1, Flags: virtiotest.Next | writable, Next: 1})
			q.SetDesc(1, virtiotest.Desc{Addr: 0x8000, Len: 1, Flags: virtiotest.Next | writable, Next: 0})
			q.Offer(0)
		}},
		{"no bytes", func(_ *virtiotest.Driver, q ring) { q.Add(virtiotest.Desc{Addr: 0x8000, Flags: writable}) }},
		{"outside of RAM", func(_ *virtiotest.Driver, q ring) {
			q.Add(virtiotest.Desc{Addr: ramSize - 1, Len: 2, Flags: writable})
		}},
		{"wraps around", func(_ *virtiotest.Driver, q ring) {
			q.Add(virtiotest.Desc{Addr: 1<<64 - 1, Len: 2, Flags: writable})
		}},
		{"readable after writable", func(_ *virtiotest.Driver, q ring) {
			q.Add(buf, virtiotest.Desc{Addr: 0x8000, Len: 8})
		}},
		{"too many bytes", func(_ *virtiotest.Driver, q ring) {
			var all []virtiotest.Desc
			for range maxChainBytes/(2<<20) + 1 {
				all = append(all, virtiotest.Desc{Addr: 0x1000, Len: 2 << 20, Flags: writable})
			}
			q.Add(all...)
		}},
		{"nested table", func(d *virtiotest.Driver, q ring) {
			inner := d.Put(buf.Append(nil))
			outer := d.Put(virtiotest.Desc{Addr: inner, Len: 16, Flags: virtiotest.Table}.Append(nil))
			q.SetDesc(0, virtiotest.Desc{Addr: outer, Len: 16, Flags: virtiotest.Table})
			q.Offer(0)
		}},
		{"table with a next", func(d *virtiotest.Driver, q ring) {
			q.SetDesc(0, virtiotest.Desc{Addr: d.Put(buf.Append(nil)), Len: 16, Flags: virtiotest.Table | virtiotest.Next, Next: 1})
			q.Offer(0)
		}},
		{"empty table", func(d *virtiotest.Driver, q ring) {
			q.SetDesc(0, virtiotest.Desc{Addr: d.Put(buf.Append(nil)), Flags: virtiotest.Table})
			q.Offer(0)
		}},
		{"table of half a descriptor", func(d *virtiotest.Driver, q ring) {
			q.SetDesc(0, virtiotest.Desc{Addr: d.Put(buf.Append(nil)), Len: 24, Flags: virtiotest.Table})
			q.Offer(0)
		}},
		{"table outside of RAM", func(_ *virtiotest.Driver, q ring) {
			q.SetDesc(0, virtiotest.Desc{Addr: ramSize, Len: 16, Flags: virtiotest.Table})
			q.Offer(0)
		}},
		{"loop in a table", func(d *virtiotest.Driver, q ring) {
			loop := virtiotest.Desc{Addr: 0x8000, Len: 1, Flags: virtiotest.Next | writable}
			q.SetDesc(0, virtiotest.Desc{Addr: d.Put(loop.Append(nil)), Len: 16, Flags: virtiotest.Table})
			q.Offer(0)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
			r.activate(t)
			d.EnableMSIX()
			d.Start(t, virtiotest.Indirect)
			c.break_(d, d.Queues[0])
			d.Queues[0].Kick()
			if d.Status()&statusNeedsReset == 0 {
				t.Fatalf("status %#x", d.Status())
			}
			if r.MSIs[msiBase(r.rng.Slot())].Count != 1 {
				t.Error("no configuration interrupt")
			}
			d.Queues[0].Kick()
			if n := len(d.Queues[0].Take()); n != 0 {
				t.Errorf("%d chains used by a device that needs a reset", n)
			}
			again := r.move(t) // the state is one that another machine takes
			if s := virtiotest.Find(t, again.Machine, again.rng.Slot(), freeRAM).Status(); s&statusNeedsReset == 0 {
				t.Errorf("status %#x after a restore", s)
			}
			d.Start(t, virtiotest.Indirect)
			d.Queues[0].Add(virtiotest.Desc{Addr: d.Alloc(64), Len: 64, Flags: writable})
			d.Queues[0].Kick()
			if n := len(d.Queues[0].Take()); n != 1 {
				t.Errorf("%d chains used after a reset", n)
			}
		})
	}
}

// msiBase is the number of the first message source of the device in a slot: NIC, disk, console and
// entropy source have 4, 2, 7 and 2.
func msiBase(slot int) int { return [...]int{0, 0, 4, 6, 13}[slot] }

func TestEventIndex(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
	r.activate(t)
	d.EnableMSIX()
	d.Start(t, virtiotest.EventIdx)
	q, msi := d.Queues[0], r.MSIs[msiBase(r.rng.Slot())+1]
	buf := virtiotest.Desc{Addr: d.Alloc(16), Len: 16, Flags: writable}
	q.SetUsedEvent(2) // an interrupt when the third is used
	for i, want := range []int{0, 0, 1, 1} {
		q.Add(buf)
		q.Kick()
		if msi.Count != want {
			t.Fatalf("%d interrupts after %d chains, want %d", msi.Count, i+1, want)
		}
		if got := q.AvailEvent(); got != uint16(i+1) {
			t.Fatalf("notification wanted at %d after %d chains", got, i+1)
		}
	}
	q.Take()
	for range 3 {
		q.Add(buf)
	}
	q.Kick()
	if msi.Count != 2 {
		t.Fatalf("%d interrupts: a batch wants one", msi.Count)
	}
}

func TestNoInterruptFlag(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
	r.activate(t)
	d.EnableMSIX()
	d.Start(t, 0)
	q, msi := d.Queues[0], r.MSIs[msiBase(r.rng.Slot())+1]
	r.Do(func() { r.RAM().Write(q.Avail, []byte{1, 0}) })
	q.Add(virtiotest.Desc{Addr: d.Alloc(16), Len: 16, Flags: writable})
	q.Kick()
	if msi.Count != 0 || len(q.Take()) != 1 {
		t.Fatalf("%d interrupts that were not wanted", msi.Count)
	}
}

func TestINTx(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
	r.activate(t)
	d.Start(t, 0)
	gsi := platform.PCIInterrupt(r.rng.Slot())
	q := d.Queues[0]
	q.Add(virtiotest.Desc{Addr: d.Alloc(16), Len: 16, Flags: writable})
	q.Kick()
	if !r.Lines[gsi] {
		t.Fatal("the line is low")
	}
	to := r.move(t)
	to.activate(t)
	if !to.Lines[gsi] {
		t.Fatal("the line is low after a restore")
	}
	for _, m := range []*rig{r, to} {
		if got := m.Load(d.ISR, 1); got != 1 || m.Lines[gsi] {
			t.Fatalf("interrupt status %d, line %v after reading it", got, m.Lines[gsi])
		}
		if got := m.Load(d.ISR, 1); got != 0 {
			t.Fatalf("interrupt status %d when read twice", got)
		}
	}
}

func TestNotificationsFollowTheWindow(t *testing.T) {
	for _, direct := range []bool{true, false} {
		r := newRig(t)
		if !direct {
			r.Do(func() { r.NoNotify = true })
		}
		d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
		all := r.Notifications()
		d.ConfigWrite(4, 2, 0)
		if got := r.Notifications(); got != all-1 {
			t.Fatalf("%d notifications without a window, %d before", got, all)
		}
		d.ConfigWrite(0x10, 4, platform.PCIWindowBase+0x100000)
		d.ConfigWrite(4, 2, 6)
		d = virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
		r.activate(t)
		d.Start(t, 0)
		d.Queues[0].Add(virtiotest.Desc{Addr: d.Alloc(16), Len: 16, Flags: writable})
		d.Queues[0].Kick()
		if n := len(d.Queues[0].Take()); n != 1 {
			t.Fatalf("%d chains used after the window moved", n)
		}
	}
}

// TestConfigurationAccess reads and writes the device through configuration space alone (section
// 4.1.4.9).
func TestConfigurationAccess(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.net.Slot(), freeRAM)
	var at uint64
	for at = d.ConfigRead(0x34, 1); d.ConfigRead(at, 1) != 9 || d.ConfigRead(at+3, 1) != 5; at = d.ConfigRead(at+1, 1) {
	}
	access := func(bar, off, n uint64) {
		d.ConfigWrite(at+4, 1, bar)
		d.ConfigWrite(at+8, 4, off)
		d.ConfigWrite(at+12, 4, n)
	}
	access(0, 0x14, 1)
	d.ConfigWrite(at+16, 1, 3)
	if d.Status() != 3 || d.ConfigRead(at+16, 1) != 3 {
		t.Fatalf("status %#x, read through %#x", d.Status(), d.ConfigRead(at+16, 1))
	}
	access(0, 0x2000, 4)
	if got := d.ConfigRead(at+16, 4); got != 0x01005452 {
		t.Fatalf("configuration %#x", got)
	}
	for _, bad := range [][3]uint64{{1, 0x14, 1}, {0, 0x14, 3}, {0, 0x15, 2}, {0, 0x7ffe, 4}, {0, 1<<32 - 4, 4}, {0, 0x14, 0}} {
		access(bad[0], bad[1], bad[2])
		d.ConfigWrite(at+16, 4, 0)
		d.ConfigRead(at+16, 4)
		if d.Status() != 3 {
			t.Fatalf("access %v went through", bad)
		}
	}
}

// TestLongQueueGivesWay fills a queue while it is served: a guest that never stops must not hold the
// device lock for ever.
func TestLongQueueGivesWay(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.console.Slot(), freeRAM)
	r.activate(t)
	d.Start(t, 0)
	q := d.Queues[consoleTX]
	p := d.Put([]byte("x"))
	for range q.Size {
		q.Add(virtiotest.Desc{Addr: p, Len: 1})
	}
	q.Kick()
	r.Wait(t, "the rest of the queue", func() bool { return r.Text.Len() == int(q.Size) && !r.console.again[consoleTX] })
}

func TestConsole(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.console.Slot(), freeRAM)
	r.activate(t)
	d.EnableMSIX()
	d.Start(t, virtiotest.Indirect|virtiotest.EventIdx)
	out := d.Queues[consoleTX]
	long := strings.Repeat("0123456789", 1000)
	a, b := d.Put([]byte("hello ")), d.Put([]byte(long))
	out.AddIndirect(virtiotest.Desc{Addr: a, Len: 6}, virtiotest.Desc{Addr: b, Len: uint32(len(long))})
	out.Kick()
	if got := r.Text.String(); got != "hello "+long {
		t.Fatalf("output of %d bytes", len(got))
	}
	// Input waits for buffers, over a restore too.
	r.Do(func() {
		if n := r.console.Input([]byte("root\n")); n != 5 {
			t.Errorf("%d bytes taken", n)
		}
	})
	to := r.move(t)
	d = d.On(to.Machine)
	in := d.Queues[consoleRX]
	to.activate(t)
	buf := d.Alloc(8)
	for range 2 {
		in.Add(virtiotest.Desc{Addr: buf, Len: 3, Flags: writable})
	}
	in.Kick()
	if used := in.Take(); len(used) != 2 || used[0].Len != 3 || used[1].Len != 2 {
		t.Fatalf("used %v", used)
	}
	to.Do(func() {
		if n := to.console.Input(make([]byte, consoleInput+5)); n != consoleInput {
			t.Errorf("%d bytes taken", n)
		}
	})
}

func TestRNG(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
	r.activate(t)
	d.Start(t, 0)
	buf := d.Alloc(64)
	ask := func(d *virtiotest.Driver) []byte {
		d.Queues[0].Add(virtiotest.Desc{Addr: buf, Len: 32, Flags: writable}, virtiotest.Desc{Addr: buf + 32, Len: 32, Flags: writable})
		d.Queues[0].Kick()
		if used := d.Queues[0].Take(); len(used) != 1 || used[0].Len != 64 {
			t.Fatalf("used %v", used)
		}
		return d.Get(buf, 64)
	}
	first := ask(d)
	to := r.move(t)
	to.activate(t)
	if here, there := ask(d), ask(d.On(to.Machine)); bytes.Equal(here, there) || bytes.Equal(first, here) {
		t.Fatal("the same bytes twice")
	}
}

func TestDirtyPages(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.rng.Slot(), freeRAM)
	r.activate(t)
	d.Start(t, 0)
	q := d.Queues[0]
	const buf = 0x100ff0 // two pages
	q.Add(virtiotest.Desc{Addr: buf, Len: 32, Flags: writable})
	dirty := make([]uint64, r.RAM().DirtyWords())
	r.Do(func() { r.RAM().HarvestDirty(dirty, nil) })
	clear(dirty)
	q.Kick()
	r.Do(func() { r.RAM().HarvestDirty(dirty, nil) })
	for _, page := range []uint64{0x100, 0x101, q.Used >> 12} {
		if dirty[page/64]&(1<<(page%64)) == 0 {
			t.Errorf("page %#x is not dirty", page)
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	r := newRig(t)
	d := virtiotest.Find(t, r.Machine, r.blk.Slot(), freeRAM)
	r.activate(t)
	d.Start(t, 0)
	for _, dev := range r.devices() {
		state := r.Save(dev)
		for n := range state {
			if err := r.Restore(dev, state[:n]); !errors.Is(err, platform.ErrState) {
				t.Fatalf("%s: %d of %d bytes: %v", dev.StateID(), n, len(state), err)
			}
		}
		if r.Restore(dev, append(state, 0)) == nil {
			t.Errorf("%s: a byte too many", dev.StateID())
		}
	}
	// A queue whose ring lies outside of this machine's memory.
	state := r.Save(r.blk)
	at := bytes.Index(state, binary.LittleEndian.AppendUint64(nil, d.Queues[0].Avail))
	binary.LittleEndian.PutUint64(state[at:], 1<<40)
	if r.Restore(r.blk, state) == nil {
		t.Error("a ring outside of RAM")
	}
}
