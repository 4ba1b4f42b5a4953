package boot

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/pollux-ha/pollux/vmm/memory"
)

const (
	noteXenPhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h)
	maxProgramHeaders  = 128
	maxNoteBytes       = 1 << 20
)

// segment is a PT_LOAD program header.
type segment struct {
	addr    uint64 // physical
	memSize uint64
	data    []byte // the file's part; the rest is zero
}

func (s segment) end() uint64 { return s.addr + s.memSize }

// image is a parsed and checked ELF kernel.
type image struct {
	segments []segment // ascending, disjoint, not empty
	entry    uint32    // of the PVH note
}

// loadELF boots by the PVH note: 32-bit protected mode, EBX points to the start info.
func loadELF(ram *memory.RAM, p Params) (Entry, error) {
	img, err := parseELF(p.Kernel)
	if err != nil {
		return Entry{}, err
	}
	for _, s := range img.segments {
		if s.addr < kernelMin {
			return Entry{}, fmt.Errorf("%w: it wants to be loaded at %#x, below 1 MiB, where the boot information lies",
				ErrKernel, s.addr)
		}
		if s.end() > lowEnd(ram) {
			return Entry{}, fmt.Errorf("%w: the kernel occupies memory up to %d MiB, the guest has %d MiB below 4 GiB: give it more",
				ErrNoRoom, mib(s.end()), mib(lowEnd(ram)))
		}
	}
	rsdp, err := loadCommon(ram, p, maxCmdline)
	if err != nil {
		return Entry{}, err
	}
	for _, s := range img.segments {
		if err := writeSegment(ram, s); err != nil {
			return Entry{}, err
		}
	}
	kernelEnd := img.segments[len(img.segments)-1].end()
	initrd, err := placeInitrd(ram, p.Initrd, kernelEnd, lowEnd(ram))
	if err != nil {
		return Entry{}, err
	}
	if err := ram.Write(startInfoBase, startInfo(ram, p, rsdp, initrd)); err != nil {
		return Entry{}, fmt.Errorf("write the PVH start info: %w", err)
	}
	e, err := entry(ram, Protected32)
	if err != nil {
		return Entry{}, err
	}
	e.RIP = uint64(img.entry)
	e.RBX = startInfoBase
	return e, nil
}

func writeSegment(ram *memory.RAM, s segment) error {
	err := ram.Fill(s.addr, s.memSize, func(b []byte) error {
		clear(b[copy(b, s.data):])
		return nil
	})
	if err != nil {
		return fmt.Errorf("write the kernel's segment at %#x: %w", s.addr, err)
	}
	return nil
}

// startInfo builds struct hvm_start_info, version 1 (xen/include/public/arch-x86/hvm/start_info.h),
// followed by the module list and the memory map.
func startInfo(ram *memory.RAM, p Params, rsdp, initrd uint64) []byte {
	const (
		magic   = 0x336ec578
		size    = 56
		modSize = 32
		mapAddr = startInfoBase + size + modSize
	)
	le := binary.LittleEndian
	m := e820(ram)
	var modules uint32
	var modList uint64
	if initrd != 0 {
		modules, modList = 1, startInfoBase+size
	}
	b := le.AppendUint32(nil, magic)
	b = le.AppendUint32(b, 1) // version
	b = le.AppendUint32(b, 0) // flags
	b = le.AppendUint32(b, modules)
	b = le.AppendUint64(b, modList)
	b = le.AppendUint64(b, cmdlineBase)
	b = le.AppendUint64(b, rsdp)
	b = le.AppendUint64(b, mapAddr)
	b = le.AppendUint32(b, uint32(len(m)))
	b = le.AppendUint32(b, 0)
	// One struct hvm_modlist_entry; unused where there is no initrd.
	b = le.AppendUint64(b, initrd)
	b = le.AppendUint64(b, uint64(len(p.Initrd)))
	b = le.AppendUint64(b, 0) // its command line
	b = le.AppendUint64(b, 0)
	for _, e := range m {
		b = le.AppendUint64(b, e.addr)
		b = le.AppendUint64(b, e.size)
		b = le.AppendUint32(b, e.kind)
		b = le.AppendUint32(b, 0)
	}
	return b
}

// programHeader is the part of Elf32_Phdr and Elf64_Phdr that matters here.
type programHeader struct {
	kind                      uint32
	offset, addr, file, inMem uint64
}

