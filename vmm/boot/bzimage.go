package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// Offsets of the setup header in a bzImage and in the zero page (Documentation/arch/x86/boot.rst).
const (
	hdrSetupSects     = 0x1f1
	hdrBootFlag       = 0x1fe
	hdrJumpOffset     = 0x201 // the header ends at 0x202 + this byte
	hdrMagic          = 0x202 // "HdrS"
	hdrVersion        = 0x206
	hdrLoader         = 0x210
	hdrLoadFlags      = 0x211
	hdrRamdiskImage   = 0x218
	hdrRamdiskSize    = 0x21c
	hdrCmdline        = 0x228
	hdrInitrdMax      = 0x22c
	hdrXLoadFlags     = 0x236
	hdrCmdlineSize    = 0x238
	hdrPrefAddress    = 0x258
	hdrInitSize       = 0x260
	hdrEnd            = 0x268 // of protocol 2.12
	hdrMaxEnd         = 0x290 // edd_mbr_sig_buffer follows in the zero page
	zpRSDP            = 0x070
	zpE820Entries     = 0x1e8
	zpE820Table       = 0x2d0
	zpE820Max         = 128
	loaderUndefined   = 0xff
	loadedHigh        = 1 << 0
	xlfKernel64       = 1 << 0
	versionMin        = 0x020c // the first with xloadflags
	startupOffset     = 0x200  // of the 64-bit entry in the protected-mode kernel
	setupSectsDefault = 4
)

func isBzImage(k []byte) bool {
	return len(k) >= hdrMagic+4 && binary.LittleEndian.Uint16(k[hdrBootFlag:]) == 0xaa55 &&
		string(k[hdrMagic:hdrMagic+4]) == "HdrS"
}

// setupHeader is what the loader needs from a bzImage.
type setupHeader struct {
	raw        []byte // the header itself, from hdrSetupSects on
	payload    []byte // the protected-mode kernel
	loadAddr   uint64
	initSize   uint64 // bytes from loadAddr that the kernel uses before it reads the memory map
	initrdMax  uint64 // the highest address that an initrd may occupy
	cmdlineMax int    // without the NUL
}

func parseBzImage(k []byte) (*setupHeader, error) {
	le := binary.LittleEndian
	if !isBzImage(k) {
		return nil, fmt.Errorf("%w: no Linux setup header", ErrKernel)
	}
	if len(k) < hdrEnd {
		return nil, fmt.Errorf("%w: the bzImage is truncated, copy it again", ErrKernel)
	}
	if v := le.Uint16(k[hdrVersion:]); v < versionMin {
		return nil, fmt.Errorf("%w: boot protocol %d.%02d; Pollux needs 2.12 (Linux 3.8) or newer", ErrKernel, v>>8, v&0xff)
	}
	if le.Uint16(k[hdrXLoadFlags:])&xlfKernel64 == 0 {
		return nil, fmt.Errorf("%w: it has no 64-bit entry point; give a kernel for x86-64", ErrKernel)
	}
	if k[hdrLoadFlags]&loadedHigh == 0 {
		return nil, fmt.Errorf("%w: it is a zImage that loads below 1 MiB; give a bzImage", ErrKernel)
	}
	end := hdrMagic + int(k[hdrJumpOffset])
	if end < hdrEnd || end > hdrMaxEnd || end > len(k) {
		return nil, fmt.Errorf("%w: the setup header ends at %#x, expected between %#x and %#x", ErrKernel, end, hdrEnd, hdrMaxEnd)
	}
	sects := int(k[hdrSetupSects])
	if sects == 0 {
		sects = setupSectsDefault
	}
	start := (sects + 1) * 512
	if start+startupOffset >= len(k) {
		return nil, fmt.Errorf("%w: the bzImage ends within its setup code: it is truncated, copy it again", ErrKernel)
	}
	h := &setupHeader{
		raw:        k[hdrSetupSects:end],
		payload:    k[start:],
		loadAddr:   le.Uint64(k[hdrPrefAddress:]),
		initSize:   uint64(le.Uint32(k[hdrInitSize:])),
		initrdMax:  uint64(le.Uint32(k[hdrInitrdMax:])),
		cmdlineMax: int(min(le.Uint32(k[hdrCmdlineSize:]), maxCmdline)),
	}
	// The size that the header gives counts in 16 bytes; anything behind it (a signature) is not loaded.
	// A file that is shorter was cut off.
	if size := uint64(le.Uint32(k[0x1f4:])) * 16; size > uint64(len(h.payload))+15 {
		return nil, fmt.Errorf("%w: the bzImage has %d bytes of code, its header says %d: it is truncated, copy it again",
			ErrKernel, len(h.payload), size)
	}
	if h.loadAddr < kernelMin || h.loadAddr >= memory.LowLimit {
		return nil, fmt.Errorf("%w: its preferred load address %#x is not between 1 MiB and 3 GiB", ErrKernel, h.loadAddr)
	}
	return h, nil
}

