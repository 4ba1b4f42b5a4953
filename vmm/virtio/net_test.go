package virtio

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/tap/taptest"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// frame is a plain frame with its header.
func frame(i int) []byte {
	return fmt.Appendf(taptest.Frame([]byte("\x52\x54\x00\x01\x02\x03\x52\x54\x00\x01\x02\x04\x88\xb5")), "frame %d", i)
}

func (r *rig) send(t testing.TB, p []byte) {
	t.Helper()
	if _, err := unix.Write(r.wire, p); err != nil {
		t.Fatal(err)
	}
}

const (
	netRX = 0
	netTX = 1
)

// nic starts the NIC's driver.
func nic(t testing.TB, r *rig, features uint64) *virtiotest.Driver {
	t.Helper()
	d := virtiotest.Find(t, r.Machine, r.net.Slot(), freeRAM)
	d.EnableMSIX()
	d.Start(t, features)
	return d
}

// addRX gives the device n receive buffers of a size, and returns their addresses.
func addRX(d *virtiotest.Driver, n int, size uint32) (bufs []uint64) {
	for range n {
		a := d.Alloc(uint64(size))
		bufs = append(bufs, a)
		d.Queues[netRX].Add(virtiotest.Desc{Addr: a, Len: size, Flags: writable})
	}
	return bufs
}

func TestTransmit(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, virtiotest.Indirect|virtiotest.EventIdx)
	q := d.Queues[netTX]
	f := frame(1)
	whole := d.Put(f)
	header, rest, ether := d.Alloc(netHeaderSize), d.Put(f[netHeaderSize:]), uint32(len(f)-netHeaderSize)
	short := d.Put(make([]byte, netHeaderSize+frameMin-1))
	q.Add(virtiotest.Desc{Addr: whole, Len: uint32(len(f))})
	q.Add(virtiotest.Desc{Addr: header, Len: netHeaderSize}, virtiotest.Desc{Addr: rest, Len: ether})
	q.Add(virtiotest.Desc{Addr: header, Len: 5}, virtiotest.Desc{Addr: header, Len: 7},
		virtiotest.Desc{Addr: rest, Len: 6}, virtiotest.Desc{Addr: rest + 6, Len: ether - 6})
	q.AddIndirect(virtiotest.Desc{Addr: header, Len: netHeaderSize}, virtiotest.Desc{Addr: rest, Len: ether})
	q.Add(virtiotest.Desc{Addr: short, Len: netHeaderSize + frameMin - 1})
	q.Kick()
	if n := len(q.Take()); n != 5 {
		t.Fatalf("%d chains used", n)
	}
	if len(r.Frames) != 4 {
		t.Fatalf("%d frames sent", len(r.Frames))
	}
	for i, got := range r.Frames {
		if got.NIC != 0 || !bytes.Equal(got.Data, f) {
			t.Errorf("frame %d is %q", i, got.Data)
		}
	}
	r.Do(r.net.Suspend)
	q.Add(virtiotest.Desc{Addr: whole, Len: uint32(len(f))})
	q.Kick()
	if len(r.Frames) != 4 {
		t.Fatal("a suspended NIC sends")
	}
	r.activate(t)
	if len(r.Frames) != 5 {
		t.Fatal("an activated NIC does not look at its queue")
	}
}

func TestReceive(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, virtiotest.EventIdx)
	q, msi := d.Queues[netRX], r.MSIs[msiBase(r.net.Slot())+1]
	var seen [][]byte
	r.Do(func() { r.net.OnReceive(func(p []byte) { seen = append(seen, bytes.Clone(p)) }) })
	bufs := addRX(d, 3, 2048)
	q.Kick()
	for i := range 5 {
		r.send(t, frame(i))
	}
	r.RunPolls()
	used := q.Take()
	if len(used) != 3 || len(seen) != 3 {
		t.Fatalf("%d buffers used, %d frames seen", len(used), len(seen))
	}
	for i, u := range used {
		want := frame(i)
		want[netNumBuffers] = 1
		if got := d.Get(bufs[i], uint64(u.Len)); !bytes.Equal(got, want) || !bytes.Equal(seen[i], frame(i)) {
			t.Errorf("frame %d is %q", i, got)
		}
	}
	if msi.Count != 1 {
		t.Errorf("%d interrupts", msi.Count)
	}
	if r.Polling() {
		t.Fatal("the tap is polled without buffers")
	}
	// The others are still in the tap when there are buffers again.
	addRX(d, 1, 16)
	addRX(d, 1, 2048)
	q.Kick()
	if !r.Polling() {
		t.Fatal("the tap is not polled with buffers")
	}
	r.RunPolls()
	if used := q.Take(); len(used) != 0 {
		t.Fatalf("frames went into a buffer that is too small: %v", used)
	}
}