// parseELF reads an x86 ELF executable of either class. It checks everything against the image's own
// bounds; what the RAM holds is the caller's matter.
func parseELF(k []byte) (*image, error) {
	headers, err := programHeaders(k)
	if err != nil {
		return nil, err
	}
	img := &image{}
	found := false
	for i, h := range headers {
		if h.kind != uint32(elf.PT_LOAD) && h.kind != uint32(elf.PT_NOTE) {
			continue
		}
		if h.offset > uint64(len(k)) || h.file > uint64(len(k))-h.offset {
			return nil, fmt.Errorf("%w: program header %d reaches behind the end of the file: it is truncated, copy it again", ErrKernel, i)
		}
		data := k[h.offset : h.offset+h.file]
		if h.kind == uint32(elf.PT_NOTE) {
			if e, ok := pvhEntry(data); ok && !found {
				img.entry, found = e, true
			}
			continue
		}
		if h.inMem == 0 {
			continue
		}
		if h.file > h.inMem || h.addr+h.inMem < h.addr {
			return nil, fmt.Errorf("%w: program header %d is inconsistent (%d bytes in the file, %d in memory at %#x)",
				ErrKernel, i, h.file, h.inMem, h.addr)
		}
		img.segments = append(img.segments, segment{addr: h.addr, memSize: h.inMem, data: data})
	}
	if len(img.segments) == 0 {
		return nil, fmt.Errorf("%w: the ELF image has nothing to load", ErrKernel)
	}
	slices.SortFunc(img.segments, func(a, b segment) int { return cmp.Compare(a.addr, b.addr) })
	for i, s := range img.segments[1:] {
		if s.addr < img.segments[i].end() {
			return nil, fmt.Errorf("%w: its segments at %#x and %#x overlap", ErrKernel, img.segments[i].addr, s.addr)
		}
	}
	if !found {
		return nil, fmt.Errorf("%w: the ELF image has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY): "+
			"build Linux with CONFIG_PVH=y, or give its bzImage", ErrKernel)
	}
	inside := slices.ContainsFunc(img.segments, func(s segment) bool {
		return uint64(img.entry) >= s.addr && uint64(img.entry) < s.end()
	})
	if !inside {
		return nil, fmt.Errorf("%w: its PVH entry point %#x lies outside of all segments", ErrKernel, img.entry)
	}
	return img, nil
}

func programHeaders(k []byte) ([]programHeader, error) {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrKernel}, a...)...)
	}
	if len(k) < 52 {
		return nil, bad("the ELF header is truncated")
	}
	le := binary.LittleEndian
	class := elf.Class(k[elf.EI_CLASS])
	if class != elf.ELFCLASS32 && class != elf.ELFCLASS64 || class == elf.ELFCLASS64 && len(k) < 64 {
		return nil, bad("the ELF header is damaged")
	}
	machine := elf.Machine(le.Uint16(k[18:]))
	if k[elf.EI_DATA] != byte(elf.ELFDATA2LSB) || machine != elf.EM_386 && machine != elf.EM_X86_64 {
		return nil, bad("the ELF image is for %v, not for x86", machine)
	}
	if t := elf.Type(le.Uint16(k[16:])); t != elf.ET_EXEC && t != elf.ET_DYN {
		return nil, bad("the ELF image is of type %v, not an executable", t)
	}
	var table uint64
	var size, n int
	if class == elf.ELFCLASS64 {
		table, size, n = le.Uint64(k[32:]), int(le.Uint16(k[54:])), int(le.Uint16(k[56:]))
	} else {
		table, size, n = uint64(le.Uint32(k[28:])), int(le.Uint16(k[42:])), int(le.Uint16(k[44:]))
	}
	if want := map[elf.Class]int{elf.ELFCLASS32: 32, elf.ELFCLASS64: 56}[class]; size != want && n != 0 {
		return nil, bad("ELF program headers of %d bytes, expected %d", size, want)
	}
	if n == 0 || n > maxProgramHeaders {
		return nil, bad("the ELF image has %d program headers, expected 1 to %d", n, maxProgramHeaders)
	}
	if table > uint64(len(k)) || uint64(n*size) > uint64(len(k))-table {
		return nil, bad("the ELF program headers lie behind the end of the file: it is truncated, copy it again")
	}
	hs := make([]programHeader, n)
	for i := range hs {
		b := k[table+uint64(i*size):]
		if class == elf.ELFCLASS64 {
			hs[i] = programHeader{le.Uint32(b), le.Uint64(b[8:]), le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:])}
		} else {
			hs[i] = programHeader{le.Uint32(b), uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[12:])), uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:]))}
		}
	}
	return hs, nil
}

// pvhEntry looks for the PVH note in the content of a PT_NOTE segment.
func pvhEntry(b []byte) (uint32, bool) {
	le := binary.LittleEndian
	if len(b) > maxNoteBytes {
		return 0, false
	}
	for len(b) >= 12 {
		nameSize, descSize, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[12:]
		descAt := (nameSize + 3) &^ 3
		next := descAt + (descSize+3)&^3
		if descAt+descSize > uint64(len(b)) {
			return 0, false
		}
		if kind == noteXenPhys32Entry && nameSize == 4 && string(b[:4]) == "Xen\x00" {
			switch desc := b[descAt : descAt+descSize]; descSize {
			case 4:
				return le.Uint32(desc), true
			case 8:
				v := le.Uint64(desc)
				return uint32(v), v>>32 == 0
			}
		}
		b = b[min(next, uint64(len(b))):]
	}
	return 0, false
}
