package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

func TestELFEntersByThePVHNote(t *testing.T) {
	ram := newRAM(t, 64<<20)
	if err := ram.Write(0x101388, []byte{0xaa}); err != nil { // where .bss will be
		t.Fatal(err)
	}
	initrd := bytes.Repeat([]byte("initrd"), 1000)
	e, err := Load(ram, Params{
		Kernel:  makeELF(0x100010, elfSegment{0x100000, 8192, codeA}, elfSegment{0x200000, 16, []byte("data")}),
		Initrd:  initrd,
		Cmdline: "console=ttyS0 quiet",
		CPUs:    2,
	})
	if err != nil {
		t.Fatal(err)
	}
	if e.Mode != Protected32 || e.RIP != 0x100010 || e.CR0 != cr0PE|cr0ET || e.CR4 != 0 || e.EFER != 0 || e.RFLAGS != 2 {
		t.Errorf("entry state is %+v", e)
	}
	if e.CS.DB != 1 || e.CS.L != 0 || e.CS.Limit != 0xffff_ffff {
		t.Errorf("CS is %+v, want flat 32-bit code", e.CS)
	}
	if !bytes.Equal(view(t, ram, 0x100000, 5000), codeA) || string(view(t, ram, 0x200000, 4)) != "data" {
		t.Error("a segment is not where its program header says")
	}
	if ram.Bytes()[0x101388] != 0 {
		t.Error("memory behind a segment's file part is not zero")
	}
	le := binary.LittleEndian
	si := view(t, ram, e.RBX, 56)
	if le.Uint32(si) != 0x336ec578 || le.Uint32(si[4:]) != 1 || le.Uint32(si[12:]) != 1 {
		t.Fatalf("start info % x", si)
	}
	if c := view(t, ram, le.Uint64(si[24:]), 20); string(c) != "console=ttyS0 quiet\x00" {
		t.Errorf("command line %q", c)
	}
	mod := view(t, ram, le.Uint64(si[16:]), 16)
	if got := view(t, ram, le.Uint64(mod), le.Uint64(mod[8:])); !bytes.Equal(got, initrd) {
		t.Error("the module is not the initrd")
	}
	if string(view(t, ram, le.Uint64(si[32:]), 8)) != "RSD PTR " {
		t.Error("no RSDP where the start info says")
	}
	mapAt, n := le.Uint64(si[40:]), le.Uint32(si[48:])
	for i, want := range e820(ram) {
		m := view(t, ram, mapAt+uint64(i)*24, 24)
		if got := (e820Entry{le.Uint64(m), le.Uint64(m[8:]), le.Uint32(m[16:])}); got != want || uint32(i) >= n {
			t.Errorf("memory map entry %d is %+v, want %+v", i, got, want)
		}
	}
}