func TestReceiveOnlyWhenActive(t *testing.T) {
	r := newRig(t)
	d := nic(t, r, 0)
	q := d.Queues[netRX]
	bufs := addRX(d, 4, 2048)
	q.Kick()
	r.send(t, frame(1)) // stale by the time of the activation
	if r.RunPolls() != 0 || len(q.Take()) != 0 {
		t.Fatal("a NIC that is not active reads its tap")
	}
	r.activate(t)
	r.RunPolls()
	if len(q.Take()) != 0 {
		t.Fatal("a stale frame was received")
	}
	r.send(t, frame(2))
	r.RunPolls()
	if used := q.Take(); len(used) != 1 {
		t.Fatalf("used %v", used)
	}
	r.Do(func() {
		if !r.net.Inject(frame(3)) || r.net.Inject(frame(4)[:netHeaderSize+10]) {
			t.Error("injected: a good frame was refused, or a bad one taken")
		}
	})
	if used := q.Take(); len(used) != 1 || !bytes.Equal(d.Get(bufs[1]+netHeaderSize, uint64(used[0].Len-netHeaderSize)), frame(3)[netHeaderSize:]) {
		t.Fatalf("used %v", used)
	}
	r.Do(func() { r.net.SetActive(false) })
	if r.Polling() {
		t.Fatal("the tap is polled after the NIC was suspended")
	}
	r.Do(func() {
		if r.net.Inject(frame(5)) {
			t.Error("a suspended NIC received")
		}
	})
}

// stay makes the NIC's guest stand still; Activate ends it.
func (r *rig) stay() {
	r.Do(func() {
		r.net.Suspend()
		r.net.Park()
	})
}

func TestPark(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, virtiotest.EventIdx)
	q := d.Queues[netRX]
	var seen [][]byte
	r.Do(func() { r.net.OnReceive(func(p []byte) { seen = append(seen, bytes.Clone(p)) }) })
	bufs := addRX(d, 3, 2048)
	q.Kick()
	r.stay()
	ram := bytes.Clone(r.RAM().Bytes())
	var state []byte
	r.Do(func() { state = r.net.SaveState(nil) })
	for i := range 4 {
		r.send(t, frame(i))
	}
	r.send(t, frame(9)[:netHeaderSize+5])
	r.RunPolls()
	if len(seen) != 4 {
		t.Fatalf("%d frames observed in a stay", len(seen))
	}
	r.Do(func() {
		if !bytes.Equal(ram, r.RAM().Bytes()) || !bytes.Equal(state, r.net.SaveState(nil)) {
			t.Error("a frame has left its mark in the guest in a stay")
		}
	})
	if len(q.Take()) != 0 {
		t.Fatal("the guest received in a stay")
	}
	r.send(t, frame(4)) // still in the tap when the guest goes on
	r.activate(t)
	r.RunPolls()
	used := q.Take()
	if len(used) != 3 || len(seen) != 4 {
		t.Fatalf("%d buffers used, %d frames observed", len(used), len(seen))
	}
	// What the guest had no buffers for comes before what is in the tap.
	bufs = append(bufs, addRX(d, 3, 2048)...)
	q.Kick()
	r.RunPolls()
	used = append(used, q.Take()...)
	if len(used) != 5 || len(seen) != 5 {
		t.Fatalf("%d buffers used, %d frames observed", len(used), len(seen))
	}
	for i, u := range used {
		if got := d.Get(bufs[i]+netHeaderSize, uint64(u.Len-netHeaderSize)); !bytes.Equal(got, frame(i)[netHeaderSize:]) || !bytes.Equal(seen[i], frame(i)) {
			t.Errorf("frame %d is %q, observed as %q", i, got, seen[i])
		}
	}
}

func TestParkBounds(t *testing.T) {
	for _, c := range []struct{ size, most int }{{60, parkedFrames}, {9000, parkedBytes / 9000}} {
		r := newRig(t)
		r.activate(t)
		d := nic(t, r, 0)
		addRX(d, 1, 2048)
		d.Queues[netRX].Kick()
		n := 0
		r.Do(func() { r.net.OnReceive(func([]byte) { n++ }) })
		r.stay()
		p := append(frame(0), make([]byte, c.size)...)[:c.size]
		for range c.most + 100 {
			r.send(t, p)
			r.RunPolls()
			if !r.Polling() {
				break
			}
		}
		if r.Polling() || n > c.most || n < c.most-10 {
			t.Errorf("%d frames of %d bytes were taken, polling %v", n, c.size, r.Polling())
		}
		r.Do(r.net.Suspend)
	}
}

