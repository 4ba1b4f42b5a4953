package pci

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Registers of a type 0 header (PCI 3.0, section 6.1).
const (
	regVendor          = 0x00
	regDevice          = 0x02
	regCommand         = 0x04
	regStatus          = 0x06
	regRevision        = 0x08
	regClass           = 0x09
	regCacheLine       = 0x0c
	regBAR             = 0x10
	regSubsystemVendor = 0x2c
	regSubsystem       = 0x2e
	regCapabilities    = 0x34
	regInterruptLine   = 0x3c
	regInterruptPin    = 0x3d
	firstCapability    = 0x40
	configSize         = 0x100

	commandMemory      = 1 << 1
	commandINTxDisable = 1 << 10 // bit 2 of the register's second byte
	commandWritable    = 0x0547  // I/O, memory, bus master, parity, SERR, INTx disable
	statusINTx         = 1 << 3
	statusCapabilities = 1 << 4

	barMemory64 = 0x4
)

// Config describes a function.
type Config struct {
	Vendor, Device             uint16
	SubsystemVendor, Subsystem uint16
	Revision                   uint8
	Class                      uint32 // base class, sub-class, interface: 24 bits
	Interrupt                  bool   // the function drives INTA#
}

// Function is one device's configuration space. Its parts are added before Host.Add; afterwards it
// belongs to the guest.
type Function struct {
	host *Host
	slot int

	cfg      [configSize]byte // registers
	writable [configSize]byte // bits that the guest may change
	powerOn  [configSize]byte // registers as Host.Add left them
	bars     []*bar
	msix     *MSIX
	hooks    []hook

	capabilityEnd int  // where the next capability goes
	lastLink      int  // the byte that links to the next capability
	intx          bool // the device wants its interrupt line high
}

type bar struct {
	index   int // of the register, 0 to 4; a 64-bit register takes two
	size    uint64
	handler bus.Handler
	moved   func(base uint64, mapped bool)
	mapped  bool
	at      uint64 // where it is, if mapped
}

// hook replaces the registers [off, off+n) by functions.
type hook struct {
	off, n int
	read   func(off int, data []byte)
	write  func(off int, data []byte)
}

// NewFunction makes a function without base address registers or capabilities.
func NewFunction(c Config) *Function {
	f := &Function{capabilityEnd: firstCapability, lastLink: regCapabilities}
	le := binary.LittleEndian
	le.PutUint16(f.cfg[regVendor:], c.Vendor)
	le.PutUint16(f.cfg[regDevice:], c.Device)
	f.cfg[regRevision] = c.Revision
	f.cfg[regClass], f.cfg[regClass+1], f.cfg[regClass+2] = byte(c.Class), byte(c.Class>>8), byte(c.Class>>16)
	le.PutUint16(f.cfg[regSubsystemVendor:], c.SubsystemVendor)
	le.PutUint16(f.cfg[regSubsystem:], c.Subsystem)
	le.PutUint16(f.writable[regCommand:], commandWritable)
	f.writable[regCacheLine] = 0xff
	if c.Interrupt {
		f.cfg[regInterruptPin] = 1
		f.writable[regInterruptLine] = 0xff
	}
	return f
}

// AddBAR adds a 64-bit memory register of size bytes, a power of two from 4 KiB on. h serves the
// accesses; moved, which may be nil, hears where the window is each time that the guest maps it
// elsewhere or takes it away.
func (f *Function) AddBAR(index int, size uint64, h bus.Handler, moved func(base uint64, mapped bool)) error {
	if index < 0 || index > 4 || size < 4096 || size > platform.PCIWindowEnd-platform.PCIWindowBase || size&(size-1) != 0 {
		return fmt.Errorf("base address register %d of %#x bytes is not possible", index, size)
	}
	for _, b := range f.bars {
		if index-b.index < 2 && b.index-index < 2 {
			return fmt.Errorf("base address register %d is taken", index)
		}
	}
	if moved == nil {
		moved = func(uint64, bool) {}
	}
	b := &bar{index: index, size: size, handler: h, moved: moved}
	at := regBAR + 4*index
	binary.LittleEndian.PutUint32(f.cfg[at:], barMemory64)
	binary.LittleEndian.PutUint64(f.writable[at:], ^(size - 1))
	f.bars = append(f.bars, b)
	return nil
}

func (b *bar) set(f *Function, base uint64) {
	binary.LittleEndian.PutUint64(f.cfg[regBAR+4*b.index:], base|barMemory64)
}

// decoded says where the register's window is to be mapped, if anywhere.
func (b *bar) decoded(f *Function) (base uint64, ok bool) {
	base = b.base(f)
	return base, f.cfg[regCommand]&commandMemory != 0 && f.host.allows(base, b.size)
}

// base is the address that the register holds.
func (b *bar) base(f *Function) uint64 {
	return binary.LittleEndian.Uint64(f.cfg[regBAR+4*b.index:]) &^ 0xf
}

