package virtio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap"
	"github.com/pollux-ha/pollux/vmm/tap/taptest"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// everything is what a driver takes that knows all there is.
const everything = netOffered | netOfferedUSO | netMQ | netMTU | virtiotest.Indirect | virtiotest.EventIdx

// segments is a TCP frame of n bytes of data that is still to be segmented, with its header.
func segments(version, n int) []byte {
	ip := append([]byte{0x45}, make([]byte, 19)...)
	ether := []byte{8, 0}
	gso := byte(gsoTCPv4)
	if version == 6 {
		ip, ether, gso = append([]byte{0x60}, make([]byte, 39)...), []byte{0x86, 0xdd}, gsoTCPv6
	}
	tcp := make([]byte, tcpHeaderMin)
	tcp[12] = 5 << 4
	p := append([]byte("\x52\x54\x00\x01\x02\x03\x52\x54\x00\x01\x02\x04"), ether...)
	p = append(append(append(p, ip...), tcp...), bytes.Repeat([]byte("0123456789"), n/10)...)
	f := taptest.Frame(p)
	start := frameMin + len(ip)
	h := netHeader{flags: headerNeedsCSUM, gso: gso, segment: 1448, csumStart: uint16(start), csumOffset: tcpChecksum}
	h.length = uint16(start + tcpHeaderMin)
	h.put(f)
	return f
}

// tell sends a command and returns the answer.
func tell(t testing.TB, d *virtiotest.Driver, queue int, class, command byte, data []byte) byte {
	t.Helper()
	q := d.Queues[queue]
	answer := d.Put([]byte{0xee})
	q.Add(virtiotest.Desc{Addr: d.Put([]byte{class, command}), Len: 2},
		virtiotest.Desc{Addr: d.Put(data), Len: uint32(max(len(data), 1))}, virtiotest.Desc{Addr: answer, Len: 1, Flags: writable})
	q.Kick()
	if used := q.Take(); len(used) != 1 || used[0].Len != 1 {
		t.Fatalf("used %v", used)
	}
	return d.Get(answer, 1)[0]
}

