package boot

import (
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// lastBus is the number of the last PCI bus. Bus 0 is all there is, and Linux looks into every slot of every
// bus that the tables name.
const lastBus = 0

// dsdt is the definition block: what the machine has that can't be found by looking. There is no keyboard
// to speak of, so its controller is not declared and nobody waits for it.
func dsdt(c ACPIConfig) []byte {
	off := integer(platform.SleepTypeS5)
	return concat(
		named(`\_S5`, packageOf(off, off, integer(0), integer(0))),
		scope(`\_SB`, append(processors(c.CPUs), hostBridge(c), motherboard(c.ECAM), panicPort(), generation())...),
		// The handler of the event by which a changed generation ID is told: an edge, nothing to ask.
		scope(`\_GPE`, method(fmt.Sprintf("_E%02X", platform.GPEGeneration), 0,
			op(amlNotify, nameString(`\_SB.VGEN`), integer(0x80)))),
	)
}

func processors(n int) [][]byte {
	var ps [][]byte
	for i := range n {
		ps = append(ps, device(fmt.Sprintf("CP%02X", i),
			named("_HID", text("ACPI0007")),
			named("_UID", integer(uint32(i)))))
	}
	return ps
}

func hostBridge(c ACPIConfig) []byte {
	const pciConfig = 0xcf8
	resource := [][]byte{
		wordSpace(spaceBus, 0, 0, lastBus),
		ports(pciConfig, 8),
		wordSpace(spaceIO, spaceEntireRange, 0, pciConfig-1),
		wordSpace(spaceIO, spaceEntireRange, pciConfig+8, 0xffff),
	}
	// Memory: what the configuration space leaves of it.
	resource = append(resource, memoryWindow(platform.PCIMemoryBase, min(c.ECAM, platform.PCIMemoryEnd))...)
	resource = append(resource, memoryWindow(c.ECAM+platform.ECAMSize, platform.PCIMemoryEnd)...)
	if c.HighBase < c.HighEnd {
		resource = append(resource, qwordMemory(c.HighBase, c.HighEnd-1))
	}
	return device("PCI0",
		named("_HID", eisaID("PNP0A08")),
		named("_CID", eisaID("PNP0A03")),
		named("_UID", integer(0)),
		named("_SEG", integer(0)),
		named("_BBN", integer(0)),
		named("_CRS", resources(resource...)),
		named("_PRT", interruptPins()),
		osc(),
		device("COM1",
			named("_HID", eisaID("PNP0501")),
			named("_UID", integer(1)),
			named("_CRS", resources(ports(platform.SerialBase, 8), irq(platform.SerialIRQ)))),
		device("RTC",
			named("_HID", eisaID("PNP0B00")),
			named("_CRS", resources(ports(0x70, 2), irq(8)))),
	)
}

func memoryWindow(base, end uint64) [][]byte {
	if base >= end {
		return nil
	}
	return [][]byte{dwordMemory(uint32(base), uint32(end-1))}
}

// interruptPins is the routing table (6.2.13): INTA# of each slot, hard-wired to the IOAPIC. Devices use the
// pin only for drivers that can't do MSI-X.
func interruptPins() []byte {
	const slots, allFunctions, intA = 32, 0xffff, 0
	var entries [][]byte
	for slot := range slots {
		entries = append(entries, packageOf(
			integer(uint32(slot)<<16|allFunctions), integer(intA), integer(0), integer(uint32(platform.PCIInterrupt(slot)))))
	}
	return packageOf(entries...)
}

// osc answers what of PCI Express the operating system may control (PCI Firmware Specification 3.2,
// 4.5): the capability structures, and nothing else, for there is no hot-plug slot and no root port.
func osc() []byte {
	const (
		unrecognizedUUID = 1 << 2
		pcieCapability   = 1 << 4
	)
	pciUUID := []byte{ // 33db4d5b-1ff7-401c-9657-7441c03dd766
		0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66}
	arg3 := []byte{amlArg3}
	status, control := nameString("CDW1"), nameString("CDW3")
	return method("_OSC", 4,
		op(amlCreateDWordField, arg3, integer(0), status),
		pkg([]byte{amlIf}, op(amlEqual, []byte{amlArg0}, buffer(pciUUID)),
			op(amlCreateDWordField, arg3, integer(8), control),
			op(amlAnd, control, integer(pcieCapability), control)),
		pkg([]byte{amlElse}, op(amlOr, status, integer(unrecognizedUUID), status)),
		op(amlReturn, arg3))
}

// motherboard reserves the PCI Express configuration space, which no BAR may take.
func motherboard(ecam uint64) []byte {
	return device("MBRD",
		named("_HID", eisaID("PNP0C02")),
		named("_UID", integer(0)),
		named("_CRS", resources(memory32(uint32(ecam), platform.ECAMSize))))
}

// panicPort is pvpanic (QEMU, docs/specs/pvpanic.rst).
func panicPort() []byte {
	return device("PVPN",
		named("_HID", text("QEMU0001")),
		named("_CRS", resources(ports(platform.PanicPort, 1))))
}

// generation tells where the VM generation ID lies (Microsoft, Virtual Machine Generation ID, 2012: _CID and
// _DDN are given there; Linux looks for the first name, which is short enough for ACPI).
func generation() []byte {
	return device("VGEN",
		named("_HID", text("PLLX0001")),
		named("_CID", packageOf(text("VMGENCTR"), text("VM_Gen_Counter"))),
		named("_DDN", text("VM_Gen_Counter")),
		named("ADDR", packageOf(integer(platform.GenerationPage), integer(0))))
}