// AddCapability adds a capability: its id, the link, then body. writable has a bit set for each bit
// of body that the guest may change; it may be shorter than body. Returned is the capability's offset.
func (f *Function) AddCapability(id uint8, body, writable []byte) (int, error) {
	at := f.capabilityEnd
	end := (at + 2 + len(body) + 3) &^ 3
	if end > configSize {
		return 0, fmt.Errorf("no room for capability %#x in configuration space", id)
	}
	f.cfg[regStatus] |= statusCapabilities
	f.cfg[f.lastLink] = byte(at)
	f.cfg[at] = id
	copy(f.cfg[at+2:], body)
	copy(f.writable[at+2:], writable)
	f.lastLink, f.capabilityEnd = at+1, end
	return at, nil
}

// Hook lets functions answer for the registers [off, off+n). Accesses that lie only partly in there
// reach neither.
func (f *Function) Hook(off, n int, read, write func(off int, data []byte)) {
	f.hooks = append(f.hooks, hook{off, n, read, write})
}

// Config is the current value of n (at most 8) bytes of configuration space, for a device that has
// to know what the guest wrote.
func (f *Function) Config(off, n int) uint64 {
	var p [8]byte
	copy(p[:n], f.cfg[off:off+n])
	return binary.LittleEndian.Uint64(p[:])
}

// Slot is the device's number on bus 0, known after Host.Add.
func (f *Function) Slot() int { return f.slot }

func (f *Function) readConfig(off int, data []byte) {
	for _, h := range f.hooks {
		if off >= h.off && off+len(data) <= h.off+h.n {
			h.read(off-h.off, data)
			return
		}
	}
	for i := range data {
		data[i] = f.register(off + i)
	}
}

func (f *Function) register(off int) byte {
	switch {
	case off >= configSize: // no extended capabilities
		return 0
	case off == regStatus && f.intx:
		return f.cfg[off] | statusINTx
	}
	return f.cfg[off]
}

func (f *Function) writeConfig(off int, data []byte) {
	for _, h := range f.hooks {
		if off < h.off+h.n && h.off < off+len(data) {
			if off >= h.off && off+len(data) <= h.off+h.n {
				h.write(off-h.off, data)
			}
			return
		}
	}
	for i, v := range data {
		if at := off + i; at < configSize {
			f.cfg[at] = f.cfg[at]&^f.writable[at] | v&f.writable[at]
		}
	}
	f.changed()
}

// changed makes everything that hangs on the registers follow them.
func (f *Function) changed() {
	if f.host == nil {
		return
	}
	f.host.remap()
	if f.msix != nil {
		f.msix.refresh(true)
	}
	f.driveINTx()
}

// SetINTx says whether the device wants its interrupt line high. It is without effect while MSI-X is
// enabled or the guest has disabled the line.
func (f *Function) SetINTx(level bool) {
	f.intx = level
	f.driveINTx()
}

func (f *Function) driveINTx() {
	if f.host == nil || f.cfg[regInterruptPin] == 0 {
		return
	}
	off := f.cfg[regCommand+1]&(commandINTxDisable>>8) != 0 || f.msix != nil && f.msix.Enabled()
	f.host.setLine(f.slot, f.intx && !off)
}

// Save appends the registers and the MSI-X table.
func (f *Function) Save(b []byte) []byte {
	b = append(b, f.cfg[:]...)
	b = codec.AppendBool(b, f.intx)
	if f.msix != nil {
		b = f.msix.save(b)
	}
	return b
}

// Load reads what Save wrote and checks it. What it returns makes it take effect; the caller runs it
// once it has checked the rest of its own state.
func (f *Function) Load(r *codec.Reader) (apply func()) {
	var cfg [configSize]byte
	r.Fill(cfg[:])
	intx := r.Bool()
	for i := range cfg {
		if (cfg[i]^f.cfg[i])&^f.writable[i] != 0 {
			r.Failf("PCI register %#x holds %#x, which this device can't hold", i, cfg[i])
			break
		}
	}
	var table func()
	if f.msix != nil {
		table = f.msix.load(r)
	}
	return func() {
		f.cfg, f.intx = cfg, intx
		if table != nil {
			table()
			f.msix.refresh(false)
		}
		f.host.remap()
		f.driveINTx()
	}
}

// Reset brings the registers to their values after Host.Add, and the MSI-X table to that of a function
// that nobody has set up. The interrupt line is low after it.
func (f *Function) Reset() {
	f.cfg, f.intx = f.powerOn, false
	if f.msix != nil {
		f.msix.reset()
	}
	f.host.remap()
	f.driveINTx()
}

// Activate sends the messages that are pending and allowed to go.
func (f *Function) Activate() {
	if f.msix != nil {
		f.msix.refresh(true)
	}
}
