package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap"
)

// Feature bits of a NIC (section 5.1.3).
const (
	netCSUM              = 1 << 0
	netGuestCSUM         = 1 << 1
	netCtrlGuestOffloads = 1 << 2
	netMTU               = 1 << 3
	netMAC               = 1 << 5
	netGuestTSO4         = 1 << 7
	netGuestTSO6         = 1 << 8
	netGuestECN          = 1 << 9
	netHostTSO4          = 1 << 11
	netHostTSO6          = 1 << 12
	netHostECN           = 1 << 13
	netHostUFO           = 1 << 14
	netMrgRXBuf          = 1 << 15
	netStatus            = 1 << 16
	netCtrlVQ            = 1 << 17
	netCtrlRX            = 1 << 18
	netCtrlRXExtra       = 1 << 20
	netGuestAnnounce     = 1 << 21
	netMQ                = 1 << 22
	netCtrlMACAddr       = 1 << 23
	netGuestUSO4         = 1 << 54
	netGuestUSO6         = 1 << 55
	netHostUSO           = 1 << 56

	// netOffered is what every NIC offers: what the taps of all kernels can do. Not in it is GUEST_UFO:
	// no kernel gives a tap UDP that is to be fragmented any more.
	netOffered = netCSUM | netGuestCSUM | netCtrlGuestOffloads | netMAC | netGuestTSO4 | netGuestTSO6 | netGuestECN |
		netHostTSO4 | netHostTSO6 | netHostECN | netHostUFO | netMrgRXBuf | netStatus | netCtrlVQ | netCtrlRX |
		netCtrlRXExtra | netGuestAnnounce | netCtrlMACAddr
	netOfferedUSO = netGuestUSO4 | netGuestUSO6 | netHostUSO
)

const (
	netLinkUp       = 1 // VIRTIO_NET_S_LINK_UP
	netAnnounceFlag = 2 // VIRTIO_NET_S_ANNOUNCE

	netHeaderSize = platform.FrameHeaderBytes // struct virtio_net_hdr with num_buffers
	netNumBuffers = 10                        // offset of num_buffers in it; outside of the guest, the queue pair

	netQueueSize   = 256
	netControlSize = 64

	frameMin     = 14 // an Ethernet header
	frameMax     = platform.MaxFrameBytes - netHeaderSize
	receiveBatch = 64   // frames for one round of the I/O thread
	staleMax     = 4096 // frames dropped on activation; taps queue 500 to 1,000

	// MTUs that a NIC may have: IPv6's least, and the kernel's most for a tap (with its header, 64 KiB).
	MinMTU = 1280
	MaxMTU = 65521

	// What a NIC keeps of what arrives while the guest stands still; the rest waits in the tap.
	parkedFrames = 512
	parkedBytes  = 1 << 20
)

// Tap is where a NIC's frames come from and go to; tap.Tap is one.
type Tap interface {
	// Files are its queues, one for each queue pair of the NIC, non-blocking: one frame a read and a
	// write, with a header of platform.FrameHeaderBytes.
	Files() []*os.File
	// SetOffloads says which work may be left undone in frames that are read from now on.
	SetOffloads(tap.Offload) error
	// SetQueues makes the first n queues take part: no frame arrives in the others.
	SetQueues(n int) error
}

// NetConfig describes a NIC.
type NetConfig struct {
	Index int // the NIC's number, as in Output.Transmit
	// Tap has as many queues as the NIC is to have queue pairs. The caller closes it after the NIC.
	Tap Tap
	MAC net.HardwareAddr
	MTU int // what the guest is told; 0: nothing, which means 1,500
	// USO offers segmentation offload for UDP. The taps of both hosts have to be opened with it.
	USO bool
}

// Net is a virtio NIC on a tap. It reads the tap only while it is active, its driver is ready and
// there are buffers to receive into: otherwise frames wait in the tap, whose queue drops the excess
// like a NIC would. Parked, it takes frames without touching the guest, and gives them to it later.
//
// All frames that leave or enter it have a header, see platform.FrameHeaderBytes.
type Net struct {
	device
	index     int
	tap       Tap
	permanent [6]byte       // the address that it was made with
	mac       atomic.Uint64 // the address that its driver has given it, first byte lowest
	mtu       int
	linkUp    bool
	onReceive func(frame []byte)
	pairs     []netPair
	used      int          // pairs that the driver uses
	plugged   atomic.Int32 // pairs that the tap uses
	offloads  uint64       // what the driver lets the tap leave undone: feature bits
	announce  bool         // the driver is asked to tell the network where it is
	moved     bool         // the state comes from another host
	failed    bool         // the tap can't be used any more
	chain     chain
	more      chain  // further buffers of a frame
	heads     []used // buffers of a frame
	rx        []byte // a frame
	tx        []byte

	parking      bool // the guest stands still and will go on
	parkedFrames int
	parkedBytes  int
}

