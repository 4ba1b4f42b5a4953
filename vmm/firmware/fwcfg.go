package firmware

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Ports and selectors of the device, and bits of a DMA request's control field.
const (
	cfgPort     = 0x510 // selector, 16 bits; data at +1, 8 bits; address of a DMA request at +4, 64 bits big-endian
	cfgPorts    = 12
	cfgData     = 1
	cfgDMAHigh  = 4
	cfgDMALow   = 8
	cfgDMAMagic = "QEMU CFG" // what reading the address gives

	keySignature = 0x00
	keyID        = 0x01
	keyCPUs      = 0x05
	keyMaxCPUs   = 0x0f
	keyDirectory = 0x19
	keyFirstFile = 0x20

	idTraditional = 1 << 0
	idDMA         = 1 << 1

	dmaError  = 1 << 0
	dmaRead   = 1 << 1
	dmaSkip   = 1 << 2
	dmaSelect = 1 << 3
	dmaWrite  = 1 << 4

	dmaRequestSize = 16
	// dmaMax bounds a transfer, in bytes: the device lock is held for it. No file is as large.
	dmaMax   = 16 << 20
	dmaPiece = 64 << 10

	nameMax = 55 // of a file, without its NUL
)

// File is a named item of the configuration device.
type File struct {
	Name string
	// Data is asked each time that the guest selects the file. What it returns depends on nothing but the
	// machine's configuration and its restored state: a replica goes on reading where the primary was.
	Data func() []byte
}

// Config is the firmware configuration device. The guest can't write into its items.
type Config struct {
	p     platform.Platform
	items map[uint16]func() []byte

	selector uint16
	offset   uint32 // of the next byte
	high     uint32 // what was written to the upper half of the DMA address
	data     []byte // the selected item
}

// NewConfig makes the device for a machine with so many vCPUs and maps its ports.
func NewConfig(p platform.Platform, cpus int, files []File) (*Config, error) {
	c := &Config{p: p, items: map[uint16]func() []byte{}}
	constant := func(key uint16, data []byte) { c.items[key] = func() []byte { return data } }
	le := binary.LittleEndian
	constant(keySignature, []byte("QEMU"))
	constant(keyID, le.AppendUint32(nil, idTraditional|idDMA))
	constant(keyCPUs, le.AppendUint16(nil, uint16(cpus)))
	constant(keyMaxCPUs, le.AppendUint16(nil, uint16(cpus)))
	for i, f := range files {
		if len(f.Name) == 0 || len(f.Name) > nameMax {
			return nil, fmt.Errorf("firmware configuration file %q: a name has between 1 and %d bytes", f.Name, nameMax)
		}
		c.items[uint16(keyFirstFile+i)] = f.Data
	}
	c.items[keyDirectory] = func() []byte { return directory(files) }
	c.selectItem(0)
	if err := p.Ports().Map(cfgPort, cfgPorts, (*cfgPortsHandler)(c)); err != nil {
		return nil, fmt.Errorf("map the firmware configuration device: %w", err)
	}
	return c, nil
}

// directory lists the files: their number u32, then for each its size u32, selector u16, two bytes of
// nothing and its name; big-endian.
func directory(files []File) []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, uint32(len(files)))
	for i, f := range files {
		b = be.AppendUint32(b, uint32(len(f.Data())))
		b = be.AppendUint16(b, uint16(keyFirstFile+i))
		b = append(b, 0, 0)
		b = append(b, f.Name...)
		b = append(b, make([]byte, nameMax+1-len(f.Name))...)
	}
	return b
}

func (c *Config) selectItem(key uint16) {
	c.selector, c.offset, c.data = key, 0, nil
	if data := c.items[key]; data != nil {
		c.data = data()
	}
}

// take fills p with the item's next bytes: zeros beyond its end.
func (c *Config) take(p []byte) {
	n := 0
	if c.offset < uint32(len(c.data)) {
		n = copy(p, c.data[c.offset:])
	}
	clear(p[n:])
	c.skip(uint32(len(p)))
}

// skip moves on by n bytes, at most to where an item could end.
func (c *Config) skip(n uint32) {
	if c.offset += n; c.offset < n || c.offset > 1<<31 {
		c.offset = 1 << 31
	}
}

// transfer does what the request at addr says.
func (c *Config) transfer(addr uint64) {
	ram := c.p.RAM()
	var r [dmaRequestSize]byte
	be := binary.BigEndian
	if ram.Read(addr, r[:]) != nil {
		return // there is nowhere to report it
	}
	control, length, to := be.Uint32(r[0:]), be.Uint32(r[4:]), be.Uint64(r[8:])
	if control&dmaSelect != 0 {
		c.selectItem(uint16(control >> 16))
	}
	var result uint32
	switch {
	case control&dmaRead != 0:
		if !c.read(to, length) {
			result = dmaError
		}
	case control&dmaWrite != 0:
		result = dmaError
	case control&dmaSkip != 0:
		c.skip(length)
	}
	be.PutUint32(r[:4], result)
	_ = ram.Write(addr, r[:4]) // it was there a moment ago
}

func (c *Config) read(to uint64, length uint32) bool {
	if length > dmaMax {
		return false
	}
	piece := make([]byte, min(length, dmaPiece))
	for length > 0 {
		p := piece[:min(length, dmaPiece)]
		c.take(p)
		if c.p.RAM().Write(to, p) != nil {
			return false
		}
		to += uint64(len(p))
		length -= uint32(len(p))
	}
	return true
}

type cfgPortsHandler Config

func (h *cfgPortsHandler) Read(off uint64, data []byte) {
	switch c := (*Config)(h); {
	case off <= cfgData && len(data) == 1:
		c.take(data)
	case off >= cfgDMAHigh:
		copy(data, cfgDMAMagic[off-cfgDMAHigh:])
	}
}

func (h *cfgPortsHandler) Write(off uint64, data []byte) {
	switch c := (*Config)(h); {
	case off == 0 && len(data) == 2:
		c.selectItem(binary.LittleEndian.Uint16(data))
	case off == cfgDMAHigh && len(data) == 8:
		c.high = 0
		c.transfer(binary.BigEndian.Uint64(data))
	case off == cfgDMAHigh && len(data) == 4:
		c.high = binary.BigEndian.Uint32(data)
	case off == cfgDMALow && len(data) == 4:
		addr := uint64(c.high)<<32 | uint64(binary.BigEndian.Uint32(data))
		c.high = 0
		c.transfer(addr)
	}
}

// Reset implements platform.Resetter.
func (c *Config) Reset() {
	c.high = 0
	c.selectItem(0)
}

// Activate implements platform.Activator: the selected item may hang on other devices' state.
func (c *Config) Activate() error {
	offset := c.offset
	c.selectItem(c.selector)
	c.offset = offset
	return nil
}

// StateID implements platform.Stateful.
func (c *Config) StateID() string { return "fw-cfg" }

// StateVersion implements platform.Stateful.
func (c *Config) StateVersion() uint16 { return 1 }

// SaveState appends selector u16, offset u32, upper half of the DMA address u32.
func (c *Config) SaveState(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, c.selector)
	b = binary.LittleEndian.AppendUint32(b, c.offset)
	return binary.LittleEndian.AppendUint32(b, c.high)
}

// RestoreState implements platform.Stateful.
func (c *Config) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	selector, offset, high := r.U16(), r.U32(), r.U32()
	if offset > 1<<31 {
		r.Failf("firmware configuration: offset %#x", offset)
	}
	if err := r.Done(); err != nil {
		return err
	}
	c.selector, c.offset, c.high = selector, offset, high
	return nil
}
