// Package virtiotest is the driver's side of virtio over PCI, for tests: it finds a device's
// structures through ECAM, negotiates, and fills virtqueues in guest memory.
package virtiotest

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
)

// Features that a Driver takes where they are offered (virtio 1.2, section 6).
const (
	Indirect = 1 << 28
	EventIdx = 1 << 29
	Version1 = 1 << 32
)

// Descriptor flags (section 2.7.5).
const (
	Next  = 1
	Write = 2
	Table = 4 // VIRTQ_DESC_F_INDIRECT
)

// Driver drives one device of a machine.
type Driver struct {
	m *platformtest.Machine
	// Guest-physical addresses of the structures of section 4.1.4.
	Common, Notify, ISR, Device uint64
	MSIXTable, MSIXPending      uint64
	Queues                      []*Queue

	config     uint64 // ECAM address
	multiplier uint64
	msixAt     uint64
	vectors    int
	next       uint64 // where guest memory is free
}

// Find looks the device in a slot of bus 0 over. Rings and buffers are put into guest memory from
// memory on.
func Find(t testing.TB, m *platformtest.Machine, slot int, memory uint64) *Driver {
	t.Helper()
	d := &Driver{m: m, config: platform.ECAMBase + uint64(slot)<<15, next: memory}
	if id := d.ConfigRead(0, 2); id != 0x1af4 {
		t.Fatalf("no virtio device in slot %d: vendor %#x", slot, id)
	}
	bar := d.ConfigRead(0x10, 8) &^ 0xf
	for at := d.ConfigRead(0x34, 1); at != 0; at = d.ConfigRead(at+1, 1) {
		switch d.ConfigRead(at, 1) {
		case 0x11:
			d.msixAt = at
			d.vectors = int(d.ConfigRead(at+2, 2)&0x7ff) + 1
			d.MSIXTable = bar + d.ConfigRead(at+4, 4)&^7
			d.MSIXPending = bar + d.ConfigRead(at+8, 4)&^7
		case 0x09:
			addr := bar + d.ConfigRead(at+8, 4)
			switch d.ConfigRead(at+3, 1) {
			case 1:
				d.Common = addr
			case 2:
				d.Notify, d.multiplier = addr, d.ConfigRead(at+16, 4)
			case 3:
				d.ISR = addr
			case 4:
				d.Device = addr
			}
		}
	}
	if d.Common == 0 || d.Notify == 0 || d.ISR == 0 || d.Device == 0 || d.msixAt == 0 {
		t.Fatalf("a structure is missing: %+v", d)
	}
	return d
}

// ConfigRead reads PCI configuration space.
func (d *Driver) ConfigRead(off uint64, n int) uint64 { return d.m.Load(d.config+off, n) }

// ConfigWrite writes PCI configuration space.
func (d *Driver) ConfigWrite(off uint64, n int, v uint64) { d.m.Store(d.config+off, n, v) }

// Read reads a field of the common configuration.
func (d *Driver) Read(off uint64, n int) uint64 { return d.m.Load(d.Common+off, n) }

// Write writes a field of the common configuration.
func (d *Driver) Write(off uint64, n int, v uint64) { d.m.Store(d.Common+off, n, v) }

// Status reads the device status.
func (d *Driver) Status() uint8 { return uint8(d.Read(0x14, 1)) }

// Offered reads the features that the device offers.
func (d *Driver) Offered() uint64 {
	d.Write(0, 4, 0)
	low := d.Read(4, 4)
	d.Write(0, 4, 1)
	return low | d.Read(4, 4)<<32
}

// EnableMSIX gives each vector a message of its own and enables MSI-X.
func (d *Driver) EnableMSIX() {
	for v := range d.vectors {
		e := d.MSIXTable + uint64(16*v)
		d.m.Store(e, 8, platform.LAPICBase)
		d.m.Store(e+8, 4, uint64(0x40+v))
		d.m.Store(e+12, 4, 0)
	}
	d.ConfigWrite(d.msixAt+2, 2, 0x8000)
}