func TestBzImageEntersInLongMode(t *testing.T) {
	ram := newRAM(t, 64<<20)
	payload := bytes.Repeat([]byte("linux"), 2000)
	initrd := bytes.Repeat([]byte("initrd"), 1000)
	e, err := Load(ram, Params{Kernel: makeBzImage(payload), Initrd: initrd, Cmdline: "quiet", CPUs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if e.Mode != Long64 || e.RIP != 16<<20+0x200 || e.CR0 != cr0PE|cr0ET|cr0PG || e.CR4 != cr4PAE || e.EFER != eferLMA|eferLME {
		t.Errorf("entry state is %+v", e)
	}
	if e.CS.L != 1 || e.CS.DB != 0 || e.CS.Selector != 0x10 || e.Data.Selector != 0x18 {
		t.Errorf("CS %+v, data %+v", e.CS, e.Data)
	}
	if !bytes.Equal(view(t, ram, 16<<20, uint64(len(payload))), payload) {
		t.Error("the kernel is not at its preferred address")
	}
	le := binary.LittleEndian
	z := view(t, ram, e.RSI, 4096)
	if z[hdrLoader] != 0xff || string(z[hdrMagic:hdrMagic+4]) != "HdrS" {
		t.Errorf("no setup header in the zero page")
	}
	if c := view(t, ram, uint64(le.Uint32(z[hdrCmdline:])), 6); string(c) != "quiet\x00" {
		t.Errorf("command line %q", c)
	}
	if got := view(t, ram, uint64(le.Uint32(z[hdrRamdiskImage:])), uint64(le.Uint32(z[hdrRamdiskSize:]))); !bytes.Equal(got, initrd) {
		t.Error("the initrd is not where the zero page says")
	}
	if string(view(t, ram, le.Uint64(z[zpRSDP:]), 8)) != "RSD PTR " {
		t.Error("no RSDP where the zero page says")
	}
	if int(z[zpE820Entries]) != len(e820(ram)) {
		t.Errorf("%d E820 entries, want %d", z[zpE820Entries], len(e820(ram)))
	}
	// Walk the page tables as the CPU does, at both ends of what must be mapped.
	for _, addr := range []uint64{0, 0x12345678, 16<<20 + 0x200, 0xfee0_0020, 0xffff_ffff} {
		table := e.CR3
		for shift := 39; ; shift -= 9 {
			v := le.Uint64(view(t, ram, table+(addr>>shift&511)*8, 8))
			if v&3 != 3 {
				t.Fatalf("%#x is not mapped", addr)
			}
			table = v &^ 0xfff
			if v&(1<<7) != 0 {
				if got := table&^(1<<shift-1) | addr&(1<<shift-1); got != addr {
					t.Errorf("%#x maps to %#x", addr, got)
				}
				break
			}
		}
	}
	// The GDT in memory says what the hidden parts say.
	g := view(t, ram, e.GDT.Base, uint64(e.GDT.Limit)+1)
	if c, d := le.Uint64(g[0x10:]), le.Uint64(g[0x18:]); c != 0x00af9b000000ffff || d != 0x00cf93000000ffff {
		t.Errorf("GDT code %#x, data %#x", c, d)
	}
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	good := makeBzImage(make([]byte, 4096))
	patch := func(k []byte, at int, v ...byte) []byte {
		k = bytes.Clone(k)
		copy(k[at:], v)
		return k
	}
	elf := func(s ...elfSegment) []byte { return makeELF(0x100000, s...) }
	one := elfSegment{0x100000, 4096, codeA[:4096]}
	for _, c := range []struct {
		name string
		p    Params
		is   error
		text string
	}{
		{"empty", Params{}, ErrKernel, "empty"},
		{"text file", Params{Kernel: []byte("#!/bin/sh\n")}, ErrKernel, "/boot"},
		{"long text file", Params{Kernel: bytes.Repeat([]byte("text"), 4096)}, ErrKernel, "neither"},
		{"ELF magic alone", Params{Kernel: []byte("\x7fELF")}, ErrKernel, "truncated"},
		{"truncated ELF", Params{Kernel: elf(one)[:1000]}, ErrKernel, "copy it again"},
		{"truncated program headers", Params{Kernel: elf(one)[:100]}, ErrKernel, "copy it again"},
		{"ELF for ARM", Params{Kernel: patch(elf(one), 18, 183)}, ErrKernel, "not for x86"},
		{"object file", Params{Kernel: patch(elf(one), 16, 1)}, ErrKernel, "not an executable"},
		{"no PVH note", Params{Kernel: patch(elf(one), 64+2*56+12, 'X', 'e', 'X')}, ErrKernel, "CONFIG_PVH"},
		{"nothing to load", Params{Kernel: elf()}, ErrKernel, "nothing to load"},
		{"overlap", Params{Kernel: elf(one, elfSegment{0x100fff, 4096, nil})}, ErrKernel, "overlap"},
		{"same place twice", Params{Kernel: elf(one, one)}, ErrKernel, "overlap"},
		{"wraps around", Params{Kernel: elf(one, elfSegment{1<<64 - 4096, 8192, nil})}, ErrKernel, "inconsistent"},
		{"file part larger", Params{Kernel: elf(elfSegment{0x100000, 1, codeA})}, ErrKernel, "inconsistent"},
		{"below 1 MiB", Params{Kernel: elf(one, elfSegment{0x7000, 10, nil})}, ErrKernel, "below 1 MiB"},
		{"outside of RAM", Params{Kernel: elf(one, elfSegment{1 << 30, 10, nil})}, ErrNoRoom, "give it more"},
		{"entry elsewhere", Params{Kernel: makeELF(0x500000, one)}, ErrKernel, "outside"},
		{"huge initrd, ELF", Params{Kernel: elf(one), Initrd: make([]byte, 32<<20)}, ErrNoRoom, "smaller initrd"},
		{"long command line, ELF", Params{Kernel: elf(one), Cmdline: strings.Repeat("a", 2048)}, ErrNoRoom, "shorten"},
		{"NUL in the command line", Params{Kernel: elf(one), Cmdline: "a\x00b"}, nil, "NUL"},
		{"old protocol", Params{Kernel: patch(good, hdrVersion, 0x0b, 2)}, ErrKernel, "2.12"},
		{"32-bit Linux", Params{Kernel: patch(good, hdrXLoadFlags, 0)}, ErrKernel, "x86-64"},
		{"zImage", Params{Kernel: patch(good, hdrLoadFlags, 0)}, ErrKernel, "bzImage"},
		{"truncated bzImage", Params{Kernel: good[:4000]}, ErrKernel, "copy it again"},
		{"bzImage cut in its header", Params{Kernel: good[:0x210]}, ErrKernel, "copy it again"},
		{"bzImage cut in its setup", Params{Kernel: good[:1024]}, ErrKernel, "copy it again"},
		{"header too long", Params{Kernel: patch(good, hdrJumpOffset, 0xff)}, ErrKernel, "setup header"},
		{"load address in the BIOS", Params{Kernel: patch(good, hdrPrefAddress, 0, 0, 0, 0)}, ErrKernel, "load address"},
		{"needs more memory", Params{Kernel: patch(good, hdrInitSize, 0, 0, 0, 2)}, ErrNoRoom, "at least 48 MiB"},
		{"huge initrd", Params{Kernel: good, Initrd: make([]byte, 20<<20)}, ErrNoRoom, "smaller initrd"},
		{"initrd limit", Params{Kernel: patch(good, hdrInitrdMax, 0, 0, 0, 1), Initrd: []byte("x")}, ErrNoRoom, "initrd"},
		{"long command line", Params{Kernel: patch(good, hdrCmdlineSize, 4, 0), Cmdline: "abcde"}, ErrNoRoom, "at most 4"},
		{"no vCPU", Params{Kernel: good, CPUs: -1}, nil, "vCPUs"},
		{"too many vCPUs", Params{Kernel: good, CPUs: MaxCPUs + 1}, nil, "vCPUs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.p.CPUs == 0 {
				c.p.CPUs = 1
			}
			_, err := Load(newRAM(t, 32<<20), c.p)
			if err == nil {
				t.Fatal("was accepted")
			}
			if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %q, want one that is %v and says %q", err, c.is, c.text)
			}
		})
	}
}