func TestParkedFramesAreForgotten(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"suspended": func(r *rig) { r.Do(r.net.Suspend) },
		"restored": func(r *rig) {
			r.Do(func() {
				if err := r.net.RestoreState(netStateVersion, r.net.SaveState(nil)); err != nil {
					t.Error(err)
				}
			})
		},
	} {
		r := newRig(t)
		r.activate(t)
		d := nic(t, r, 0)
		addRX(d, 4, 2048)
		d.Queues[netRX].Kick()
		r.stay()
		r.send(t, frame(1))
		r.RunPolls()
		end(r)
		if r.Polling() {
			t.Errorf("%s: the tap is still read", name)
		}
		r.send(t, frame(2)) // stale by the time of the activation
		r.activate(t)
		r.RunPolls()
		if n := len(d.Queues[netRX].Take()); n != 0 {
			t.Errorf("%s: %d old frames were received", name, n)
		}
		r.send(t, frame(3))
		r.RunPolls()
		if n := len(d.Queues[netRX].Take()); n != 1 {
			t.Errorf("%s: %d frames were received afterwards", name, n)
		}
	}
	// A NIC whose driver is not ready has nothing to keep.
	r := newRig(t)
	r.activate(t)
	r.stay()
	if r.Polling() {
		t.Error("the tap of a NIC without a driver is read in a stay")
	}
}

func TestFramesFromBeforeTheDriver(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	r.send(t, frame(1))
	d := nic(t, r, 0)
	addRX(d, 1, 2048)
	d.Queues[netRX].Kick()
	r.RunPolls()
	if len(d.Queues[netRX].Take()) != 0 {
		t.Fatal("a frame from before the driver was ready was received")
	}
}

func TestEmit(t *testing.T) {
	r := newRig(t)
	if err := r.net.Emit(frame(1)); err != nil {
		t.Fatal(err)
	}
	var p [2000]byte
	if n, err := unix.Read(r.wire, p[:]); err != nil || !bytes.Equal(p[:n], frame(1)) {
		t.Fatalf("%q, %v", p[:n], err)
	}
	for range 10000 { // a wire that nobody reads: frames are dropped, not an error
		if err := r.net.Emit(frame(2)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLink(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, 0)
	msi := r.MSIs[msiBase(r.net.Slot())]
	status := func() uint64 { return r.Load(d.Device+6, 2) }
	before := d.Read(0x15, 1)
	r.Do(func() { r.net.SetLink(false) })
	if status() != 0 || msi.Count != 1 || d.Read(0x15, 1) == before || r.Load(d.ISR, 1) != 2 {
		t.Fatalf("status %d, %d interrupts", status(), msi.Count)
	}
	r.Do(func() { r.net.SetLink(true); r.net.SetLink(true) })
	if status() != 1 || msi.Count != 2 {
		t.Fatalf("status %d, %d interrupts", status(), msi.Count)
	}
	// A tap that breaks takes the carrier away; another host's brings it back.
	addRX(d, 1, 2048)
	d.Queues[netRX].Kick()
	r.tap.Far[0].Close()
	r.Do(func() { r.net.pairs[0].fd = -1; r.net.receive(0) })
	if status() != 0 || r.Polling() {
		t.Fatalf("status %d, polling %v with a broken tap", status(), r.Polling())
	}
	to := r.move(t)
	to.activate(t)
	if got := to.Load(d.Device+6, 2); got != 1 || to.MSIs[msiBase(r.net.Slot())].Count == 0 || !to.Polling() {
		t.Fatalf("status %d, polling %v on the other host", got, to.Polling())
	}
}

func TestNetRestore(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, virtiotest.EventIdx|virtiotest.Indirect)
	addRX(d, 2, 2048)
	d.Queues[netRX].Kick()
	r.send(t, frame(1))
	r.RunPolls()
	d.Queues[netRX].Take()
	// A notification that the device has not seen when the checkpoint is taken.
	d.Queues[netTX].Add(virtiotest.Desc{Addr: d.Put(frame(9)), Len: uint32(len(frame(9)))})
	to := r.move(t)
	if to.Polling() || len(to.Frames) != 0 {
		t.Fatal("a restore starts something")
	}
	to.activate(t)
	if len(to.Frames) != 1 {
		t.Fatalf("%d frames sent after the activation", len(to.Frames))
	}
	e := d.On(to.Machine)
	to.send(t, frame(2))
	to.RunPolls()
	if used := e.Queues[netRX].Take(); len(used) != 1 || used[0].ID != 1 {
		t.Fatalf("used %v", used)
	}
	for i, want := range []int{0, 2, 2} { // each queue's interrupt once more, and one for what it did then
		if got := to.MSIs[i].Count; got < min(want, 1) || got > want {
			t.Errorf("vector %d: %d interrupts", i, got)
		}
	}
}

func TestNetConfigErrors(t *testing.T) {
	r := newRig(t)
	r.Do(func() {
		for _, c := range []NetConfig{
			{MAC: testMAC}, {Tap: r.tap}, {Tap: r.tap, MAC: []byte{1, 0, 0, 0, 0, 0}}, {Tap: &taptest.Tap{}, MAC: testMAC},
			{Tap: r.tap, MAC: testMAC, MTU: 1000}, {Tap: r.tap, MAC: testMAC, MTU: 65536},
		} {
			if _, err := NewNet(r, r.host, c); err == nil {
				t.Errorf("%+v was accepted", c)
			}
		}
	})
}