func TestControl(t *testing.T) {
	le := binary.LittleEndian
	r := newRigWith(t, 1, taptest.New(t, 3), NetConfig{MTU: 9000, USO: true})
	r.activate(t)
	d := nic(t, r, everything)
	if got := r.Load(d.Device+8, 4); got != 9000<<16|3 {
		t.Errorf("queue pairs and MTU: %#x", got)
	}
	all := tap.Checksum | tap.TSO4 | tap.TSO6 | tap.ECN | tap.USO4 | tap.USO6
	if r.tap.Offloads != all || r.tap.Queues != 1 {
		t.Errorf("the tap has offloads %#x and %d queues", r.tap.Offloads, r.tap.Queues)
	}
	table := func(n uint32, entries int) []byte { return append(le.AppendUint32(nil, n), make([]byte, 6*entries)...) }
	for _, c := range []struct {
		name           string
		class, command byte
		data           []byte
		want           byte
	}{
		{"promiscuous", ctrlRX, 0, []byte{1}, ctrlOK},
		{"no broadcasts", ctrlRX, 5, []byte{0}, ctrlOK},
		{"promiscuous, but how", ctrlRX, 0, []byte{2}, ctrlErr},
		{"unknown filter", ctrlRX, 6, []byte{1}, ctrlErr},
		{"tables", ctrlMAC, ctrlMACTable, append(table(2, 2), table(0, 0)...), ctrlOK},
		{"one table", ctrlMAC, ctrlMACTable, table(1, 1), ctrlErr},
		{"more addresses than there are", ctrlMAC, ctrlMACTable, append(table(2, 1), table(0, 0)...), ctrlErr},
		{"very many addresses", ctrlMAC, ctrlMACTable, append(table(0xffffffff, 1), table(0, 0)...), ctrlErr},
		{"address", ctrlMAC, ctrlMACAddr, []byte{2, 1, 1, 1, 1, 1}, ctrlOK},
		{"group address", ctrlMAC, ctrlMACAddr, []byte{3, 1, 1, 1, 1, 1}, ctrlErr},
		{"half an address", ctrlMAC, ctrlMACAddr, []byte{2, 1, 1}, ctrlErr},
		{"two pairs", ctrlMQ, 0, []byte{2, 0}, ctrlOK},
		{"no pair", ctrlMQ, 0, []byte{0, 0}, ctrlErr},
		{"too many pairs", ctrlMQ, 0, []byte{4, 0}, ctrlErr},
		{"fewer offloads", ctrlGuestOffloads, 0, le.AppendUint64(nil, netGuestCSUM|netGuestTSO4), ctrlOK},
		{"an offload that is not for guests", ctrlGuestOffloads, 0, le.AppendUint64(nil, netCSUM), ctrlErr},
		{"VLAN filter", 2, 0, []byte{1, 0}, ctrlErr},
		{"unknown class", 200, 0, []byte{1}, ctrlErr},
	} {
		if got := tell(t, d, 6, c.class, c.command, c.data); got != c.want {
			t.Errorf("%s: answer %d, want %d", c.name, got, c.want)
		}
	}
	if r.tap.Queues != 2 || r.tap.Offloads != tap.Checksum|tap.TSO4 {
		t.Errorf("the tap has offloads %#x and %d queues", r.tap.Offloads, r.tap.Queues)
	}
	if mac := r.net.MAC(); !bytes.Equal(mac, []byte{2, 1, 1, 1, 1, 1}) || r.Load(d.Device, 2) != 0x0102 {
		t.Errorf("address %v", mac)
	}
	// The other host does the same with its tap when it takes over, and not before.
	to := r.move(t)
	if to.tap.Queues != 3 || to.tap.Offloads != 0 {
		t.Error("a restore touches the tap")
	}
	to.activate(t)
	if to.tap.Queues != 2 || to.tap.Offloads != tap.Checksum|tap.TSO4 || !bytes.Equal(to.net.MAC(), r.net.MAC()) {
		t.Errorf("on the other host: offloads %#x, %d queues, address %v", to.tap.Offloads, to.tap.Queues, to.net.MAC())
	}
	d.Write(0x14, 1, 0)
	if !bytes.Equal(r.net.MAC(), testMAC) || r.net.used != 1 {
		t.Errorf("after a reset: address %v, %d pairs", r.net.MAC(), r.net.used)
	}
	// Commands that no answer fits to, or that have no bytes, do no harm.
	d = nic(t, r, everything)
	q := d.Queues[6]
	q.Add(virtiotest.Desc{Addr: d.Put([]byte{ctrlMQ, 0, 2, 0}), Len: 4})
	q.Add(virtiotest.Desc{Addr: d.Alloc(4), Len: 4, Flags: writable})
	q.Add(virtiotest.Desc{Addr: d.Alloc(ctrlMax + 1), Len: ctrlMax + 1}, virtiotest.Desc{Addr: d.Alloc(4), Len: 4, Flags: writable})
	q.Kick()
	if used := q.Take(); len(used) != 3 || used[0].Len != 0 || r.net.used != 1 {
		t.Errorf("used %v", used)
	}
}

// A driver that does not know of several pairs finds the control queue behind the first.
func TestControlQueueWithoutMQ(t *testing.T) {
	r := newRigWith(t, 1, taptest.New(t, 2), NetConfig{})
	r.activate(t)
	d := nic(t, r, netOffered)
	if got := tell(t, d, 2, ctrlMAC, ctrlMACAddr, []byte{2, 1, 1, 1, 1, 1}); got != ctrlOK {
		t.Errorf("answer %d", got)
	}
	if got := tell(t, d, 2, ctrlMQ, 0, []byte{2, 0}); got != ctrlErr {
		t.Error("several pairs that were not negotiated")
	}
	// One that does not know of the control queue gets no answer.
	d = nic(t, r, 0)
	d.Queues[2].Add(virtiotest.Desc{Addr: d.Put([]byte{ctrlRX, 0, 1}), Len: 3}, virtiotest.Desc{Addr: d.Alloc(1), Len: 1, Flags: writable})
	d.Queues[2].Kick()
	if used := d.Queues[2].Take(); len(used) != 0 {
		t.Errorf("used %v", used)
	}
}

