package pci

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

const (
	slots = 32

	portAddress = 0xcf8 // CONFIG_ADDRESS; a byte write to the second of its ports is the reset register
	portData    = 0xcfc // CONFIG_DATA

	addressEnable   = 1 << 31
	addressWritable = 0x80ff_fffc

	resetHard = 1 << 1 // of the reset control register: what a reset resets
	resetCPU  = 1 << 2 // its rising edge resets
)

// Host is the host bridge with its bus 0.
type Host struct {
	p         platform.Platform
	functions [slots]*Function
	mch, lpc  *Function // the chipset's own
	highBase  uint64    // where MMIO above the RAM begins

	ecamMapped bool
	ecamAt     uint64 // if mapped

	next     uint64 // where the next base address register goes
	address  uint32 // CONFIG_ADDRESS
	reset    uint8  // the reset control register, port 0xcf9
	asserted [slots]bool
	level    map[int]bool // what each GSI was last set to
}

// NewHost makes a host with a host bridge at 00:00.0 and maps its configuration ports and ECAM.
func NewHost(p platform.Platform) (*Host, error) {
	h := &Host{p: p, next: platform.PCIWindowBase, highBase: memory.HighBase, level: map[int]bool{}}
	for _, r := range p.RAM().Regions() {
		h.highBase = max(h.highBase, r.GPA+r.Size)
	}
	if err := h.newBridges(); err != nil {
		return nil, err
	}
	for _, w := range []struct {
		name       string
		space      *bus.Space
		base, size uint64
		h          bus.Handler
	}{
		{"the PCI address port", p.Ports(), portAddress, 4, (*addressPort)(h)},
		{"the PCI data port", p.Ports(), portData, 4, (*dataPort)(h)},
	} {
		if err := w.space.Map(w.base, w.size, w.h); err != nil {
			return nil, fmt.Errorf("map %s: %w", w.name, err)
		}
	}
	return h, nil
}

// Add puts a function into the next free slot and gives its base address registers addresses. The
// order of Add calls decides the slots, so it must be the same on both hosts of a pair.
func (h *Host) Add(f *Function) error {
	slot := 0
	for slot < slots && h.functions[slot] != nil {
		slot++
	}
	if slot == slots {
		return fmt.Errorf("no free PCI slot: a machine has at most %d devices", slots-2)
	}
	return h.addAt(slot, f)
}

func (h *Host) addAt(slot int, f *Function) error {
	for _, b := range f.bars {
		at := (h.next + b.size - 1) &^ (b.size - 1)
		if at+b.size > platform.PCIWindowEnd {
			return fmt.Errorf("no room for %d bytes in the PCI window", b.size)
		}
		b.set(f, at)
		h.next = at + b.size
	}
	if len(f.bars) > 0 {
		f.cfg[regCommand] |= commandMemory
	}
	f.host, f.slot = h, slot
	if f.cfg[regInterruptPin] != 0 {
		f.cfg[regInterruptLine] = byte(platform.PCIInterrupt(slot))
	}
	f.powerOn = f.cfg
	h.functions[slot] = f
	h.remap()
	return nil
}

// remap makes the MMIO space agree with the registers of all functions. Where two base address
// registers overlap, that of the lower slot wins: the outcome depends on the registers alone, not
// on the order in which they were written, so that a restored machine has the same map.
func (h *Host) remap() {
	type span struct {
		b    *bar
		base uint64
	}
	h.moveECAM(true)
	var accepted []span
	for _, f := range h.functions {
		if f == nil {
			continue
		}
	bars:
		for _, b := range f.bars {
			base, ok := b.decoded(f)
			if !ok {
				continue
			}
			for _, a := range accepted {
				if base < a.base+a.b.size && a.base < base+b.size {
					continue bars
				}
			}
			accepted = append(accepted, span{b, base})
		}
	}
	wanted := func(b *bar) (uint64, bool) {
		for _, a := range accepted {
			if a.b == b {
				return a.base, true
			}
		}
		return 0, false
	}
	for _, f := range h.functions {
		if f == nil {
			continue
		}
		for _, b := range f.bars {
			if base, ok := wanted(b); b.mapped && (!ok || base != b.at) {
				b.mapped = false
				h.p.MMIO().Unmap(b.at)
				b.moved(0, false)
			}
		}
	}
	h.moveECAM(false)
	for _, a := range accepted {
		if a.b.mapped {
			continue
		}
		// A window of somebody else in the way leaves the register without effect, as a real bus
		// would leave it undefined.
		if h.p.MMIO().Map(a.base, a.b.size, a.b.handler) == nil {
			a.b.at, a.b.mapped = a.base, true
			a.b.moved(a.base, true)
		}
	}
}

