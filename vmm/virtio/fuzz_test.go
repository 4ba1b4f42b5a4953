package virtio

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap/taptest"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// A hostile guest's memory: the fuzzer's bytes are where the first queue's rings are.
const (
	fuzzDesc  = 0x1000
	fuzzAvail = 0x2000
	fuzzUsed  = 0x3000
	fuzzArea  = 0x4000 // what the fuzzer writes, from fuzzDesc to here
)

// settle checks what must hold of a device whatever its guest has done: its state is one that another
// machine takes, and the device can be reset and activated.
func settle(t *testing.T, r *rig) {
	r.Do(func() { r.net.Suspend(); r.blk.Suspend(); r.console.Suspend(); r.rng.Suspend() })
	r.blk.Drain()
	for _, d := range r.devices() {
		state := r.Save(d)
		if err := r.Restore(d, state); err != nil {
			t.Fatalf("%s: a state of its own is refused: %v", d.StateID(), err)
		}
		if !bytes.Equal(r.Save(d), state) {
			t.Fatalf("%s: a restore changes the state", d.StateID())
		}
	}
	r.activate(t)
	r.Do(func() {
		for _, d := range []*device{&r.net.device, &r.blk.device, &r.console.device, &r.rng.device} {
			d.setStatus(0)
			if d.status != 0 || d.running() {
				t.Fatalf("%s: status %#x after a reset", d.name, d.status)
			}
		}
	})
}

// ringOf sets the queues of a device up as a driver would, all in the same place.
func ringOf(r *rig, d *device, features uint64) {
	r.Do(func() {
		d.features = features & d.offered
		d.features |= featureVersion1
		d.status = statusAcknowledge | statusDriver | statusFeaturesOK
		d.applyFeatures()
		for i := range d.queues {
			q := &d.queues[i]
			q.size, q.desc, q.avail, q.used, q.vector = min(16, q.max), fuzzDesc, fuzzAvail, fuzzUsed, uint16(i)
			q.enabled = true
		}
		d.setStatus(statusDriverOK)
	})
}

func fuzzRings(f *testing.F, pick func(*rig) *device) {
	// One chain of a readable header and a writable rest, then the available ring.
	var good []byte
	good = virtiotest.Desc{Addr: 0x8000, Len: 16, Flags: virtiotest.Next, Next: 1}.Append(good)
	good = virtiotest.Desc{Addr: 0x9000, Len: 513, Flags: virtiotest.Write}.Append(good)
	good = virtiotest.Desc{Addr: fuzzDesc + 16, Len: 16, Flags: virtiotest.Table}.Append(good)
	// A request with a range to zero: header, range, status.
	zero := virtiotest.Desc{Addr: 0x8000, Len: 16, Flags: virtiotest.Next, Next: 1}.Append(nil)
	zero = virtiotest.Desc{Addr: 0x8010, Len: 32, Flags: virtiotest.Next, Next: 2}.Append(zero)
	zero = virtiotest.Desc{Addr: 0x9000, Len: 1, Flags: virtiotest.Write}.Append(zero)
	ranges := append([]byte{blkDiscard}, make([]byte, 47)...)
	ranges[24], ranges[33], ranges[40] = 3, 1, 8
	f.Add(zero, []byte{0, 0, 1, 0}, bytes.Clone(ranges), byte(0xc0))
	ranges[0], ranges[28] = blkWriteZeroes, 1
	f.Add(zero, []byte{0, 0, 1, 0}, ranges, byte(0xc0))
	avail := []byte{0, 0, 1, 0, 0, 0, 2, 0, 1, 0}
	f.Add(good, avail, []byte{0, 0, 0, 0}, byte(0))
	f.Add(good, avail, []byte{4, 0, 0, 0}, byte(3))
	f.Add(good, avail, []byte{ctrlMQ, 0, 2, 0}, byte(0xff))
	f.Add(good, []byte{0, 0, 4, 0, 0, 0, 1, 0, 2, 0, 2, 0}, []byte{1}, byte(1))
	f.Fuzz(func(t *testing.T, desc, avail, data []byte, features byte) {
		r := newRigWith(t, 2, taptest.New(t, 2), NetConfig{MTU: 9000, USO: true})
		r.file.exact = features&4 != 0
		r.Do(func() {
			r.RAM().Write(fuzzDesc, desc[:min(len(desc), fuzzAvail-fuzzDesc)])
			r.RAM().Write(fuzzAvail, avail[:min(len(avail), fuzzUsed-fuzzAvail)])
			r.RAM().Write(0x8000, data[:min(len(data), 0x4000)])
			r.console.Input([]byte("typed"))
			for i := range r.console.ports {
				r.console.ports[i].due = dueAll
			}
		})
		r.activate(t)
		d := pick(r)
		wanted := uint64(features&3)<<28 | uint64(features>>2) | uint64(features&0xc0)<<7 // features of the device's own, too
		if features == 0xff {
			wanted = d.offered
		}
		ringOf(r, d, wanted)
		for range 2 {
			for i := range d.queues {
				r.Do(func() { d.kick(i) })
			}
			unix.Write(r.wire, frame(1))
			r.RunPolls()
		}
		settle(t, r)
	})
}