func TestPairs(t *testing.T) {
	r := newRigWith(t, 1, taptest.New(t, 2), NetConfig{})
	r.activate(t)
	d := nic(t, r, everything)
	for _, q := range []int{0, 2} {
		for range 4 {
			d.Queues[q].Add(virtiotest.Desc{Addr: d.Alloc(2048), Len: 2048, Flags: writable})
		}
		d.Queues[q].Kick()
	}
	write := func(queue, i int) {
		if _, err := r.tap.Far[queue].Write(frame(i)); err != nil {
			t.Fatal(err)
		}
	}
	got := func() [2]int {
		r.RunPolls()
		return [2]int{len(d.Queues[0].Take()), len(d.Queues[2].Take())}
	}
	write(0, 1)
	write(1, 2)
	if n := got(); n != [2]int{1, 0} {
		t.Fatalf("received %v with one pair", n)
	}
	if tell(t, d, 4, ctrlMQ, 0, []byte{2, 0}) != ctrlOK {
		t.Fatal("two pairs were refused")
	}
	write(0, 3)
	if n := got(); n != [2]int{1, 1} {
		t.Fatalf("received %v with two pairs", n)
	}
	// What the guest sends names its pair, and leaves by its queue, here and on the other host.
	d.Queues[3].Add(virtiotest.Desc{Addr: d.Put(frame(4)), Len: uint32(len(frame(4)))})
	d.Queues[3].Kick()
	if len(r.Frames) != 1 || r.Frames[0].Data[netNumBuffers] != 1 {
		t.Fatalf("frames %v", r.Frames)
	}
	sent := r.Frames[0].Data
	leaves := func(r *rig, queue int) {
		t.Helper()
		if err := r.net.Emit(sent); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 2000)
		if n, err := r.tap.Far[queue].Read(p); err != nil || !bytes.Equal(p[:n], sent) {
			t.Fatalf("%q, %v", p[:n], err)
		}
	}
	leaves(r, 1)
	// A received frame is given to its pair again.
	r.Do(func() {
		if !r.net.Inject(sent) {
			t.Error("no room")
		}
	})
	if n := got(); n != [2]int{0, 1} {
		t.Fatalf("injected %v", n)
	}
	to := r.move(t)
	leaves(to, 0) // its tap has not been told yet
	to.activate(t)
	leaves(to, 1)
	// Without the pair, the first does its work.
	if tell(t, d, 4, ctrlMQ, 0, []byte{1, 0}) != ctrlOK {
		t.Fatal("one pair was refused")
	}
	leaves(r, 0)
	r.Do(func() { r.net.Inject(sent) })
	if n := got(); n != [2]int{1, 0} {
		t.Fatalf("injected %v", n)
	}
	// Both of a guest that stands still are kept.
	if tell(t, d, 4, ctrlMQ, 0, []byte{2, 0}) != ctrlOK {
		t.Fatal("two pairs were refused")
	}
	r.stay()
	write(0, 5)
	write(1, 6)
	if n := got(); n != [2]int{} {
		t.Fatalf("received %v in a stay", n)
	}
	r.activate(t)
	if n := got(); n != [2]int{1, 1} {
		t.Fatalf("received %v after a stay", n)
	}
}

