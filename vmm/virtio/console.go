package virtio

import (
	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

const (
	consoleQueueSize = 64
	consoleRX        = 0
	consoleTX        = 1
	consoleInput     = 64 << 10 // bytes of input that wait for the guest
	consolePiece     = 4096     // bytes of output handed over at once
	consoleChain     = 64 << 10 // bytes of output taken from one chain; the rest is dropped
)

// Console is a virtio console with one port and no optional features (section 5.3).
type Console struct {
	device
	chain chain
	input []byte // not yet given to the guest
	spoke bool
	piece [consolePiece]byte
}

// NewConsole makes a console and puts it on the bus. It begins suspended. The device lock is held.
func NewConsole(p platform.Platform, h *pci.Host) (*Console, error) {
	c := &Console{}
	if err := c.attach(p, h, c, kindConsole, 0, 0, consoleQueueSize, consoleQueueSize); err != nil {
		return nil, err
	}
	return c, nil
}

// Close gives back what the console holds. The device lock is held.
func (c *Console) Close() error {
	c.close()
	return nil
}

// Input gives the guest what was typed and says how many bytes were taken; 64 KiB wait for a guest
// that does not read. The device lock is held.
func (c *Console) Input(p []byte) int {
	n := min(len(p), consoleInput-len(c.input))
	c.input = append(c.input, p[:n]...)
	c.device.kick(consoleRX)
	return n
}

// Spoken says whether the guest has written to this console: only then it is worth typing on. A driver
// alone says little, for every Linux kernel loads it. The device lock is held.
func (c *Console) Spoken() bool {
	// The used index tells of what was written before a restore.
	return c.status&statusDriverOK != 0 && (c.spoke || c.queues[consoleTX].done != 0)
}

// Reset implements platform.Resetter. What was typed for the old guest is not for the new one.
func (c *Console) Reset() {
	c.device.Reset()
	c.input = c.input[:0]
}

func (c *Console) start()          {}
func (c *Console) reset()          { c.spoke = false }
func (c *Console) activate() error { return nil }
func (c *Console) suspend()        {}
func (c *Console) config() []byte  { return nil }

func (c *Console) kick(i int) {
	if i == consoleTX {
		c.serve(i, &c.chain, c.transmit)
		return
	}
	q := &c.queues[consoleRX]
	var err error
	for len(c.input) > 0 && err == nil {
		var ok bool
		if ok, err = q.pop(&c.chain); err == nil && !ok {
			if ok, err = q.arm(); ok {
				continue
			}
			break
		}
		if err == nil {
			n := scatter(c.p.RAM(), c.chain.in, 0, c.input)
			c.input = append(c.input[:0], c.input[n:]...)
			err = q.push(c.chain.head, uint32(n))
			if n == 0 && err == nil {
				err = errRing // a buffer that can't be written to
			}
		}
	}
	c.publish(consoleRX)
	if err != nil {
		c.needsReset()
	}
}

func (c *Console) transmit(ch *chain) uint32 {
	for off := uint64(0); off < min(ch.readable, consoleChain); {
		n := ch.read(c.p.RAM(), off, c.piece[:])
		if n == 0 {
			break
		}
		c.spoke = true
		c.p.Output().Console(c.piece[:n])
		off += uint64(n)
	}
	return 0
}

func (c *Console) save(b []byte) []byte { return codec.AppendBytes(b, c.input) }

func (c *Console) load(r *codec.Reader, _ []queue) (apply func()) {
	input := r.Bytes(consoleInput)
	return func() { c.input = append(c.input[:0], input...) }
}
