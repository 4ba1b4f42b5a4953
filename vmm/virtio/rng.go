package virtio

import (
	"crypto/rand"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

const (
	rngQueueSize = 64
	rngPiece     = 4096 // bytes for one request; drivers ask for 64 or so
)

// RNG is a virtio entropy source (section 5.4). It has no state of its own: after a takeover the
// guest gets bytes that nobody has seen before.
type RNG struct {
	device
	chain chain
	piece [rngPiece]byte
}

// NewRNG makes an entropy source and puts it on the bus. It begins suspended. The device lock is held.
func NewRNG(p platform.Platform, h *pci.Host) (*RNG, error) {
	r := &RNG{}
	if err := r.attach(p, h, r, kindRNG, 0, 0, rngQueueSize); err != nil {
		return nil, err
	}
	return r, nil
}

// Close gives back what the device holds. The device lock is held.
func (r *RNG) Close() error {
	r.close()
	return nil
}

func (r *RNG) start()          {}
func (r *RNG) reset()          {}
func (r *RNG) activate() error { return nil }
func (r *RNG) suspend()        {}
func (r *RNG) config() []byte  { return nil }

func (r *RNG) kick(i int) {
	r.serve(i, &r.chain, func(c *chain) uint32 {
		p := r.piece[:min(c.writable, rngPiece)]
		rand.Read(p) // never fails: it would end the program
		n := scatter(r.p.RAM(), c.in, 0, p)
		clear(p)
		return uint32(n)
	})
}

func (r *RNG) save(b []byte) []byte { return b }

func (r *RNG) load(*codec.Reader, []queue) (apply func()) { return func() {} }