// setLine drives a slot's INTA#. Slots share GSIs; a GSI is high while any of its slots is.
func (h *Host) setLine(slot int, level bool) {
	if h.asserted[slot] == level {
		return
	}
	h.asserted[slot] = level
	h.driveLine(platform.PCIInterrupt(slot), false)
}

func (h *Host) driveLine(gsi int, force bool) {
	level := false
	for s, on := range h.asserted {
		level = level || on && platform.PCIInterrupt(s) == gsi
	}
	if force || h.level[gsi] != level {
		h.level[gsi] = level
		h.p.SetIRQ(gsi, level)
	}
}

// Activate drives all INTx lines to their levels: an interrupt controller's saved state does not
// include the levels of its inputs.
func (h *Host) Activate() error {
	for slot := range platform.PCIInterruptLines {
		h.driveLine(platform.PCIInterrupt(slot), true)
	}
	return nil
}

// Reset implements platform.Resetter for the host and its bridge. Each device resets its own function.
func (h *Host) Reset() {
	h.address, h.reset = 0, 0
	h.mch.Reset()
	h.lpc.Reset()
}

func (h *Host) read(bdf, off int, data []byte) {
	for i := range data {
		data[i] = 0xff
	}
	if f := h.function(bdf); f != nil {
		f.readConfig(off, data)
	}
}

func (h *Host) write(bdf, off int, data []byte) {
	if f := h.function(bdf); f != nil {
		f.writeConfig(off, data)
	}
}

// function finds bus<<8 | slot<<3 | function.
func (h *Host) function(bdf int) *Function {
	if bdf>>8 != 0 || bdf&7 != 0 {
		return nil
	}
	return h.functions[bdf>>3]
}

// StateID implements platform.Stateful.
func (h *Host) StateID() string { return "pci-host" }

// StateVersion implements platform.Stateful.
func (h *Host) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful. The functions' own registers are part of their devices'
// state; only the bridges' are saved here.
func (h *Host) SaveState(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.address)
	b = append(b, h.reset)
	return h.lpc.Save(h.mch.Save(b))
}

// RestoreState implements platform.Stateful.
func (h *Host) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	address, reset := r.U32(), r.U8()
	applyMCH, applyLPC := h.mch.Load(r), h.lpc.Load(r)
	if address&^addressWritable != 0 {
		r.Failf("PCI address register %#x", address)
	}
	if err := r.Done(); err != nil {
		return err
	}
	h.address, h.reset = address, reset
	applyMCH()
	applyLPC()
	return nil
}

// addressPort is ports 0xcf8 to 0xcfb. Only 32-bit accesses reach CONFIG_ADDRESS; a byte at 0xcf9 is
// the reset control register that chipsets have there (it is the FADT's RESET_REG as well).
type addressPort Host

func (a *addressPort) Read(off uint64, data []byte) {
	switch {
	case off == 0 && len(data) == 4:
		binary.LittleEndian.PutUint32(data, a.address)
	case off == 1 && len(data) == 1:
		data[0] = a.reset
	}
}

func (a *addressPort) Write(off uint64, data []byte) {
	switch {
	case off == 0 && len(data) == 4:
		a.address = binary.LittleEndian.Uint32(data) & addressWritable
	case off == 1 && len(data) == 1:
		if data[0]&resetCPU != 0 && a.reset&resetCPU == 0 {
			a.p.PowerEvent(platform.Reset)
		}
		a.reset = data[0] & (resetHard | resetCPU | 1<<3)
	}
}

// dataPort is ports 0xcfc to 0xcff.
type dataPort Host

func (d *dataPort) target(off uint64, n int) (bdf, reg int, ok bool) {
	reg = int(d.address&0xfc) + int(off)
	return int(d.address >> 8 & 0xffff), reg, d.address&addressEnable != 0 && n <= 4
}

func (d *dataPort) Read(off uint64, data []byte) {
	if bdf, reg, ok := d.target(off, len(data)); ok {
		(*Host)(d).read(bdf, reg, data)
	}
}

func (d *dataPort) Write(off uint64, data []byte) {
	if bdf, reg, ok := d.target(off, len(data)); ok {
		(*Host)(d).write(bdf, reg, data)
	}
}

// ecam is the memory-mapped configuration space: 4 KiB for each function.
type ecam Host

func (e *ecam) Read(off uint64, data []byte) {
	if reg := int(off & 0xfff); reg+len(data) <= 0x1000 {
		(*Host)(e).read(int(off>>12), reg, data)
	}
}

func (e *ecam) Write(off uint64, data []byte) {
	if reg := int(off & 0xfff); reg+len(data) <= 0x1000 {
		(*Host)(e).write(int(off>>12), reg, data)
	}
}
