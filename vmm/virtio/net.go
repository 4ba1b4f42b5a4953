package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Feature bits, configuration and header of a NIC (section 5.1).
const (
	netFeatureMAC    = 1 << 5
	netFeatureStatus = 1 << 16

	netLinkUp     = 1  // VIRTIO_NET_S_LINK_UP
	netHeaderSize = 12 // struct virtio_net_hdr with num_buffers
	netNumBuffers = 10 // offset of num_buffers in it

	netQueueSize = 256
	netRX        = 0
	netTX        = 1

	frameMin     = 14 // an Ethernet header
	frameMax     = 65535
	receiveBatch = 64   // frames for one round of the I/O thread
	staleMax     = 4096 // frames dropped on activation; taps queue 500 to 1,000

	// What a NIC keeps of what arrives while the guest stands still; the rest waits in the tap.
	parkedFrames = 512
	parkedBytes  = 1 << 20
)

// NetConfig describes a NIC.
type NetConfig struct {
	Index int // the NIC's number, as in Output.Transmit
	// Tap is where frames come from and go to: one frame a read and a write, no header, non-blocking
	// (tap.Open makes such). The caller closes it after the NIC.
	Tap *os.File
	MAC net.HardwareAddr
}

// Net is a virtio NIC on a tap. It reads the tap only while it is active, its driver is ready and
// there are buffers to receive into: otherwise frames wait in the tap, whose queue drops the excess
// like a NIC would. Parked, it takes frames without touching the guest, and gives them to it later.
type Net struct {
	device
	index     int
	tap       syscall.RawConn
	file      *os.File // keeps the descriptor open
	mac       [6]byte
	linkUp    bool
	onReceive func(frame []byte)

	poll    platform.Registration
	fd      int
	starved bool // no receive buffers: a kick tells when there are
	failed  bool // the tap can't be read any more
	chain   chain
	rx      []byte // header and frame
	tx      []byte

	parking bool     // the guest stands still and will go on
	parked  [][]byte // frames that it has not been given yet, oldest first
	bytes   int      // of parked
}

// NewNet makes a NIC and puts it on the bus. It begins suspended. The device lock is held.
func NewNet(p platform.Platform, h *pci.Host, c NetConfig) (*Net, error) {
	if len(c.MAC) != 6 || c.MAC[0]&1 != 0 {
		return nil, fmt.Errorf("NIC %d: %q is no unicast Ethernet address", c.Index, c.MAC)
	}
	if c.Tap == nil {
		return nil, fmt.Errorf("NIC %d has no tap", c.Index)
	}
	n := &Net{index: c.Index, file: c.Tap, mac: [6]byte(c.MAC), linkUp: true,
		rx: make([]byte, netHeaderSize+frameMax), tx: make([]byte, frameMax)}
	var err error
	if n.tap, err = c.Tap.SyscallConn(); err != nil {
		return nil, fmt.Errorf("NIC %d: use its tap: %w", c.Index, err)
	}
	if err := n.tap.Control(func(fd uintptr) { n.fd = int(fd) }); err != nil {
		return nil, fmt.Errorf("NIC %d: use its tap: %w", c.Index, err)
	}
	if err := n.attach(p, h, n, kindNet, c.Index, netFeatureMAC|netFeatureStatus, netQueueSize, netQueueSize); err != nil {
		return nil, err
	}
	return n, nil
}

// Close gives back what the NIC holds, but not the tap. The device lock is held.
func (n *Net) Close() error {
	n.close()
	return n.setPolling(false)
}

// OnReceive sets the observer of the frames that are taken from the tap for the guest; nil for none.
// It runs with the device lock held, after the frame is in guest memory or has been parked, and must
// not keep the slice.
func (n *Net) OnReceive(fn func(frame []byte)) { n.onReceive = fn }

