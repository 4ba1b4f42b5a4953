package vmm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// ErrNotHeld says that a guest runs: only one that stands still after its death can be dumped.
var ErrNotHeld = errors.New("the guest runs")

// dumpPiece is how much of a dump is written at once, in pages.
const dumpPiece = 256

// Dump writes the memory and the vCPUs' registers of a guest that stands still after a power event as an
// ELF core file, as crash and gdb read it: a PT_LOAD with its guest-physical address for each stretch of RAM,
// and for each vCPU an NT_PRSTATUS note and one of the kind that QEMU writes, which has the control registers.
// Memory that the host does not keep is left out of the file as a hole. A reset waits for the dump; ErrStopped
// says that the machine was stopped meanwhile.
func (m *Machine) Dump(f *os.File) error {
	m.resets.Lock()
	defer m.resets.Unlock()
	g := &m.gate
	g.Lock()
	switch {
	case g.closing || !g.started:
		g.Unlock()
		return ErrStopped
	case g.power == 0:
		g.Unlock()
		return ErrNotHeld
	}
	run := g.runs
	g.Unlock()
	var notes []byte
	err := m.exclusive(run, func() (err error) {
		notes, err = m.dumpNotes()
		return err
	})
	if err != nil {
		return err
	}
	head, offsets := dumpHeader(m.ram.Regions(), notes)
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	for page := 0; page < m.ram.Pages(); {
		// Nobody frees or overwrites the memory in between.
		err := m.exclusive(run, func() (err error) {
			page, err = m.dumpPages(f, page, offsets)
			return err
		})
		if err != nil {
			return err
		}
	}
	last := len(offsets) - 1
	if err := f.Truncate(int64(offsets[last] + m.ram.Regions()[last].Size)); err != nil {
		return err
	}
	return f.Sync()
}

// dumpPages writes the next few pages from an index on and returns where to go on.
func (m *Machine) dumpPages(f *os.File, from int, offsets []uint64) (next int, err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			err = fmt.Errorf("dump the pages from %d on: %w", from, ErrMemoryFault)
		}
	}()
	start, end, err := m.ram.Populated(from)
	if err != nil || start == end {
		return m.ram.Pages(), err
	}
	end = min(end, start+dumpPiece)
	for i, r := range m.ram.Regions() {
		first := int(r.Offset / memory.PageSize)
		if start < first || start >= first+int(r.Size/memory.PageSize) {
			continue
		}
		end = min(end, first+int(r.Size/memory.PageSize))
		at := offsets[i] + uint64(start-first)*memory.PageSize
		_, err := f.WriteAt(m.ram.Bytes()[start*memory.PageSize:end*memory.PageSize], int64(at))
		return end, err
	}
	return m.ram.Pages(), nil
}

// dumpHeader is the beginning of the file, up to the first stretch of RAM, and where the stretches lie.
func dumpHeader(regions []memory.Region, notes []byte) (head []byte, offsets []uint64) {
	const headerSize, programSize = 64, 56
	programs := 1 + len(regions)
	noteAt := uint64(headerSize + programs*programSize)
	at := (noteAt + uint64(len(notes)) + memory.PageSize - 1) &^ (memory.PageSize - 1)
	h := elf.Header64{
		Type: uint16(elf.ET_CORE), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: headerSize, Ehsize: headerSize, Phentsize: programSize, Phnum: uint16(programs),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	list := []elf.Prog64{{Type: uint32(elf.PT_NOTE), Off: noteAt, Filesz: uint64(len(notes)), Memsz: uint64(len(notes))}}
	for _, r := range regions {
		offsets = append(offsets, at)
		list = append(list, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: at, Paddr: r.GPA, Filesz: r.Size, Memsz: r.Size})
		at += r.Size
	}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h) // into memory: it can't fail
	_ = binary.Write(&b, binary.LittleEndian, list)
	b.Write(notes)
	return b.Bytes(), offsets
}

