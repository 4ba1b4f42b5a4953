package boot

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// Where things lie below 1 MiB, guest-physical. Kernels go above.
const (
	biosDataEBDA   = 0x40E // u16: segment of the extended BIOS data area
	biosDataMemory = 0x413 // u16: KiB of memory below it

	gdtBase       = 0x1000
	startInfoBase = 0x2000 // PVH start info, module list and memory map, one page
	zeroPageBase  = 0x7000 // Linux boot_params, one page
	stackTop      = 0x8ff0
	pageTableBase = 0x9000 // PML4, PDPT and four page directories: 6 pages
	cmdlineBase   = 0x20000
	ebdaBase      = 0x9_FC00 // from here to 1 MiB belongs to the firmware
	acpiBase      = 0xE_0000 // RSDP first: where kernels that were not told look for it
	acpiEnd       = platform.GenerationPage
	kernelMin     = 0x10_0000

	// maxCmdline is the longest command line in bytes without its NUL; x86 Linux keeps 2,048.
	maxCmdline = 2047
)

// E820 types, as in the firmware call of that name. PVH's memory map uses the same.
const (
	e820RAM      = 1
	e820Reserved = 2
)

type e820Entry struct {
	addr, size uint64
	kind       uint32
}

// e820 is the memory map: the RAM as it is, and as reserved what the kernel must not give to PCI
// devices. It is in ascending order and free of overlaps.
func e820(ram *memory.RAM) []e820Entry {
	low := lowEnd(ram)
	m := []e820Entry{
		{0, ebdaBase, e820RAM},
		{ebdaBase, kernelMin - ebdaBase, e820Reserved},
	}
	if low > kernelMin {
		m = append(m, e820Entry{kernelMin, low - kernelMin, e820RAM})
	}
	m = append(m,
		e820Entry{platform.ECAMBase, platform.ECAMSize, e820Reserved},
		// KVM's identity map and task-state pages (VT-x without unrestricted guest mode).
		e820Entry{platform.IdentityMap, platform.TSSBase + 3*memory.PageSize - platform.IdentityMap, e820Reserved})
	for _, r := range ram.Regions()[1:] {
		m = append(m, e820Entry{r.GPA, r.Size, e820RAM})
	}
	return m
}

// lowEnd is the end of the RAM that begins at address 0.
func lowEnd(ram *memory.RAM) uint64 { return ram.Regions()[0].Size }

// loadCommon writes what both boot ways share and returns the address of the RSDP.
func loadCommon(ram *memory.RAM, p Params, cmdlineMax int) (rsdp uint64, err error) {
	if lowEnd(ram) < kernelMin {
		return 0, fmt.Errorf("%w: %d bytes of memory, a PC has at least 1 MiB", ErrNoRoom, ram.Size())
	}
	if len(p.Cmdline) > cmdlineMax {
		return 0, fmt.Errorf("%w: the kernel command line has %d bytes, this kernel takes at most %d: shorten it",
			ErrNoRoom, len(p.Cmdline), cmdlineMax)
	}
	if strings.IndexByte(p.Cmdline, 0) >= 0 {
		return 0, fmt.Errorf("the kernel command line holds a NUL byte; remove it")
	}
	var ebda, kib [2]byte
	binary.LittleEndian.PutUint16(ebda[:], ebdaBase>>4)
	binary.LittleEndian.PutUint16(kib[:], ebdaBase>>10)
	tables, err := acpiTables(p.CPUs)
	if err != nil {
		return 0, err
	}
	for _, w := range []struct {
		addr uint64
		data []byte
	}{
		{biosDataEBDA, ebda[:]},
		{biosDataMemory, kib[:]},
		{cmdlineBase, append([]byte(p.Cmdline), 0)},
		{acpiBase, tables},
	} {
		if err := ram.Write(w.addr, w.data); err != nil {
			return 0, fmt.Errorf("write boot data: %w", err)
		}
	}
	return acpiBase, nil
}

// placeInitrd writes the initrd as high as it goes below limit (exclusive) and the end of low RAM, and
// above floor, the end of the kernel. It returns its address, 0 where there is none.
func placeInitrd(ram *memory.RAM, initrd []byte, floor, limit uint64) (uint64, error) {
	if len(initrd) == 0 {
		return 0, nil
	}
	top := min(lowEnd(ram), limit)
	size := uint64(len(initrd))
	if size > top || (top-size)&^(memory.PageSize-1) < floor {
		return 0, fmt.Errorf("%w: initrd of %d MiB beside a kernel that needs the first %d MiB of %d MiB: "+
			"give the guest more memory or a smaller initrd",
			ErrNoRoom, mib(size), mib(floor), mib(top))
	}
	addr := (top - size) &^ (memory.PageSize - 1)
	if err := ram.Write(addr, initrd); err != nil {
		return 0, fmt.Errorf("write the initrd: %w", err)
	}
	return addr, nil
}

// mib rounds bytes up to MiB, for messages.
func mib(n uint64) uint64 { return n>>20 + min(1, n&(1<<20-1)) }
