package virtio

import (
	"encoding/binary"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Queues of a console (section 5.3.2): those of port 0, of the control channel, of port 1.
const (
	consoleRX        = 0
	consoleTX        = 1
	consoleControlRX = 2
	consoleControlTX = 3
	consoleAgentRX   = 4
	consoleAgentTX   = 5

	consoleQueueSize = 64
	consoleInput     = 64 << 10 // bytes of input of a port that wait for the guest
	consolePiece     = 4096     // bytes of output handed over at once
	consoleChain     = 64 << 10 // bytes of output taken from one chain; the rest is dropped

	consoleMultiport = 1 << 1 // VIRTIO_CONSOLE_F_MULTIPORT
)

// Ports of a console.
const (
	portConsole = 0
	portAgent   = 1
	portCount   = 2

	// AgentPort is the name by which QEMU's guest agent finds its channel.
	AgentPort = "org.qemu.guest_agent.0"
)

// Console is a virtio console (section 5.3) with two ports: the console itself, and a channel for the
// guest's agent, which a driver sees that knows of more than one port.
type Console struct {
	device
	chain   chain
	ports   [portCount]port
	spoke   bool
	piece   [consolePiece]byte
	message [maxControl]byte
}

// port is what a port has beside its queues.
type port struct {
	rx    int
	input []byte // not yet given to the guest
	open  bool   // a program in the guest has opened it
	due   uint8  // control messages that the guest has not been sent yet
}

// NewConsole makes a console and puts it on the bus. It begins suspended. The device lock is held.
func NewConsole(p platform.Platform, h *pci.Host) (*Console, error) {
	c := &Console{}
	c.ports[portConsole].rx, c.ports[portAgent].rx = consoleRX, consoleAgentRX
	const n = consoleQueueSize
	if err := c.attach(p, h, c, kindConsole, 0, consoleMultiport, n, n, n, n, n, n); err != nil {
		return nil, err
	}
	return c, nil
}

// Close gives back what the console holds. The device lock is held.
func (c *Console) Close() error {
	c.close()
	return nil
}

// Reset implements platform.Resetter. What was typed for the old guest is not for the new one.
func (c *Console) Reset() {
	c.device.Reset()
	c.ports[portConsole].input = c.ports[portConsole].input[:0]
}

// Input gives the guest what was typed and says how many bytes were taken; 64 KiB wait for a guest
// that does not read. The device lock is held.
func (c *Console) Input(p []byte) int { return c.give(portConsole, p) }

// AgentInput gives the guest's agent what it was sent, and says how many bytes were taken. The device lock
// is held.
func (c *Console) AgentInput(p []byte) int {
	if !c.AgentOpen() {
		return 0
	}
	return c.give(portAgent, p)
}

// AgentOpen says whether an agent in the guest listens. The device lock is held.
func (c *Console) AgentOpen() bool { return c.status&statusDriverOK != 0 && c.ports[portAgent].open }

func (c *Console) give(i int, p []byte) int {
	port := &c.ports[i]
	n := min(len(p), consoleInput-len(port.input))
	port.input = append(port.input, p[:n]...)
	c.device.kick(port.rx)
	return n
}

// Spoken says whether the guest has written to this console: only then it is worth typing on. A driver
// alone says little, for every Linux kernel loads it. The device lock is held.
func (c *Console) Spoken() bool {
	// The used index tells of what was written before a restore.
	return c.status&statusDriverOK != 0 && (c.spoke || c.queues[consoleTX].done != 0)
}

func (c *Console) start()          {}
func (c *Console) activate() error { return nil }
func (c *Console) suspend()        {}

func (c *Console) reset() {
	c.spoke = false
	for i := range c.ports {
		c.ports[i].open, c.ports[i].due = false, 0
	}
	// A command that no agent has read is not for one that starts later.
	c.ports[portAgent].input = c.ports[portAgent].input[:0]
}

// config is cols, rows, max_nr_ports (section 5.3.4).
func (c *Console) config() []byte {
	b := make([]byte, 12)
	binary.LittleEndian.PutUint32(b[4:], portCount)
	return b
}

func (c *Console) kick(i int) {
	switch i {
	case consoleTX:
		c.serve(i, &c.chain, func(ch *chain) uint32 {
			c.transmit(ch, func(p []byte) {
				c.spoke = true
				c.p.Output().Console(p)
			})
			return 0
		})
	case consoleAgentTX:
		c.serve(i, &c.chain, func(ch *chain) uint32 {
			c.transmit(ch, c.p.Output().Agent)
			return 0
		})
	case consoleControlTX:
		c.serve(i, &c.chain, c.control)
		c.tell()
	case consoleControlRX:
		c.tell()
	case consoleRX:
		c.receive(&c.ports[portConsole])
	case consoleAgentRX:
		c.receive(&c.ports[portAgent])
	}
}

// receive gives the guest a port's input, as far as it has made room for it.
func (c *Console) receive(port *port) {
	c.fill(port.rx, func() bool { return len(port.input) > 0 }, func(ch *chain) int {
		n := scatter(c.p.RAM(), ch.in, 0, port.input)
		port.input = append(port.input[:0], port.input[n:]...)
		return n
	})
}

// fill uses the buffers of a queue for what the device has to say, while there is something.
func (c *Console) fill(i int, more func() bool, write func(*chain) int) {
	q := &c.queues[i]
	if !q.enabled {
		return // one queue's work may be another's
	}
	var err error
	for more() && err == nil {
		var ok bool
		if ok, err = q.pop(&c.chain); err == nil && !ok {
			if ok, err = q.arm(); ok {
				continue
			}
			break
		}
		if err == nil {
			n := write(&c.chain)
			err = q.push(c.chain.head, uint32(n))
			if n == 0 && err == nil {
				err = errRing // a buffer that can't be written to
			}
		}
	}
	c.publish(i)
	if err != nil {
		c.needsReset()
	}
}

func (c *Console) transmit(ch *chain, out func(p []byte)) {
	for off := uint64(0); off < min(ch.readable, consoleChain); {
		n := ch.read(c.p.RAM(), off, c.piece[:])
		if n == 0 {
			break
		}
		out(c.piece[:n])
		off += uint64(n)
	}
}

func (c *Console) save(b []byte) []byte {
	for i := range c.ports {
		port := &c.ports[i]
		b = codec.AppendBytes(b, port.input)
		b = codec.AppendBool(b, port.open)
		b = append(b, port.due)
	}
	return b
}

func (c *Console) load(r *codec.Reader, _ []queue) (apply func()) {
	var ports [portCount]port
	for i := range ports {
		ports[i] = port{rx: c.ports[i].rx, input: r.Bytes(consoleInput), open: r.Bool(), due: r.U8()}
		if ports[i].due&^dueAll != 0 {
			r.Failf("messages %#x are due to a port", ports[i].due)
		}
	}
	return func() {
		for i := range ports {
			ports[i].input = append(c.ports[i].input[:0], ports[i].input...)
		}
		c.ports = ports
	}
}