// SetMSIXControl writes the MSI-X message control register: bit 15 enables, bit 14 masks.
func (d *Driver) SetMSIXControl(v uint16) { d.ConfigWrite(d.msixAt+2, 2, uint64(v)) }

// Start resets the device, takes those of the wanted features that it offers, sets all its queues up
// with vector 1 + number and sets DRIVER_OK.
func (d *Driver) Start(t testing.TB, want uint64) {
	t.Helper()
	d.Write(0x14, 1, 0)
	d.Write(0x14, 1, 1)
	d.Write(0x14, 1, 3)
	features := (want | Version1) & d.Offered()
	d.Write(8, 4, 0)
	d.Write(12, 4, features)
	d.Write(8, 4, 1)
	d.Write(12, 4, features>>32)
	d.Write(0x14, 1, 11)
	if d.Status()&8 == 0 {
		t.Fatalf("features %#x were refused", features)
	}
	d.Write(0x10, 2, 0)
	d.Queues = nil
	for i := range int(d.Read(0x12, 2)) {
		d.Write(0x16, 2, uint64(i))
		q := &Queue{d: d, Index: i, Size: uint16(d.Read(0x18, 2)), eventIdx: features&EventIdx != 0}
		q.Desc, q.Avail, q.Used = d.Alloc(16*uint64(q.Size)), d.Alloc(6+2*uint64(q.Size)), d.Alloc(6+8*uint64(q.Size))
		d.Write(0x1a, 2, uint64(i+1))
		d.Write(0x20, 8, q.Desc)
		d.Write(0x28, 4, q.Avail) // the halves alone
		d.Write(0x2c, 4, q.Avail>>32)
		d.Write(0x30, 8, q.Used)
		q.doorbell = d.Notify + d.multiplier*d.Read(0x1e, 2)
		d.Write(0x1c, 2, 1)
		if d.Read(0x1c, 2) != 1 {
			t.Fatalf("queue %d was not enabled", i)
		}
		d.Queues = append(d.Queues, q)
	}
	d.Write(0x14, 1, 15)
	if got := d.Status(); got != 15 {
		t.Fatalf("device status %#x", got)
	}
}

// Alloc returns the address of n bytes of guest memory, aligned to 16 and zeroed.
func (d *Driver) Alloc(n uint64) uint64 {
	at := d.next
	d.next = (at + n + 15) &^ 15
	d.m.Do(func() {
		if err := d.m.RAM().Write(at, make([]byte, n)); err != nil {
			panic(fmt.Sprintf("virtiotest: out of guest memory: %v", err))
		}
	})
	return at
}

// Put stores p in newly allocated guest memory.
func (d *Driver) Put(p []byte) uint64 {
	at := d.Alloc(uint64(len(p)))
	d.m.Do(func() { d.m.RAM().Write(at, p) })
	return at
}

// Get reads n bytes of guest memory.
func (d *Driver) Get(addr, n uint64) []byte {
	p := make([]byte, n)
	d.m.Do(func() { d.m.RAM().Read(addr, p) })
	return p
}

// Desc is a descriptor.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

// Append appends the descriptor as it lies in memory.
func (d Desc) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, d.Addr)
	b = binary.LittleEndian.AppendUint32(b, d.Len)
	b = binary.LittleEndian.AppendUint16(b, d.Flags)
	return binary.LittleEndian.AppendUint16(b, d.Next)
}

// Queue is a virtqueue as its driver sees it.
type Queue struct {
	d                 *Driver
	Index             int
	Size              uint16
	Desc, Avail, Used uint64 // guest addresses

	doorbell uint64
	eventIdx bool
	free     uint16 // next descriptor to use; a test that wraps around must know what is free
	avail    uint16
	seen     uint16
}

// SetDesc writes a descriptor.
func (q *Queue) SetDesc(i uint16, d Desc) {
	q.d.m.Do(func() { q.d.m.RAM().Write(q.Desc+16*uint64(i), d.Append(nil)) })
}