func TestOffloads(t *testing.T) {
	for _, c := range []struct {
		name           string
		features       uint64
		frame          []byte
		sent, received bool
	}{
		{"all", everything, segments(4, 8000), true, true},
		{"all, version 6", everything, segments(6, 8000), true, true},
		{"none", 0, segments(4, 8000), false, false},
		{"checksums", netCSUM | netGuestCSUM, segments(4, 8000), false, false},
		{"the other version", netCSUM | netGuestCSUM | netHostTSO6 | netGuestTSO6, segments(4, 8000), false, false},
		{"without checksums", netHostTSO4 | netGuestTSO4, segments(4, 8000), false, false},
		{"to the host", netCSUM | netHostTSO4, segments(4, 8000), true, false},
		{"to the guest", netGuestCSUM | netGuestTSO4, segments(4, 8000), false, true},
		{"64 KiB", everything, segments(4, 65480), true, true},
	} {
		r := newRig(t)
		r.activate(t)
		d := nic(t, r, c.features)
		d.Queues[netTX].Add(virtiotest.Desc{Addr: d.Put(c.frame), Len: uint32(len(c.frame))})
		d.Queues[netTX].Kick()
		if sent := len(r.Frames) == 1; sent != c.sent {
			t.Errorf("%s: sent %v", c.name, sent)
		} else if sent && !bytes.Equal(r.Frames[0].Data, c.frame) {
			t.Errorf("%s: another frame was sent", c.name)
		}
		addRX(d, 2, platform.MaxFrameBytes)
		d.Queues[netRX].Kick()
		r.send(t, c.frame)
		r.RunPolls()
		if received := len(d.Queues[netRX].Take()) == 1; received != c.received {
			t.Errorf("%s: received %v", c.name, received)
		}
		r.Do(func() {
			if injected := r.net.Inject(c.frame); injected != c.received {
				t.Errorf("%s: injected %v", c.name, injected)
			}
		})
	}
}

// A driver that does not know of checksums hears of none.
func TestDataValid(t *testing.T) {
	for features, want := range map[uint64]byte{0: 0, netGuestCSUM: headerDataValid} {
		r := newRig(t)
		r.activate(t)
		d := nic(t, r, features)
		bufs := addRX(d, 1, 2048)
		d.Queues[netRX].Kick()
		f := frame(1)
		f[0] = headerDataValid
		r.send(t, f)
		r.RunPolls()
		if used := d.Queues[netRX].Take(); len(used) != 1 || d.Get(bufs[0], 1)[0] != want {
			t.Errorf("features %#x: used %v, flags %d", features, used, d.Get(bufs[0], 1)[0])
		}
	}
}

func TestMergeableBuffers(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, everything)
	q := d.Queues[netRX]
	var seen int
	r.Do(func() { r.net.OnReceive(func([]byte) { seen++ }) })
	f := segments(4, 5000)
	bufs := addRX(d, 2, 1500) // too few
	q.Kick()
	r.send(t, f)
	r.send(t, frame(2))
	r.RunPolls()
	if len(q.Take()) != 0 || seen != 0 || r.Polling() {
		t.Fatalf("a part of a frame: %d seen, polling %v", seen, r.Polling())
	}
	if got := q.AvailEvent(); got != 2 {
		t.Fatalf("a notification is wanted after chain %d", got)
	}
	bufs = append(bufs, addRX(d, 1, 1500)...)
	q.Kick()
	if len(q.Take()) != 0 {
		t.Fatal("a part of a frame")
	}
	bufs = append(bufs, addRX(d, 2, 1500)...)
	q.Kick()
	r.RunPolls()
	used := q.Take()
	if len(used) != 5 || seen != 2 {
		t.Fatalf("used %v, %d seen", used, seen)
	}
	var got []byte
	for i, u := range used[:4] {
		got = append(got, d.Get(bufs[i], uint64(u.Len))...)
	}
	if got[netNumBuffers] != 4 {
		t.Errorf("%d buffers", got[netNumBuffers])
	}
	if got[netNumBuffers] = 0; !bytes.Equal(got, f) {
		t.Error("another frame was received")
	}
	if got := d.Get(bufs[4]+netHeaderSize, uint64(used[4].Len-netHeaderSize)); !bytes.Equal(got, frame(2)[netHeaderSize:]) {
		t.Errorf("then %q", got)
	}
	// A frame for which a full queue has no room is dropped, and the next one received.
	for range int(q.Size) {
		q.Add(virtiotest.Desc{Addr: bufs[0], Len: netHeaderSize, Flags: writable})
	}
	q.Kick()
	r.send(t, f)
	r.send(t, frame(3))
	r.RunPolls()
	if used := q.Take(); len(used) != (len(frame(3))+netHeaderSize-1)/netHeaderSize {
		t.Errorf("%d buffers used", len(used))
	}
	// A first buffer without room for the header is the driver's mistake.
	d = nic(t, r, everything)
	addRX(d, 1, netHeaderSize-1)
	addRX(d, 1, 2048)
	d.Queues[netRX].Kick()
	r.send(t, frame(4))
	r.RunPolls()
	if used := d.Queues[netRX].Take(); len(used) != 0 {
		t.Errorf("used %v", used)
	}
}