func TestTinyMemory(t *testing.T) {
	for _, k := range [][]byte{makeBzImage(codeA), makeELF(0x100000, elfSegment{0x100000, 5000, codeA})} {
		if _, err := Load(newRAM(t, memory.MinSize), Params{Kernel: k, CPUs: 1}); !errors.Is(err, ErrNoRoom) {
			t.Errorf("1 MiB of memory: %v, want ErrNoRoom", err)
		}
	}
}

func TestMemoryMapFitsTheRAM(t *testing.T) {
	for _, size := range []uint64{1 << 20, 2 << 20, 256 << 20, memory.LowLimit, memory.LowLimit + 4096, 5 << 30} {
		ram := newRAM(t, size)
		m := e820(ram)
		var usable uint64
		for i, e := range m {
			if i > 0 && e.addr < m[i-1].addr+m[i-1].size {
				t.Errorf("%d bytes: entries %+v and %+v overlap", size, m[i-1], e)
			}
			if e.kind == e820RAM {
				usable += e.size
				if _, err := ram.View(e.addr, e.size); err != nil {
					t.Errorf("%d bytes: the map calls RAM what is none: %v", size, err)
				}
			}
		}
		if want := size - (kernelMin - ebdaBase); usable != want {
			t.Errorf("%d bytes: %d usable, want %d", size, usable, want)
		}
		covered := func(addr uint64) bool {
			for _, e := range m {
				if addr >= e.addr && addr-e.addr < e.size && e.kind == e820Reserved {
					return true
				}
			}
			return false
		}
		for _, addr := range []uint64{ebdaBase, acpiBase, kernelMin - 1, platform.ECAMBase, platform.ECAMBase + platform.ECAMSize - 1,
			platform.TSSBase, platform.IdentityMap} {
			if !covered(addr) {
				t.Errorf("%d bytes: %#x is not reserved", size, addr)
			}
		}
	}
}
