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
// like a NIC would.
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

// OnReceive sets the observer of the frames that the guest receives from the tap; nil for none. It
// runs with the device lock held, after the frame is in guest memory, and must not keep the slice.
func (n *Net) OnReceive(fn func(frame []byte)) { n.onReceive = fn }

// SetActive begins or ends the NIC's work; Activate and Suspend do the same. Frames that came while
// it was not active are stale and dropped.
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
		n.updatePolling()
		return
	}
	n.serve(netTX, &n.chain, n.transmit)
	n.updatePolling() // a malformed queue ends receiving as well
}

func (n *Net) reset() {
	n.starved = false
	n.updatePolling()
}

func (n *Net) activate() error {
	if n.starved = false; n.failed {
		n.failed = false // another host, another tap
		n.configChanged()
	}
	n.drainStale()
	return n.setPolling(n.wantsFrames())
}

func (n *Net) suspend() { n.updatePolling() }

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
	n.setPolling(false)
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
	if !n.wantsFrames() {
		n.updatePolling()
		return
	}
	q := &n.queues[netRX]
	var err error
	for range receiveBatch {
		var free uint16
		if free, err = q.available(); err == nil && free == 0 {
			var more bool
			if more, err = q.arm(); err == nil && !more {
				n.starved = true
				break
			}
		}
		if err != nil {
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
		n.starved = false
	}
}