func TestAnnounce(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, everything)
	r.Do(r.net.Suspend)
	r.activate(t)
	status := func(r *rig) uint64 { return r.Load(d.Device+6, 2) }
	if status(r) != netLinkUp {
		t.Fatalf("status %d where nothing has moved", status(r))
	}
	to := r.move(t)
	to.activate(t)
	if status(to) != netLinkUp|netAnnounceFlag || to.MSIs[msiBase(to.net.Slot())].Count == 0 {
		t.Fatalf("status %d on the other host", status(to))
	}
	again := to.move(t) // before the guest has done it
	if status(again) != netLinkUp|netAnnounceFlag {
		t.Fatalf("status %d is not kept", status(again))
	}
	e := d.On(to.Machine)
	if tell(t, e, 2, ctrlAnnounce, 0, nil) == ctrlOK {
		t.Error("an acknowledgement with data was taken")
	}
	e.Queues[2].Add(virtiotest.Desc{Addr: e.Put([]byte{ctrlAnnounce, 0}), Len: 2}, virtiotest.Desc{Addr: e.Alloc(1), Len: 1, Flags: writable})
	e.Queues[2].Kick()
	if status(to) != netLinkUp {
		t.Errorf("status %d after the acknowledgement", status(to))
	}
}

// A tap that does not do what was negotiated has no carrier, and at a takeover is an error.
func TestTapRefuses(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	r.tap.Err = errors.New("not today")
	d := nic(t, r, everything)
	if status := r.Load(d.Device+6, 2); status != 0 || r.Polling() {
		t.Errorf("status %d", status)
	}
	r.Do(func() {
		r.net.Suspend()
		if r.net.Activate() == nil {
			t.Error("the NIC was activated")
		}
	})
}

// A state of version 1 is that of a NIC with two queues.
func TestNetRestoreVersion1(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := nic(t, r, netMAC|netStatus|virtiotest.EventIdx)
	addRX(d, 2, 2048)
	d.Queues[netRX].Kick()
	r.send(t, frame(1))
	r.RunPolls()
	d.Queues[netRX].Take()
	var old []byte
	r.Do(func() {
		state := r.net.SaveState(nil)
		const entries, queues = 257, 257 + 4*16 + 8 + 23
		old = append(old, state[:entries+3*16]...)
		old = append(old, state[entries+4*16:queues+2*35]...)
		old = append(old, state[queues+3*35:][:8]...)
		for at := int(r.net.fn.Config(0x34, 1)); at != 0; at = int(r.net.fn.Config(at+1, 1)) {
			switch {
			case old[at] == 0x11:
				old[at+2] = 2
			case old[at] == capVendor && old[at+3] == cfgNotify:
				old[at+12] = 8
			}
		}
	})
	to := newRigWith(t, 1, taptest.New(t, 2), NetConfig{})
	to.Do(func() {
		to.CopyRAM(r.Machine)
		for n := range old {
			if to.net.RestoreState(1, old[:n]) == nil {
				t.Fatalf("%d of %d bytes were taken", n, len(old))
			}
		}
		if err := to.net.RestoreState(1, old); err != nil {
			t.Fatal(err)
		}
	})
	to.activate(t)
	to.send(t, frame(2))
	to.RunPolls()
	e := d.On(to.Machine)
	if used := e.Queues[netRX].Take(); len(used) != 1 || used[0].ID != 1 {
		t.Fatalf("used %v", used)
	}
	e.Queues[netTX].Add(virtiotest.Desc{Addr: e.Put(frame(3)), Len: uint32(len(frame(3)))})
	e.Queues[netTX].Kick()
	if len(to.Frames) != 1 {
		t.Fatalf("%d frames", len(to.Frames))
	}
}

