package pci

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// The host bridge is that of Intel's Q35 chipset and the LPC bridge that of its ICH9: a pair that every
// firmware and every guest knows. Sources: Intel 3 Series Express Chipset Family datasheet (316966), section 5.1;
// Intel I/O Controller Hub 9 Family datasheet (316972), sections 13.1 and 13.8.
const (
	vendorIntel  = 0x8086
	deviceMCH    = 0x29c0
	deviceLPC    = 0x2918
	classHost    = 0x060000
	classISA     = 0x060100
	lpcSlot      = 31
	mchPCIEXBAR  = 0x60 // 8 bytes: where the PCI Express configuration space lies
	pciexEnable  = 1 << 0
	pciexBase    = 0xf_f000_0000 // the other bits stand for lengths other than 256 MiB, which are not there
	lpcPMBase    = 0x40          // 4 bytes: the ports of the power management block
	lpcACPI      = 0x44          // ACPI_CNTL
	acpiEnable   = 1 << 7        // the block is decoded; SCI on IRQ 9
	lpcPIRQ      = 0x60          // A to D; E to H are at 0x68
	lpcPIRQ2     = 0x68
	pirqDisabled = 0x80
	lpcRCBA      = 0xf0 // 4 bytes: the root complex's registers, of which there are none
)

// newBridges makes the two and puts them into their slots. The power management block stays where
// platform.PMBase has it and can't be moved: firmware finds it enabled and leaves it alone.
func (h *Host) newBridges() error {
	le := binary.LittleEndian
	mch := NewFunction(Config{Vendor: vendorIntel, Device: deviceMCH, Class: classHost})
	le.PutUint64(mch.cfg[mchPCIEXBAR:], platform.ECAMBase|pciexEnable)
	le.PutUint64(mch.writable[mchPCIEXBAR:], pciexBase|pciexEnable)

	lpc := NewFunction(Config{Vendor: vendorIntel, Device: deviceLPC, Revision: 2, Class: classISA})
	le.PutUint32(lpc.cfg[lpcPMBase:], platform.PMBase|1) // bit 0: I/O space
	lpc.cfg[lpcACPI] = acpiEnable
	for i := range 4 {
		for _, reg := range []int{lpcPIRQ + i, lpcPIRQ2 + i} {
			lpc.cfg[reg], lpc.writable[reg] = pirqDisabled, 0x8f
		}
	}
	le.PutUint32(lpc.writable[lpcRCBA:], 0xffff_c001)

	h.mch, h.lpc = mch, lpc
	if err := h.addAt(0, mch); err != nil {
		return fmt.Errorf("add the host bridge: %w", err)
	}
	if err := h.addAt(lpcSlot, lpc); err != nil {
		return fmt.Errorf("add the LPC bridge: %w", err)
	}
	return nil
}

// ECAM is where the guest's firmware has put the PCI Express configuration space; ok is false while it is
// switched off. The device lock is held.
func (h *Host) ECAM() (base uint64, ok bool) {
	r := binary.LittleEndian.Uint64(h.mch.cfg[mchPCIEXBAR:])
	base = r & pciexBase
	// Elsewhere there may be RAM.
	ok = r&pciexEnable != 0 && base >= platform.PCIMemoryBase && base+platform.ECAMSize <= platform.PCIMemoryEnd
	return base, ok
}

// HighWindow is the stretch above RAM and 4 GiB that holds all base address registers which the guest has put
// there, decoded or not, in whole units of 1 GiB; both are 0 where there are none. Firmware switches decoding on
// and off while it reads the tables that say this. The device lock is held.
func (h *Host) HighWindow() (base, end uint64) {
	const unit = 1 << 30
	for _, f := range h.functions {
		if f == nil {
			continue
		}
		for _, b := range f.bars {
			if at := b.base(f); at >= h.highBase && h.allows(at, b.size) {
				if first := at &^ (unit - 1); end == 0 || first < base {
					base = first
				}
				end = max(end, (at+b.size+unit-1)&^(unit-1))
			}
		}
	}
	return base, end
}

// allows says whether a base address register may have its window there. At any other address there may be
// RAM or a device of the platform, and the register has no effect.
func (h *Host) allows(base, size uint64) bool {
	if base >= h.highBase {
		return size <= ^uint64(0)-base
	}
	if base < platform.PCIMemoryBase || base >= platform.PCIMemoryEnd || size > platform.PCIMemoryEnd-base {
		return false
	}
	ecam, ok := h.ECAM()
	return !ok || base+size <= ecam || base >= ecam+platform.ECAMSize
}

// moveECAM makes the MMIO space agree with the bridge's register: first with away set, before windows are
// moved, then without, before they are mapped.
func (h *Host) moveECAM(away bool) {
	base, ok := h.ECAM()
	if away {
		if h.ecamMapped && (!ok || base != h.ecamAt) {
			h.p.MMIO().Unmap(h.ecamAt)
			h.ecamMapped = false
		}
		return
	}
	// A window of somebody else in the way leaves the register without effect.
	if ok && !h.ecamMapped && h.p.MMIO().Map(base, platform.ECAMSize, (*ecam)(h)) == nil {
		h.ecamAt, h.ecamMapped = base, true
	}
}