// loadBzImage boots by the 64-bit boot protocol: long mode, RSI points to the zero page. The kernel is
// loaded where it prefers to be; it decompresses itself to there in any case.
func loadBzImage(ram *memory.RAM, p Params) (Entry, error) {
	h, err := parseBzImage(p.Kernel)
	if err != nil {
		return Entry{}, err
	}
	need := h.loadAddr + max(h.initSize, uint64(len(h.payload)))
	if need > lowEnd(ram) {
		return Entry{}, fmt.Errorf("%w: this kernel needs at least %d MiB to start, the guest has %d MiB below 4 GiB: give it more",
			ErrNoRoom, mib(need), mib(lowEnd(ram)))
	}
	rsdp, err := loadCommon(ram, p, h.cmdlineMax)
	if err != nil {
		return Entry{}, err
	}
	if err := ram.Write(h.loadAddr, h.payload); err != nil {
		return Entry{}, fmt.Errorf("write the kernel: %w", err)
	}
	initrd, err := placeInitrd(ram, p.Initrd, need, h.initrdMax+1)
	if err != nil {
		return Entry{}, err
	}
	if err := ram.Write(zeroPageBase, zeroPage(ram, h, rsdp, initrd, len(p.Initrd))); err != nil {
		return Entry{}, fmt.Errorf("write the zero page: %w", err)
	}
	e, err := entry(ram, Long64)
	if err != nil {
		return Entry{}, err
	}
	if e.CR3, err = identityMap(ram); err != nil {
		return Entry{}, err
	}
	e.CR0 |= cr0PG
	e.CR4 = cr4PAE
	e.EFER = eferLME | eferLMA
	e.RIP = h.loadAddr + startupOffset
	e.RSI = zeroPageBase
	return e, nil
}

// zeroPage builds struct boot_params.
func zeroPage(ram *memory.RAM, h *setupHeader, rsdp, initrd uint64, initrdSize int) []byte {
	le := binary.LittleEndian
	z := make([]byte, memory.PageSize)
	copy(z[hdrSetupSects:], h.raw)
	z[hdrLoader] = loaderUndefined
	le.PutUint32(z[hdrCmdline:], cmdlineBase)
	if initrd != 0 {
		le.PutUint32(z[hdrRamdiskImage:], uint32(initrd))
		le.PutUint32(z[hdrRamdiskSize:], uint32(initrdSize))
	}
	le.PutUint64(z[zpRSDP:], rsdp)
	m := e820(ram)
	z[zpE820Entries] = byte(len(m))
	for i, e := range m[:min(len(m), zpE820Max)] {
		at := zpE820Table + 20*i
		le.PutUint64(z[at:], e.addr)
		le.PutUint64(z[at+8:], e.size)
		le.PutUint32(z[at+16:], e.kind)
	}
	return z
}