// Park makes a suspended NIC take frames from the tap all the same, up to a bound, and keep them for
// the guest. Nothing of the guest's is touched. The next activation gives it the frames, and drops
// none that still wait in the tap; Suspend and a restore forget them. The device lock is held.
func (n *Net) Park() {
	if n.active {
		return
	}
	n.parking = true
	if n.setPolling(n.wantsFrames()) != nil {
		n.parking = false // the activation finds it out as well
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

// Emit puts a frame on the wire. It is safe from any goroutine, with or without the device lock. A
// tap that can't take the frame now drops it, as wires do.
func (n *Net) Emit(frame []byte) error {
	var werr error
	err := n.tap.Control(func(fd uintptr) {
		for {
			if _, werr = unix.Write(int(fd), frame); werr != unix.EINTR {
				return
			}
		}
	})
	if werr == unix.EAGAIN || werr == unix.ENOBUFS {
		werr = nil
	}
	if err = errors.Join(err, werr); err != nil {
		return fmt.Errorf("send a frame of %d bytes on NIC %d: %w", len(frame), n.index, err)
	}
	return nil
}

// Inject gives the guest a frame as if it had been received, and says whether there was room for it.
// The observer does not hear of it. The device lock is held.
func (n *Net) Inject(frame []byte) bool {
	q := &n.queues[netRX]
	if !n.running() || !q.enabled || len(frame) < frameMin || len(frame) > frameMax {
		return false
	}
	copy(n.rx[netHeaderSize:], frame)
	ok, err := n.deliver(q, len(frame))
	n.publish(netRX)
	if err != nil {
		n.needsReset()
		n.updatePolling()
	}
	return ok
}

// start implements model: the driver takes over.
func (n *Net) start() {
	n.starved = false
	n.drainStale()
	n.updatePolling()
}

func (n *Net) kick(i int) {
	if i == netRX {
		n.starved = false
		n.deliverParked()
		n.updatePolling()
		return
	}
	n.serve(netTX, &n.chain, n.transmit)
	n.updatePolling() // a malformed queue ends receiving as well
}

func (n *Net) reset() {
	n.starved = false
	n.forgetParked()
	n.updatePolling()
}

func (n *Net) activate() error {
	if n.starved = false; n.failed {
		n.failed = false // another host, another tap
		n.configChanged()
	}
	if n.parking {
		n.parking = false // what is parked goes first, when the queue is looked at
	} else {
		n.drainStale()
	}
	return n.setPolling(n.wantsFrames())
}

func (n *Net) suspend() {
	n.parking = false
	n.forgetParked()
	n.updatePolling()
}

// transmit takes a chain of the transmit queue. Frames that can't be Ethernet are dropped.
func (n *Net) transmit(c *chain) uint32 {
	if c.readable < netHeaderSize+frameMin || c.readable > netHeaderSize+frameMax {
		return 0
	}
	frame, ok := c.view(n.p.RAM(), netHeaderSize)
	if !ok {
		frame = n.tx[:c.read(n.p.RAM(), netHeaderSize, n.tx)]
	}
	n.p.Output().Transmit(n.index, frame)
	return 0
}

func (n *Net) wantsFrames() bool {
	if n.parking {
		return n.status&(statusDriverOK|statusNeedsReset) == statusDriverOK && n.queues[netRX].enabled && !n.failed &&
			len(n.parked) < parkedFrames && n.bytes+frameMax <= parkedBytes
	}
	return n.running() && n.queues[netRX].enabled && !n.starved && !n.failed
}

// updatePolling polls the tap just while frames can be received. A tap that can't be polled has no
// carrier.
func (n *Net) updatePolling() {
	if err := n.setPolling(n.wantsFrames()); err != nil {
		n.fail()
	}
}

func (n *Net) fail() {
	n.failed = true
	_ = n.setPolling(false) // it can't be read any more, whatever becomes of the registration
	n.configChanged()
}

func (n *Net) setPolling(on bool) (err error) {
	switch {
	case on && n.poll == nil:
		if n.poll, err = n.p.Poll(n.fd, n.receive); err != nil {
			n.poll = nil
			return fmt.Errorf("poll the tap of NIC %d: %w", n.index, err)
		}
	case !on && n.poll != nil:
		err = n.poll.Close()
		n.poll = nil
	}
	return err
}

// readTap reads one frame into the receive buffer; 0 means that there is none.
func (n *Net) readTap() (int, error) {
	for {
		m, err := unix.Read(n.fd, n.rx[netHeaderSize:])
		switch err {
		case nil:
			return m, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, fmt.Errorf("read the tap of NIC %d: %w", n.index, err)
		}
	}
}

func (n *Net) drainStale() {
	if !n.active {
		return
	}
	for range staleMax {
		if m, err := n.readTap(); m == 0 || err != nil {
			return
		}
	}
}

// receive runs on the I/O thread while the tap has frames.
func (n *Net) receive() {
	if n.parking {
		n.park()
		return
	}
	if !n.wantsFrames() {
		n.updatePolling()
		return
	}
	q := &n.queues[netRX]
	var err error
	for range receiveBatch {
		var room bool
		if room, err = n.room(q); err != nil || !room {
			break
		}
		m, rerr := n.readTap()
		if rerr != nil {
			n.fail()
			break
		}
		if m == 0 {
			break
		}
		if m < frameMin {
			continue
		}
		var ok bool
		if ok, err = n.deliver(q, m); err != nil {
			break
		}
		if ok && n.onReceive != nil {
			n.onReceive(n.rx[netHeaderSize : netHeaderSize+m])
		}
	}
	n.publish(netRX)
	if err != nil {
		n.needsReset()
	}
	n.updatePolling()
}

// room says whether there is a buffer to receive into.
func (n *Net) room(q *queue) (bool, error) {
	free, err := q.available()
	if err != nil || free > 0 {
		return err == nil, err
	}
	more, err := q.arm()
	n.starved = err == nil && !more
	return more, err
}

// park takes frames from the tap for a guest that stands still.
func (n *Net) park() {
	for range receiveBatch {
		if !n.wantsFrames() {
			break
		}
		m, err := n.readTap()
		if err != nil {
			n.parking = false // the activation finds it out as well
			break
		}
		if m == 0 {
			break
		}
		if m < frameMin {
			continue
		}
		frame := append([]byte(nil), n.rx[netHeaderSize:netHeaderSize+m]...)
		n.parked = append(n.parked, frame)
		n.bytes += m
		if n.onReceive != nil {
			n.onReceive(frame)
		}
	}
	if !n.wantsFrames() {
		_ = n.setPolling(false) // it can only have been taken off already
	}
}

// deliverParked gives the guest what it has buffers for. The rest goes before all that is in the tap.
func (n *Net) deliverParked() {
	if len(n.parked) == 0 {
		return
	}
	q := &n.queues[netRX]
	for len(n.parked) > 0 {
		room, err := n.room(q)
		if err == nil && room {
			m := copy(n.rx[netHeaderSize:], n.parked[0])
			_, err = n.deliver(q, m)
		}
		if err != nil {
			n.forgetParked()
			n.publish(netRX)
			n.needsReset()
			return
		}
		if !room {
			break
		}
		n.bytes -= len(n.parked[0])
		n.parked[0], n.parked = nil, n.parked[1:]
	}
	n.publish(netRX)
}

func (n *Net) forgetParked() { n.parked, n.bytes = nil, 0 }

// deliver puts the frame of m bytes that is in the receive buffer into the guest. A frame too long
// for the driver's buffer is dropped and the buffer kept.
func (n *Net) deliver(q *queue, m int) (bool, error) {
	ok, err := q.pop(&n.chain)
	if !ok || err != nil {
		return false, err
	}
	if n.chain.writable < uint64(netHeaderSize+m) {
		q.unpop()
		return false, nil
	}
	packet := n.rx[:netHeaderSize+m]
	clear(packet[:netHeaderSize])
	packet[netNumBuffers] = 1 // section 5.1.6.4.1
	scatter(n.p.RAM(), n.chain.in, 0, packet)
	return true, q.push(n.chain.head, uint32(len(packet)))
}

func (n *Net) config() []byte {
	var c [8]byte
	copy(c[:], n.mac[:])
	if n.linkUp && !n.failed {
		binary.LittleEndian.PutUint16(c[6:], netLinkUp)
	}
	return c[:]
}

func (n *Net) save(b []byte) []byte {
	b = append(b, n.mac[:]...)
	b = codec.AppendBool(b, n.linkUp)
	return codec.AppendBool(b, n.failed)
}

func (n *Net) load(r *codec.Reader, _ []queue) (apply func()) {
	mac := r.Take(6)
	linkUp, failed := r.Bool(), r.Bool()
	if mac != nil && [6]byte(mac) != n.mac {
		r.Failf("NIC with address %s, this one has %s", net.HardwareAddr(mac), net.HardwareAddr(n.mac[:]))
	}
	return func() {
		n.linkUp, n.failed = linkUp, failed
		n.starved, n.parking = false, false
		n.forgetParked()
		_ = n.setPolling(false) // a restored NIC is suspended
	}
}