// Offer makes the chain at head available, without a notification.
func (q *Queue) Offer(head uint16) {
	q.d.m.Do(func() {
		ram := q.d.m.RAM()
		ram.Write(q.Avail+4+2*uint64(q.avail%q.Size), binary.LittleEndian.AppendUint16(nil, head))
		q.avail++
		ram.Write(q.Avail+2, binary.LittleEndian.AppendUint16(nil, q.avail))
	})
}

// SetAvail writes any value to the available index.
func (q *Queue) SetAvail(v uint16) {
	q.avail = v
	q.d.m.Do(func() { q.d.m.RAM().Write(q.Avail+2, binary.LittleEndian.AppendUint16(nil, v)) })
}

// Add makes a chain of the buffers available and returns its head. Flags other than Write are
// ignored.
func (q *Queue) Add(bufs ...Desc) uint16 {
	head := q.free
	for i, b := range bufs {
		b.Flags &= Write
		b.Next = (q.free + 1) % q.Size
		if i < len(bufs)-1 {
			b.Flags |= Next
		}
		q.SetDesc(q.free, b)
		q.free = (q.free + 1) % q.Size
	}
	q.Offer(head)
	return head
}

// AddIndirect does the same through an indirect table.
func (q *Queue) AddIndirect(bufs ...Desc) uint16 {
	var table []byte
	for i, b := range bufs {
		b.Flags &= Write
		b.Next = uint16(i + 1)
		if i < len(bufs)-1 {
			b.Flags |= Next
		}
		table = b.Append(table)
	}
	head := q.free
	q.SetDesc(head, Desc{Addr: q.d.Put(table), Len: uint32(len(table)), Flags: Table})
	q.free = (q.free + 1) % q.Size
	q.Offer(head)
	return head
}

// Kick notifies the device.
func (q *Queue) Kick() { q.d.m.Store(q.doorbell, 2, uint64(q.Index)) }

// UsedElem is an element of the used ring.
type UsedElem struct{ ID, Len uint32 }

// UsedIndex reads the used index; the device lock is held.
func (q *Queue) UsedIndex() uint16 {
	var p [2]byte
	q.d.m.RAM().Read(q.Used+2, p[:])
	return binary.LittleEndian.Uint16(p[:])
}

// Take returns the used elements that have come since the last call, and asks for an interrupt for
// the next one.
func (q *Queue) Take() (out []UsedElem) {
	q.d.m.Do(func() {
		for idx := q.UsedIndex(); q.seen != idx; q.seen++ {
			var p [8]byte
			q.d.m.RAM().Read(q.Used+4+8*uint64(q.seen%q.Size), p[:])
			out = append(out, UsedElem{binary.LittleEndian.Uint32(p[:]), binary.LittleEndian.Uint32(p[4:])})
		}
		q.setEvent(q.seen)
	})
	return out
}

func (q *Queue) setEvent(v uint16) {
	if q.eventIdx {
		q.d.m.RAM().Write(q.Avail+4+2*uint64(q.Size), binary.LittleEndian.AppendUint16(nil, v))
	}
}

// SetUsedEvent asks for an interrupt when the used index passes v.
func (q *Queue) SetUsedEvent(v uint16) { q.d.m.Do(func() { q.setEvent(v) }) }

// AvailEvent reads the index at which the device wants a notification.
func (q *Queue) AvailEvent() uint16 {
	return binary.LittleEndian.Uint16(q.d.Get(q.Used+4+8*uint64(q.Size), 2))
}

// Wait waits until n elements in all have been used since the queue was set up, and takes the new ones.
func (q *Queue) Wait(t testing.TB, n uint16) []UsedElem {
	t.Helper()
	q.d.m.Wait(t, fmt.Sprintf("queue %d to use %d chains", q.Index, n), func() bool { return q.UsedIndex() == n })
	return q.Take()
}

// On returns a driver for the same device in another machine, which has the same state: it goes on
// where d is.
func (d *Driver) On(m *platformtest.Machine) *Driver {
	c := *d
	c.m = m
	c.Queues = make([]*Queue, len(d.Queues))
	for i, q := range d.Queues {
		n := *q
		n.d = &c
		c.Queues[i] = &n
	}
	return &c
}