func (m *Machine) dumpNotes() ([]byte, error) {
	var notes []byte
	for _, v := range m.vcpus {
		var r kvm.Regs
		var s kvm.Sregs
		if err := errors.Join(v.kvm.Regs(&r), v.kvm.Sregs(&s)); err != nil {
			return nil, err
		}
		gs, err := getMSR(v.kvm, msrKernelGSBase)
		if err != nil {
			return nil, err
		}
		notes = appendNote(notes, "CORE", uint32(elf.NT_PRSTATUS), prstatus(v.id, &r, &s))
		notes = appendNote(notes, "QEMU", 0, qemuState(&r, &s, gs))
	}
	return notes, nil
}

const msrKernelGSBase = 0xc000_0102

func appendNote(b []byte, name string, kind uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	b = append(b, name...)
	b = append(b, make([]byte, 4-len(name)%4)...) // its NUL, and up to four bytes
	return append(b, desc...)                     // a multiple of four
}

// prstatus is struct elf_prstatus of x86-64: 112 bytes about a process, with its ID, then the registers in
// the order of struct user_regs_struct, then whether there are FPU registers.
func prstatus(id int, r *kvm.Regs, s *kvm.Sregs) []byte {
	le := binary.LittleEndian
	b := make([]byte, 112)
	le.PutUint32(b[32:], uint32(id+1))
	for _, v := range []uint64{
		r.R15, r.R14, r.R13, r.R12, r.RBP, r.RBX, r.R11, r.R10, r.R9, r.R8, r.RAX, r.RCX, r.RDX, r.RSI, r.RDI,
		^uint64(0), // orig_rax: in no system call
		r.RIP, uint64(s.CS.Selector), r.RFLAGS, r.RSP, uint64(s.SS.Selector), s.FS.Base, s.GS.Base,
		uint64(s.DS.Selector), uint64(s.ES.Selector), uint64(s.FS.Selector), uint64(s.GS.Selector),
	} {
		b = le.AppendUint64(b, v)
	}
	return append(b, make([]byte, 8)...)
}

// qemuState is version 1 of the note by which crash finds a kernel that was moved at its start: general
// registers, segments with their descriptors' flags, control registers, the kernel's GS base.
func qemuState(r *kvm.Regs, s *kvm.Sregs, kernelGS uint64) []byte {
	const size = 440
	le := binary.LittleEndian
	b := le.AppendUint32(make([]byte, 0, size), 1)
	b = le.AppendUint32(b, size)
	for _, v := range []uint64{
		r.RAX, r.RBX, r.RCX, r.RDX, r.RSI, r.RDI, r.RSP, r.RBP, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15, r.RIP, r.RFLAGS,
	} {
		b = le.AppendUint64(b, v)
	}
	segment := func(selector, limit, flags uint32, base uint64) {
		b = le.AppendUint32(b, selector)
		b = le.AppendUint32(b, limit)
		b = le.AppendUint32(b, flags)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint64(b, base)
	}
	for _, g := range []*kvm.Segment{&s.CS, &s.DS, &s.ES, &s.FS, &s.GS, &s.SS, &s.LDT, &s.TR} {
		segment(uint32(g.Selector), g.Limit, descriptorFlags(g), g.Base)
	}
	segment(0, uint32(s.GDT.Limit), 0, s.GDT.Base)
	segment(0, uint32(s.IDT.Limit), 0, s.IDT.Base)
	for _, v := range []uint64{s.CR0, 0, s.CR2, s.CR3, s.CR4, kernelGS} {
		b = le.AppendUint64(b, v)
	}
	return b
}

// descriptorFlags are a segment's attributes as they lie in the upper half of its descriptor.
func descriptorFlags(g *kvm.Segment) uint32 {
	return uint32(g.Type)<<8 | uint32(g.S)<<12 | uint32(g.DPL)<<13 | uint32(g.Present)<<15 |
		uint32(g.AVL)<<20 | uint32(g.L)<<21 | uint32(g.DB)<<22 | uint32(g.G)<<23
}
