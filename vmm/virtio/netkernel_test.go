package virtio

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
	"github.com/pollux-ha/pollux/vmm/tap"
	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

// world is a network namespace of the test's own, in which this thread stays.
func world(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun: makes taps")
	}
	runtime.LockOSThread() // not unlocked: the thread ends with the test, and its namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
}

// openTap opens a tap that is up.
func openTap(t *testing.T, name string, o tap.Options) (*tap.Tap, netlink.Link) {
	t.Helper()
	p, err := tap.Open(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	return p, l
}

// card is a guest with one NIC.
type card struct {
	*platformtest.Machine
	net *Net
	d   *virtiotest.Driver
	// received are the frames, with their headers, that the guest was given, from addRX's buffers.
	bufs     []uint64
	received [][]byte
}

const cardBuffer = 2048

// newCard makes a NIC whose driver takes the features and has n receive buffers.
func newCard(t *testing.T, p *tap.Tap, features uint64, n int) *card {
	t.Helper()
	c := &card{Machine: platformtest.New(t, ramSize)}
	c.Do(func() {
		h, err := pci.NewHost(c)
		if err != nil {
			t.Fatal(err)
		}
		if c.net, err = NewNet(c, h, NetConfig{Tap: p, MAC: testMAC}); err != nil {
			t.Fatal(err)
		}
		if err := c.net.Activate(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		c.Do(func() {
			if err := c.net.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	c.d = virtiotest.Find(t, c.Machine, c.net.Slot(), freeRAM)
	c.d.Start(t, features)
	c.bufs = addRX(c.d, n, cardBuffer)
	c.d.Queues[netRX].Kick()
	return c
}

// send sends an Ethernet frame after a header.
func (c *card) send(t *testing.T, h netHeader, p []byte) {
	t.Helper()
	f := append(make([]byte, netHeaderSize), p...)
	h.put(f)
	q := c.d.Queues[netTX]
	before := len(c.Frames)
	q.Add(virtiotest.Desc{Addr: c.d.Put(f), Len: uint32(len(f))})
	q.Kick()
	q.Take()
	if len(c.Frames) != before+1 {
		t.Fatalf("a frame of %d bytes did not leave the guest: %+v", len(p), h)
	}
	if err := c.net.Emit(c.Frames[before].Data); err != nil {
		t.Fatal(err)
	}
}

// next waits for a TCP frame that is for the guest, puts its buffers together, and returns it.
func (c *card) next(t *testing.T) []byte {
	t.Helper()
	q := c.d.Queues[netRX]
	for end := time.Now().Add(platformtest.Patience); ; {
		for len(c.received) > 0 {
			f := c.received[0]
			c.received = c.received[1:]
			if p := f[netHeaderSize:]; binary.BigEndian.Uint16(p[12:]) == etherIPv4 && p[23] == unix.IPPROTO_TCP {
				return f
			}
		}
		fds := []unix.PollFd{{Fd: int32(c.net.pairs[0].fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds()))); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		c.RunPolls()
		used := q.Take()
		for i := 0; i < len(used); {
			n := max(1, int(binary.LittleEndian.Uint16(c.d.Get(c.bufs[used[i].ID]+netNumBuffers, 2))))
			var f []byte
			for _, u := range used[i : i+n] {
				f = append(f, c.d.Get(c.bufs[u.ID], uint64(u.Len))...)
			}
			c.received = append(c.received, f)
			i += n
		}
		if len(used) == 0 && !time.Now().Before(end) {
			t.Fatal("the guest receives nothing")
		}
	}
}

// conversation is the guest's half of a TCP connection.
type conversation struct {
	from, to   net.HardwareAddr
	guest, far [4]byte
	port       uint16 // of the far side
	seq, ack   uint32
}

const (
	flagSYN = 0x02
	flagPSH = 0x08
	flagACK = 0x10
)

// packet is a TCP packet over IPv4 whose checksum is left to the NIC: only the pseudo header is in it.
func (c *conversation) packet(flags byte, data []byte) []byte {
	be := binary.BigEndian
	p := append(append([]byte(nil), c.to...), c.from...)
	p = be.AppendUint16(p, etherIPv4)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	be.PutUint16(ip[2:], uint16(20+tcpHeaderMin+len(data)))
	copy(ip[12:], c.guest[:])
	copy(ip[16:], c.far[:])
	be.PutUint16(ip[10:], ^sum(0, ip))
	tcp := make([]byte, tcpHeaderMin)
	be.PutUint16(tcp[0:], 40000)
	be.PutUint16(tcp[2:], c.port)
	be.PutUint32(tcp[4:], c.seq)
	be.PutUint32(tcp[8:], c.ack)
	tcp[12], tcp[13] = 5<<4, flags
	be.PutUint16(tcp[14:], 0xffff)
	be.PutUint16(tcp[tcpChecksum:], pseudo(ip, tcpHeaderMin+len(data)))
	return append(append(append(p, ip...), tcp...), data...)
}

// sum is the Internet checksum's sum, not complemented.
func sum(start uint32, p []byte) uint16 {
	for i, b := range p {
		start += uint32(b) << (8 * (1 - i%2))
	}
	for start > 0xffff {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}

func pseudo(ip []byte, length int) uint16 {
	return sum(uint32(unix.IPPROTO_TCP)+uint32(length), ip[12:20])
}

var (
	withChecksum = netHeader{flags: headerNeedsCSUM, csumStart: 34, csumOffset: tcpChecksum}
	withSegments = netHeader{flags: headerNeedsCSUM, csumStart: 34, csumOffset: tcpChecksum, gso: gsoTCPv4, segment: 1400, length: 54}
)

// TestSegmentsOnABridge sends TCP that is still to be segmented to a bridge, at whose other port nobody
// can do anything with that: there the kernel has done the work.
func TestSegmentsOnABridge(t *testing.T) {
	world(t)
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Skipf("needs bridges: %v", err)
	}
	near, l := openTap(t, "near", tap.Options{})
	far, m := openTap(t, "far", tap.Options{})
	for _, l := range []netlink.Link{l, m, br} {
		if l != netlink.Link(br) {
			if err := netlink.LinkSetMaster(l, br); err != nil {
				t.Fatal(err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	data := make([]byte, 60000)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	c := newCard(t, near, everything, 4)
	talk := conversation{from: testMAC, to: net.HardwareAddr{2, 0, 0, 0, 0, 9}, guest: [4]byte{10, 0, 0, 2}, far: [4]byte{10, 0, 0, 9}, port: 80, seq: 1000}
	c.send(t, withSegments, talk.packet(flagACK|flagPSH, data))
	var got []byte
	p := make([]byte, 70000)
	fd := -1
	raw, err := far.Files()[0].SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(f uintptr) { fd = int(f) })
	for end := time.Now().Add(platformtest.Patience); len(got) < len(data); {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds()))); n == 0 && err == nil {
			t.Fatalf("%d of %d bytes arrived", len(got), len(data))
		}
		n, err := unix.Read(fd, p)
		if err != nil {
			continue
		}
		f := p[netHeaderSize:n]
		if binary.BigEndian.Uint16(f[12:]) != etherIPv4 || f[23] != unix.IPPROTO_TCP {
			continue
		}
		ip, tcp := f[14:34], f[34:]
		tcp = tcp[:int(binary.BigEndian.Uint16(ip[2:]))-20]
		if !bytes.Equal(p[:10], make([]byte, 10)) || len(tcp) > tcpHeaderMin+1400 {
			t.Fatalf("a frame of %d bytes with header % x", len(f), p[:netHeaderSize])
		}
		if sum(uint32(pseudo(ip, len(tcp))), tcp) != 0xffff || sum(0, ip) != 0xffff {
			t.Fatalf("a wrong checksum: % x", f[:54])
		}
		if seq := binary.BigEndian.Uint32(tcp[4:]); seq != 1000+uint32(len(got)) {
			t.Fatalf("sequence number %d after %d bytes", seq, len(got))
		}
		got = append(got, tcp[tcpHeaderMin:]...)
	}
	if !bytes.Equal(got, data) {
		t.Error("other bytes arrived")
	}
}

// TestTCPWithTheKernel is a TCP connection between a guest, played by hand, and a real socket: what
// the guest sends unsegmented arrives, and what the kernel sends unsegmented reaches the guest.
func TestTCPWithTheKernel(t *testing.T) {
	world(t)
	p, l := openTap(t, "tap0", tap.Options{Queues: 2})
	addr, err := netlink.ParseAddr("10.77.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(l, addr); err != nil {
		t.Fatal(err)
	}
	err = netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(10, 77, 0, 2), HardwareAddr: testMAC})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "10.77.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	const bytesEach = 60000
	upward, downward := make([]byte, bytesEach), make([]byte, 14000)
	for i := range upward {
		upward[i] = byte(i * 11 >> 4)
	}
	for i := range downward {
		downward[i] = byte(i * 13 >> 5)
	}
	type result struct {
		got []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- result{err: err}
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(platformtest.Patience))
		got := make([]byte, bytesEach)
		if _, err = io.ReadFull(conn, got); err == nil {
			_, err = conn.Write(downward)
		}
		done <- result{got, err}
	}()

	c := newCard(t, p, everything, 200)
	be := binary.BigEndian
	talk := conversation{from: testMAC, to: l.Attrs().HardwareAddr, guest: [4]byte{10, 77, 0, 2}, far: [4]byte{10, 77, 0, 1}, port: 7777, seq: 5000}
	c.send(t, withChecksum, talk.packet(flagSYN, nil))
	answer := c.next(t)
	tcp := answer[netHeaderSize+34:]
	if tcp[13] != flagSYN|flagACK || be.Uint32(tcp[8:]) != 5001 {
		t.Fatalf("no SYN-ACK: % x", answer)
	}
	if answer[0]&headerNeedsCSUM == 0 {
		t.Error("the kernel has made a checksum that the guest does not need")
	}
	talk.seq, talk.ack = 5001, be.Uint32(tcp[4:])+1
	c.send(t, withChecksum, talk.packet(flagACK, nil))
	c.send(t, withSegments, talk.packet(flagACK|flagPSH, upward))
	talk.seq += bytesEach
	var got []byte
	largest := 0
	for len(got) < len(downward) {
		f := c.next(t)
		ip := f[netHeaderSize+14:]
		tcp := ip[20:be.Uint16(ip[2:])]
		data := tcp[tcp[12]>>4*4:]
		if len(data) == 0 {
			continue
		}
		if seq := be.Uint32(tcp[4:]); seq != talk.ack {
			t.Fatalf("sequence number %d, expected %d", seq, talk.ack)
		}
		if h := parseHeader(f); len(data) > 1460 && (h.gso != gsoTCPv4 || h.segment > 1460 || h.flags&headerNeedsCSUM == 0) {
			t.Fatalf("%d bytes in one frame with header %+v", len(data), h)
		}
		largest = max(largest, len(data))
		got = append(got, data...)
		talk.ack += uint32(len(data))
		c.send(t, withChecksum, talk.packet(flagACK, nil))
	}
	if !bytes.Equal(got, downward) {
		t.Error("the guest received other bytes")
	}
	if largest <= 1460 {
		t.Errorf("no frame had more than %d bytes of data", largest)
	}
	r := <-done
	if r.err != nil || !bytes.Equal(r.got, upward) {
		t.Errorf("the socket received %d bytes, the right ones: %v; %v", len(r.got), bytes.Equal(r.got, upward), r.err)
	}
}
