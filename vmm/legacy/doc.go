// Package legacy models what a PC has besides PCI: a 16550A at COM1, the CMOS with its clock, what
// is left of the keyboard controller, and the ACPI power management block.
//
// Sources: National Semiconductor PC16550D data sheet (June 1995); Motorola MC146818A data sheet;
// ACPI Specification 6.5, section 4.8 (fixed hardware). PIC, IOAPIC and PIT are KVM's.
//
// Everything here is guarded by the device lock, constructors included.
package legacy

import "github.com/pollux-ha/pollux/vmm/bus"

// ports makes a bus.Handler of two functions for byte-wide registers. Wider accesses are split into
// bytes, as an ISA bridge does.
type ports struct {
	read  func(reg int) byte
	write func(reg int, v byte)
}

var _ bus.Handler = ports{}

func (p ports) Read(off uint64, data []byte) {
	for i := range data {
		data[i] = p.read(int(off) + i)
	}
}

func (p ports) Write(off uint64, data []byte) {
	for i, v := range data {
		p.write(int(off)+i, v)
	}
}