// netPair is one receive queue and one transmit queue with the tap's queue behind them.
type netPair struct {
	file    syscall.RawConn
	fd      int
	poll    platform.Registration
	starved bool // no receive buffers: a kick tells when there are
	// parked are frames that the guest has not been given yet, oldest first. They come before those
	// that are still in the tap.
	parked []parkedFrame
}

type parkedFrame struct {
	data []byte
	told bool // the observer has heard of it
}

// used is an element of a used ring.
type used struct {
	head uint16
	n    uint32
}

// NewNet makes a NIC and puts it on the bus. It begins suspended. The device lock is held.
func NewNet(p platform.Platform, h *pci.Host, c NetConfig) (*Net, error) {
	if len(c.MAC) != 6 || c.MAC[0]&1 != 0 {
		return nil, fmt.Errorf("NIC %d: %q is no unicast Ethernet address", c.Index, c.MAC)
	}
	if c.Tap == nil {
		return nil, fmt.Errorf("NIC %d has no tap", c.Index)
	}
	if c.MTU != 0 && (c.MTU < MinMTU || c.MTU > MaxMTU) {
		return nil, fmt.Errorf("NIC %d: an MTU of %d: between %d and %d are possible", c.Index, c.MTU, MinMTU, MaxMTU)
	}
	files := c.Tap.Files()
	if len(files) < 1 || len(files) > tap.MaxQueues {
		return nil, fmt.Errorf("NIC %d: a tap of %d queues: between 1 and %d are possible", c.Index, len(files), tap.MaxQueues)
	}
	n := &Net{index: c.Index, tap: c.Tap, permanent: [6]byte(c.MAC), mtu: c.MTU, linkUp: true, used: 1,
		pairs: make([]netPair, len(files)), rx: make([]byte, platform.MaxFrameBytes), tx: make([]byte, platform.MaxFrameBytes)}
	n.setMAC(n.permanent)
	n.plugged.Store(1)
	for i, f := range files {
		var err error
		q := &n.pairs[i]
		if q.file, err = f.SyscallConn(); err == nil {
			err = q.file.Control(func(fd uintptr) { q.fd = int(fd) })
		}
		if err != nil {
			return nil, fmt.Errorf("NIC %d: use its tap: %w", c.Index, err)
		}
	}
	features := uint64(netOffered)
	if len(files) > 1 {
		features |= netMQ
	}
	if c.MTU != 0 {
		features |= netMTU
	}
	if c.USO {
		features |= netOfferedUSO
	}
	var sizes []uint16
	for range files {
		sizes = append(sizes, netQueueSize, netQueueSize)
	}
	if err := n.attach(p, h, n, kindNet, c.Index, features, append(sizes, netControlSize)...); err != nil {
		return nil, err
	}
	return n, nil
}

// Close gives back what the NIC holds, but not the tap. The device lock is held.
func (n *Net) Close() error {
	n.close()
	var err error
	for i := range n.pairs {
		err = errors.Join(err, n.setPolling(i, false))
	}
	return err
}

// OnReceive sets the observer of the frames that are taken from the tap for the guest; nil for none.
// It runs with the device lock held, after the frame is in guest memory or has been parked for a guest
// that stands still, and must not keep the slice.
func (n *Net) OnReceive(fn func(frame []byte)) { n.onReceive = fn }

// Park makes a suspended NIC take frames from the tap all the same, up to a bound, and keep them for
// the guest. Nothing of the guest's is touched. The next activation gives it the frames, and drops
// none that still wait in the tap; Suspend and a restore forget them. The device lock is held.
func (n *Net) Park() {
	if n.active {
		return
	}
	n.parking = true
	for i := range n.pairs {
		if n.setPolling(i, n.wantsFrames(i)) != nil {
			n.parking = false // the activation finds it out as well
		}
	}
}

// SetActive begins or ends the NIC's work; Activate and Suspend do the same. Frames that came while
// it was neither active nor parked are stale and dropped.
func (n *Net) SetActive(on bool) error {
	if on {
		return n.Activate()
	}
	n.Suspend()
	return nil
}

// SetLink says whether the wire has a carrier, which is what the guest sees as link state.
func (n *Net) SetLink(up bool) {
	if n.linkUp != up {
		n.linkUp = up
		n.configChanged()
	}
}

// MAC is the address that the NIC has now: its driver may have changed it. It is safe from any
// goroutine, with or without the device lock.
func (n *Net) MAC() net.HardwareAddr {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n.mac.Load())
	return b[:6]
}

func (n *Net) setMAC(mac [6]byte) {
	var b [8]byte
	copy(b[:], mac[:])
	n.mac.Store(binary.LittleEndian.Uint64(b[:]))
}