func TestHeaders(t *testing.T) {
	type header = netHeader
	tcp := header{flags: headerNeedsCSUM, gso: gsoTCPv4, length: 54, segment: 1448, csumStart: 34, csumOffset: 16}
	with := func(h header, change func(*header)) header { change(&h); return h }
	p := segments(4, 3000)
	for _, c := range []struct {
		name string
		h    header
		ok   bool
	}{
		{"plain", header{}, true},
		{"checked", header{flags: headerDataValid}, true},
		{"checksum", header{flags: headerNeedsCSUM, csumStart: 34, csumOffset: 16}, true},
		{"segments", tcp, true},
		{"segments of a congested flow", with(tcp, func(h *header) { h.gso |= gsoECN }), true},
		{"fragments", with(tcp, func(h *header) { h.gso, h.csumOffset, h.length = gsoUDP, udpChecksum, 42 }), true},
		{"datagrams", with(tcp, func(h *header) { h.gso, h.csumOffset, h.length = gsoUDPL4, udpChecksum, 42 }), true},
		{"unknown flag", header{flags: 8}, false},
		{"a length without segments", header{length: 54}, false},
		{"a checksum's place without one", header{csumStart: 34}, false},
		{"checksum in the Ethernet header", header{flags: headerNeedsCSUM, csumStart: 13, csumOffset: 16}, false},
		{"checksum after the end", header{flags: headerNeedsCSUM, csumStart: uint16(len(p) - netHeaderSize), csumOffset: 0}, false},
		{"checksum over the end", header{flags: headerNeedsCSUM, csumStart: uint16(len(p) - netHeaderSize - 2), csumOffset: 1}, false},
		{"checksum far away", header{flags: headerNeedsCSUM, csumStart: 0xffff, csumOffset: 0xffff}, false},
		{"segments without a checksum", with(tcp, func(h *header) { h.flags = 0 }), false},
		{"segments of no size", with(tcp, func(h *header) { h.segment = 0 }), false},
		{"segments of a few bytes", with(tcp, func(h *header) { h.segment = segmentMin - 1 }), false},
		{"segments by fragments", with(tcp, func(h *header) { h.segment = byFragments }), false},
		{"segments without a size", header{segment: 1}, false},
		{"segments of an unknown kind", with(tcp, func(h *header) { h.gso = 2 }), false},
		{"fragments of a congested flow", with(tcp, func(h *header) { h.gso, h.csumOffset, h.length = gsoUDP|gsoECN, udpChecksum, 42 }), false},
		{"checksum of another protocol", with(tcp, func(h *header) { h.csumOffset = udpChecksum }), false},
		{"version 6 in version 4", with(tcp, func(h *header) { h.gso = gsoTCPv6 }), false},
		{"TCP in the IP header", with(tcp, func(h *header) { h.csumStart, h.length = 33, 53 }), false},
		{"TCP over the end", with(tcp, func(h *header) { h.csumStart, h.length = uint16(len(p)-netHeaderSize-19), 0 }), false},
		{"a hint too short", with(tcp, func(h *header) { h.length = 14 }), false},
		{"a hint too long", with(tcp, func(h *header) { h.length = 0xffff }), false},
		{"too many datagrams", with(tcp, func(h *header) { h.gso, h.csumOffset, h.length, h.segment = gsoUDPL4, udpChecksum, 42, 8 }), false},
	} {
		c.h.put(p)
		if _, err := checkFrame(p); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for n := range netHeaderSize + frameMin {
		if _, err := checkFrame(make([]byte, n)); err == nil {
			t.Errorf("a frame of %d bytes", n)
		}
	}
	if _, err := checkFrame(make([]byte, platform.MaxFrameBytes+1)); err == nil {
		t.Error("a frame that is too long")
	}
	// VLAN tags move everything by four bytes.
	tagged := append(append(append([]byte(nil), p[:netHeaderSize+12]...), 0x81, 0, 0, 7), p[netHeaderSize+12:]...)
	h := with(tcp, func(h *header) { h.csumStart, h.length = 38, 58 })
	h.put(tagged)
	if _, err := checkFrame(tagged); err != nil {
		t.Error(err)
	}
	h = with(h, func(h *header) { h.gso = gsoTCPv6 })
	h.put(tagged)
	if _, err := checkFrame(tagged); err == nil {
		t.Error("version 6 in version 4 behind a tag")
	}
}

// FuzzFrame sends any header and frame to the guest, from the guest, and to the wire of another host.
func FuzzFrame(f *testing.F) {
	f.Add(segments(4, 3000), uint64(everything))
	f.Add(segments(6, 3000), uint64(0))
	f.Add(frame(1), uint64(everything))
	f.Add([]byte{1, 5, 0, 0, 200, 0, 34, 0, 6, 0, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0, 0x45}, uint64(everything))
	f.Fuzz(func(t *testing.T, frame []byte, features uint64) {
		frame = frame[:min(len(frame), 9000)]
		r := newRigWith(t, 1, taptest.New(t, 2), NetConfig{USO: true})
		r.activate(t)
		d := nic(t, r, features)
		addRX(d, 40, 300)
		d.Queues[netRX].Kick()
		unix.Write(r.wire, frame)
		r.RunPolls()
		r.Do(func() { r.net.Inject(frame) })
		d.Queues[netRX].Take()
		_ = r.net.Emit(frame)
		if len(frame) == 0 {
			return
		}
		d.Queues[netTX].Add(virtiotest.Desc{Addr: d.Put(frame), Len: uint32(len(frame))})
		d.Queues[netTX].Kick()
		for _, sent := range r.Frames {
			h, err := checkFrame(sent.Data)
			if err != nil {
				t.Fatalf("the guest has sent what no wire takes: %v", err)
			}
			if h.needs(true)&^d.Offered() != 0 || !bytes.Equal(sent.Data[netHeaderSize:], frame[netHeaderSize:]) {
				t.Fatalf("sent %+v", h)
			}
		}
		settle(t, r)
	})
}

// FuzzControl sends any commands, one after the other: a length byte and as many bytes each.
func FuzzControl(f *testing.F) {
	f.Add([]byte{4, ctrlMQ, 0, 2, 0, 10, ctrlGuestOffloads, 0, 2, 1, 0, 0, 0, 0, 0, 0, 8, ctrlMAC, 1, 2, 2, 2, 2, 2, 2, 2, ctrlAnnounce, 0})
	f.Add([]byte{10, ctrlMAC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, ctrlRX, 1, 1})
	f.Fuzz(func(t *testing.T, commands []byte) {
		r := newRigWith(t, 1, taptest.New(t, 2), NetConfig{USO: true, MTU: 1500})
		r.activate(t)
		d := nic(t, r, everything)
		addRX(d, 4, 2048)
		for n := 0; len(commands) > 1 && n < 60; n++ {
			size := min(int(commands[0]), len(commands)-1)
			command := commands[1 : 1+size]
			commands = commands[1+size:]
			if size == 0 {
				continue
			}
			d.Queues[4].Add(virtiotest.Desc{Addr: d.Put(command), Len: uint32(size)}, virtiotest.Desc{Addr: d.Alloc(1), Len: 1, Flags: writable})
			d.Queues[4].Kick()
			if used := d.Queues[4].Take(); len(used) != 1 || used[0].Len != 1 {
				t.Fatalf("used %v", used)
			}
			unix.Write(r.wire, frame(n))
			r.RunPolls()
		}
		if n := r.net.used; n < 1 || n > 2 || r.tap.Queues != n || tapOffloads(r.net.offloads) != r.tap.Offloads {
			t.Fatalf("%d pairs, the tap has %d; offloads %#x, the tap has %#x", n, r.tap.Queues, r.net.offloads, r.tap.Offloads)
		}
		settle(t, r)
	})
}
