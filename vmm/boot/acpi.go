package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// ACPI tables (ACPI specification 6.3, chapter 5). They tell of a machine that is in ACPI mode from the
// start (no SMI command port), with the fixed hardware of the ACPI 1.0 kind at platform.PMBase.

const (
	oemID      = "POLLUX"
	oemTableID = "POLLUXVM"
	creatorID  = "PLLX"

	headerSize = 36
	rsdpSize   = 36
	facsSize   = 64
	fadtSize   = 276

	checksumAt = 9 // in the common header
	fadtFACS   = 36
	fadtDSDT   = 40
	fadtXDSDT  = 140
	rsdpXSDT   = 24
)

// ACPIConfig is what the tables depend on.
type ACPIConfig struct {
	CPUs int
	ECAM uint64 // where the PCI Express configuration space lies
	// HighBase and HighEnd bound what PCI devices use above 4 GiB; equal: nothing.
	HighBase, HighEnd uint64
}

// ACPITables builds all tables.
func ACPITables(c ACPIConfig) *ACPISet {
	s := &ACPISet{}
	facsAt := s.add(facs(), ACPIAlign)
	dsdtAt := s.add(table("DSDT", 2, dsdt(c)), 16)
	fadtAt := s.add(fadt(uint64(facsAt), uint64(dsdtAt)), 16)
	s.Tables[fadtAt+checksumAt] = 0
	s.Pointers = append(s.Pointers, ACPIPointer{Offset: fadtAt + fadtFACS, Size: 4},
		ACPIPointer{Offset: fadtAt + fadtDSDT, Size: 4}, ACPIPointer{Offset: fadtAt + fadtXDSDT, Size: 8})
	s.Checksums = append(s.Checksums, ACPIChecksum{At: fadtAt + checksumAt, Start: fadtAt, Length: fadtSize})
	roots := []int{fadtAt, s.add(madt(c.CPUs), 16), s.add(mcfg(c.ECAM), 16)}

	var entries []byte
	for _, at := range roots {
		entries = binary.LittleEndian.AppendUint64(entries, uint64(at))
	}
	xsdt := table("XSDT", 1, entries)
	xsdtAt := s.add(xsdt, 16)
	s.Tables[xsdtAt+checksumAt] = 0
	for i := range roots {
		s.Pointers = append(s.Pointers, ACPIPointer{Offset: xsdtAt + headerSize + 8*i, Size: 8})
	}
	s.Checksums = append(s.Checksums, ACPIChecksum{At: xsdtAt + checksumAt, Start: xsdtAt, Length: len(xsdt)})

	s.RSDP = rsdp(uint64(xsdtAt))
	s.Pointers = append(s.Pointers, ACPIPointer{InRSDP: true, Offset: rsdpXSDT, Size: 8})
	s.Checksums = append(s.Checksums, ACPIChecksum{InRSDP: true, At: 8, Length: 20}, ACPIChecksum{InRSDP: true, At: 32, Length: rsdpSize})
	s.RSDP[8], s.RSDP[32] = 0, 0
	return s
}

// acpiTables is all tables as one block that goes to acpiBase; the RSDP is its first part.
func acpiTables(cpus int) ([]byte, error) {
	const rsdpRoom = (rsdpSize + ACPIAlign - 1) / ACPIAlign * ACPIAlign
	s := ACPITables(ACPIConfig{CPUs: cpus, ECAM: platform.ECAMBase})
	s.place(acpiBase + rsdpRoom)
	b := append(append(make([]byte, 0, rsdpRoom+len(s.Tables)), s.RSDP...), make([]byte, rsdpRoom-rsdpSize)...)
	b = append(b, s.Tables...)
	if len(b) > acpiEnd-acpiBase {
		return nil, fmt.Errorf("ACPI tables for %d vCPUs take %d bytes, there is room for %d", cpus, len(b), acpiEnd-acpiBase)
	}
	return b, nil
}

// table puts the common header (5.2.6) before a body.
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	b := []byte(signature)
	b = le.AppendUint32(b, uint32(headerSize+len(body)))
	b = append(b, revision, 0)
	b = append(b, oemID+oemTableID...)
	b = le.AppendUint32(b, 1) // OEM revision
	b = append(b, creatorID...)
	b = le.AppendUint32(b, 1) // creator revision
	b = append(b, body...)
	b[checksumAt] = checksum(b)
	return b
}

// checksum is the byte that makes the sum of all bytes zero.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}

// rsdp is the root pointer (5.2.5.3). There is no RSDT: revision 2 says that the XSDT counts.
func rsdp(xsdt uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, rsdpSize)
	copy(b, "RSD PTR ")
	copy(b[9:], oemID)
	b[15] = 2
	le.PutUint32(b[20:], rsdpSize)
	le.PutUint64(b[rsdpXSDT:], xsdt)
	b[8] = checksum(b[:20])
	b[32] = checksum(b)
	return b
}