// Emit puts a frame on the wire. It is safe from any goroutine, with or without the device lock. A
// tap that can't take the frame now drops it, as wires do. The frame may have come from another host:
// one that makes no sense is an error.
func (n *Net) Emit(frame []byte) error {
	h, err := checkFrame(frame)
	if err != nil {
		return fmt.Errorf("send a frame on NIC %d: %w", n.index, err)
	}
	pair := int(h.buffers)
	if pair >= int(n.plugged.Load()) {
		pair = 0
	}
	err = n.write(pair, frame)
	if errors.Is(err, unix.EBADFD) && pair != 0 {
		err = n.write(0, frame) // the queue has just left
	}
	if err != nil {
		return fmt.Errorf("send a frame of %d bytes on NIC %d: %w", len(frame), n.index, err)
	}
	return nil
}

// write writes a frame to a queue of the tap. The kernel steers frames for the same flow to the queue
// that it was written to last.
func (n *Net) write(pair int, frame []byte) error {
	var werr error
	err := n.pairs[pair].file.Control(func(fd uintptr) {
		for {
			if _, werr = unix.Write(int(fd), frame); werr != unix.EINTR {
				return
			}
		}
	})
	if werr == unix.EAGAIN || werr == unix.ENOBUFS {
		werr = nil
	}
	return errors.Join(err, werr)
}

// start implements model: the driver takes over.
func (n *Net) start() {
	for i := range n.pairs {
		n.pairs[i].starved = false
	}
	n.offloads = offloadsOf(n.features)
	if n.active && n.plug() != nil {
		n.fail()
		return
	}
	n.drainStale()
	n.updatePolling()
}

// plug makes the tap follow what the driver has negotiated.
func (n *Net) plug() error {
	if err := n.tap.SetOffloads(tapOffloads(n.offloads)); err != nil {
		return fmt.Errorf("NIC %d: %w", n.index, err)
	}
	if err := n.tap.SetQueues(n.used); err != nil {
		return fmt.Errorf("NIC %d: %w", n.index, err)
	}
	n.plugged.Store(int32(n.used))
	return nil
}

// control is the number of the control queue: it comes after all queue pairs that the driver knows of.
func (n *Net) control() int {
	if n.negotiated(netMQ) {
		return 2 * len(n.pairs)
	}
	return 2
}

func (n *Net) kick(i int) {
	switch c := n.control(); {
	case i == c:
		if n.negotiated(netCtrlVQ) {
			n.serve(i, &n.chain, n.command)
		}
	case i > c: // nothing that this driver knows
	case i%2 == 0:
		n.pairs[i/2].starved = false
		n.deliverParked(i / 2)
	default:
		n.serve(i, &n.chain, func(c *chain) uint32 { return n.transmit(i/2, c) })
	}
	n.updatePolling() // a malformed queue ends receiving as well
}

func (n *Net) reset() {
	n.offloads, n.used, n.announce, n.moved = 0, 1, false, false
	n.setMAC(n.permanent)
	n.forgetParked()
	n.updatePolling()
}

func (n *Net) activate() error {
	if n.failed {
		n.failed = false // another host, another tap
		n.configChanged()
	}
	if err := n.plug(); err != nil {
		return err
	}
	if n.moved && n.running() && n.linkUp && n.negotiated(netGuestAnnounce) {
		n.announce = true // section 5.1.6.5.4: it knows more addresses than this host
		n.configChanged()
	}
	n.moved = false
	if n.parking {
		n.parking = false // what is parked goes first, when the queue is looked at
	} else {
		n.drainStale()
	}
	for i := range n.pairs {
		n.pairs[i].starved = false
		if err := n.setPolling(i, n.wantsFrames(i)); err != nil {
			return err
		}
	}
	return nil
}

func (n *Net) suspend() {
	n.parking = false
	n.forgetParked()
	n.updatePolling()
}

// transmit takes a chain of a transmit queue. Frames that can't be Ethernet, or ask for what was not
// negotiated, are dropped. The frame is copied before it is looked at: the guest may go on changing it.
func (n *Net) transmit(pair int, c *chain) uint32 {
	if c.readable < netHeaderSize+frameMin || c.readable > platform.MaxFrameBytes {
		return 0
	}
	frame := n.tx[:c.read(n.p.RAM(), 0, n.tx)]
	h := parseHeader(frame)
	h.flags &= headerNeedsCSUM // the others are for received frames
	h.buffers = uint16(pair)
	if h.tidy(frame) != nil || h.needs(true)&^n.features != 0 {
		return 0
	}
	h.put(frame)
	n.p.Output().Transmit(n.index, frame)
	return 0
}

func (n *Net) config() []byte {
	var c [12]byte
	copy(c[:], n.MAC())
	le := binary.LittleEndian
	var status uint16
	if n.linkUp && !n.failed {
		status |= netLinkUp
	}
	if n.announce {
		status |= netAnnounceFlag
	}
	le.PutUint16(c[6:], status)
	le.PutUint16(c[8:], uint16(len(n.pairs)))
	le.PutUint16(c[10:], uint16(n.mtu))
	return c[:]
}