func FuzzNetRings(f *testing.F)     { fuzzRings(f, func(r *rig) *device { return &r.net.device }) }
func FuzzBlkRings(f *testing.F)     { fuzzRings(f, func(r *rig) *device { return &r.blk.device }) }
func FuzzConsoleRings(f *testing.F) { fuzzRings(f, func(r *rig) *device { return &r.console.device }) }
func FuzzRNGRings(f *testing.F)     { fuzzRings(f, func(r *rig) *device { return &r.rng.device }) }

// FuzzRegisters plays accesses to the windows and the configuration spaces of all devices, five bytes
// each: which device, what and how wide, where (two bytes), the value.
func FuzzRegisters(f *testing.F) {
	start := []byte{}
	for _, w := range [][2]byte{{0x14, 3}, {0x08, 1}, {0x0c, 1}, {0x14, 11}, {0x16, 0}, {0x1c, 1}, {0x14, 15}} {
		start = append(start, 1, 0x10, 0, w[0], w[1])
	}
	f.Add(start)
	f.Add([]byte{0, 0x22, 0, 0x10, 0xff, 0, 0x30, 0, 0x84, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		r := newRig(t)
		r.activate(t)
		for ; len(ops) >= 5; ops = ops[5:] {
			slot, n := uint64(ops[0]&7), 1<<(ops[1]&3)
			off := uint64(ops[2])<<8 | uint64(ops[3])
			v := uint64(ops[4])
			if ops[1]&8 != 0 {
				v *= 0x0101_0101_0101_0101
			}
			window := r.Load(platform.ECAMBase+slot<<15+0x10, 4) &^ 0xf
			switch ops[1] >> 4 & 7 {
			case 0:
				r.Load(window+off&0x7fff, n)
			case 1:
				r.Store(window+off&0x7fff, n, v)
			case 2: // the queue's addresses, where they are good
				r.Store(window+0x20+off&0x18, 8, fuzzDesc+uint64(ops[4])<<4)
			case 3:
				r.Load(platform.ECAMBase+slot<<15+off&0xff, n)
			case 4:
				r.Store(platform.ECAMBase+slot<<15+off&0xff, n, v)
			case 5:
				r.Do(func() { r.RAM().Write(fuzzDesc+off%(fuzzArea-fuzzDesc), ops[4:5]) })
			case 6:
				unix.Write(r.wire, frame(1))
				r.RunPolls()
			case 7:
				r.Do(func() {
					r.net.SetLink(ops[4]&1 != 0)
					r.console.Input(ops[4:5])
					r.net.Inject(frame(2))
				})
			}
		}
		settle(t, r)
	})
}

// FuzzRestore restores any bytes into any device and lets it run.
func FuzzRestore(f *testing.F) {
	r := newRig(f)
	r.activate(f)
	for i, d := range r.devices() {
		f.Add(byte(i), r.Save(d))
	}
	for _, d := range []*device{&r.net.device, &r.blk.device, &r.console.device, &r.rng.device} {
		ringOf(r, d, featureIndirect|featureEventIdx)
	}
	for i, d := range r.devices() {
		f.Add(byte(i), r.Save(d))
	}
	f.Fuzz(func(t *testing.T, which byte, state []byte) {
		r := newRig(t)
		d := r.devices()[int(which)%len(r.devices())]
		if err := r.Restore(d, state); err == nil && !bytes.Equal(r.Save(d), state) {
			t.Fatal("the state is not what was restored")
		}
		r.activate(t)
		settle(t, r)
	})
}