// facs is the firmware control structure (5.2.10), which has no header of the common kind.
func facs() []byte {
	b := make([]byte, facsSize)
	copy(b, "FACS")
	binary.LittleEndian.PutUint32(b[4:], facsSize)
	b[32] = 2 // version
	return b
}

// fadt is the fixed description table (5.2.9), version 6.3.
func fadt(facs, dsdt uint64) []byte {
	const (
		pm1Event, pm1EventLen     = platform.PMBase + platform.PM1EventOffset, 4
		pm1Control, pm1ControlLen = platform.PMBase + platform.PM1ControlOffset, 2
		pmTimer, pmTimerLen       = platform.PMBase + platform.PMTimerOffset, 4
		gpe0, gpe0Len             = platform.PMBase + platform.GPE0Offset, 4

		profileEnterpriseServer = 4
		noCState                = 0xffff // a latency beyond what the specification allows: not there

		archLegacyDevices = 1 << 0
		archNoVGA         = 1 << 2

		flagWBINVD        = 1 << 0
		flagC1            = 1 << 2
		flagNoSleepButton = 1 << 5
		flagNoFixedRTC    = 1 << 6
		flagTimer32       = 1 << 8
		flagReset         = 1 << 10
	)
	le := binary.LittleEndian
	t := make([]byte, fadtSize)
	le.PutUint32(t[fadtFACS:], uint32(facs))
	le.PutUint32(t[fadtDSDT:], uint32(dsdt))
	t[45] = profileEnterpriseServer
	le.PutUint16(t[46:], platform.SCIIRQ)
	le.PutUint32(t[56:], pm1Event)
	le.PutUint32(t[64:], pm1Control)
	le.PutUint32(t[76:], pmTimer)
	le.PutUint32(t[80:], gpe0)
	t[88], t[89], t[91], t[92] = pm1EventLen, pm1ControlLen, pmTimerLen, gpe0Len
	le.PutUint16(t[96:], noCState)
	le.PutUint16(t[98:], noCState)
	t[108] = platform.RTCCenturyIndex
	le.PutUint16(t[109:], archLegacyDevices|archNoVGA)
	le.PutUint32(t[112:], flagWBINVD|flagC1|flagNoSleepButton|flagNoFixedRTC|flagTimer32|flagReset)
	ioAddress(t[116:], platform.ResetPort, 1)
	t[128] = platform.ResetValue
	t[131] = 3 // minor version
	le.PutUint64(t[fadtXDSDT:], dsdt)
	ioAddress(t[148:], pm1Event, pm1EventLen)
	ioAddress(t[172:], pm1Control, pm1ControlLen)
	ioAddress(t[208:], pmTimer, pmTimerLen)
	ioAddress(t[220:], gpe0, gpe0Len)
	return table("FACP", 6, t[headerSize:])
}

// ioAddress writes a generic address structure (5.2.3.2) for n bytes of ports. The access size stays
// undefined: a block of 4 bytes may be two registers of 2.
func ioAddress(b []byte, port uint64, n byte) {
	const systemIO = 1
	b[0], b[1] = systemIO, n*8
	binary.LittleEndian.PutUint64(b[4:], port)
}

// madt lists the interrupt controllers (5.2.12). Vectors and pins are KVM's: PIT on GSI 2, SCI level.
func madt(cpus int) []byte {
	const (
		pcatCompatible = 1 << 0 // there is a pair of 8259s too
		enabled        = 1 << 0
		activeHigh     = 1
		levelTriggered = 3 << 2
		allCPUs        = 0xff
		lint1          = 1
	)
	le := binary.LittleEndian
	b := le.AppendUint32(nil, platform.LAPICBase)
	b = le.AppendUint32(b, pcatCompatible)
	for i := range cpus {
		b = append(b, 0, 8, byte(i), byte(i))
		b = le.AppendUint32(b, enabled)
	}
	b = append(b, 1, 12, 0, 0) // IOAPIC 0
	b = le.AppendUint32(b, platform.IOAPICBase)
	b = le.AppendUint32(b, 0) // first GSI
	override := func(irq byte, gsi uint32, flags uint16) {
		b = append(b, 2, 10, 0, irq)
		b = le.AppendUint32(b, gsi)
		b = le.AppendUint16(b, flags)
	}
	override(0, 2, 0)
	override(platform.SCIIRQ, platform.SCIIRQ, activeHigh|levelTriggered)
	b = append(b, 4, 6, allCPUs, 0, 0, lint1) // LAPIC NMI
	return table("APIC", 4, b)
}

// mcfg tells where the PCI Express configuration space lies (PCI Firmware Specification 3.2, 4.1.2).
func mcfg(ecam uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 8)
	b = le.AppendUint64(b, ecam)
	b = le.AppendUint16(b, 0) // segment
	b = append(b, 0, lastBus)
	b = le.AppendUint32(b, 0)
	return table("MCFG", 1, b)
}
