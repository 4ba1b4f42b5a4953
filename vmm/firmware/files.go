package firmware

import (
	"encoding/binary"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// Machine is what firmware is told of the machine.
type Machine struct {
	RAM  *memory.RAM
	CPUs int
	// ECAM says where the guest's firmware has put the PCI Express configuration space. The tables follow
	// it: firmware asks for them after it has set up the chipset.
	ECAM func() (base uint64, ok bool)
	// HighWindow says what PCI devices use above 4 GiB.
	HighWindow func() (base, end uint64)
}

// Files are the items that OVMF looks for.
func (m Machine) Files() []File {
	fixed := func(name string, data []byte) File { return File{name, func() []byte { return data }} }
	tables := func() *boot.ACPISet {
		base, ok := m.ECAM()
		if !ok {
			base = platform.ECAMBase
		}
		c := boot.ACPIConfig{CPUs: m.CPUs, ECAM: base}
		c.HighBase, c.HighEnd = m.HighWindow()
		return boot.ACPITables(c)
	}
	return []File{
		fixed("etc/e820", m.e820()),
		// S0 and S5; the type of S5 is that of \_S5. Firmware that finds S3 missing reserves nothing for it.
		fixed("etc/system-states", []byte{systemState, 0, 0, 0, 0, systemState | platform.SleepTypeS5}),
		{fileRSDP, func() []byte { return tables().RSDP }},
		{fileTables, func() []byte { return tables().Tables }},
		{fileLoader, func() []byte { return loaderScript(tables()) }},
	}
}

const systemState = 1 << 7 // the state is there

// e820 is the RAM: address u64, length u64, type u32 each.
func (m Machine) e820() []byte {
	const ram = 1
	var b []byte
	for _, r := range m.RAM.Regions() {
		b = binary.LittleEndian.AppendUint64(b, r.GPA)
		b = binary.LittleEndian.AppendUint64(b, r.Size)
		b = binary.LittleEndian.AppendUint32(b, ram)
	}
	return b
}
