package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// Control register and EFER bits (Intel SDM volume 3, 2.5 and 2.2.1).
const (
	cr0PE   = 1 << 0
	cr0ET   = 1 << 4
	cr0NW   = 1 << 29
	cr0CD   = 1 << 30
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsFixed = 1 << 1
)

// Selectors: the Linux boot protocol wants __BOOT_CS and __BOOT_DS at these.
const (
	selCode = 0x10
	selData = 0x18
	selTSS  = 0x20
)

func flatCode(long bool) Segment {
	s := Segment{Limit: 0xffff_ffff, Selector: selCode, Type: 0xb, Present: 1, S: 1, G: 1}
	if long {
		s.L = 1
	} else {
		s.DB = 1
	}
	return s
}

func flatData() Segment {
	return Segment{Limit: 0xffff_ffff, Selector: selData, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
}

// busyTSS is what VM entry insists on; the kernel loads its own before it uses one.
func busyTSS() Segment {
	return Segment{Limit: 0x67, Selector: selTSS, Type: 0xb, Present: 1}
}

func noLDT() Segment { return Segment{Type: 2, Unusable: 1} }

// ResetVector is the state of a processor after power-on (Intel SDM volume 3, table 10-1): it begins 16 bytes
// below 4 GiB, in firmware.
func ResetVector() Entry {
	const limit = 0xffff
	data := Segment{Limit: limit, Type: 3, Present: 1, S: 1}
	return Entry{
		Mode: Real16, RIP: 0xfff0, RFLAGS: rflagsFixed, CR0: cr0ET | cr0CD | cr0NW,
		CS: Segment{Base: 0xffff_0000, Limit: limit, Selector: 0xf000, Type: 0xb, Present: 1, S: 1}, Data: data,
		TR: Segment{Limit: limit, Type: 0xb, Present: 1}, LDT: Segment{Limit: limit, Type: 2, Present: 1},
		GDT: Table{Limit: limit}, IDT: Table{Limit: limit},
	}
}

// descriptor packs a segment as it stands in a GDT (Intel SDM volume 3, 3.4.5).
func (s Segment) descriptor() uint64 {
	limit := uint64(s.Limit)
	if s.G != 0 {
		limit >>= 12
	}
	return limit&0xffff | (s.Base&0xff_ffff)<<16 |
		uint64(s.Type)<<40 | uint64(s.S)<<44 | uint64(s.DPL)<<45 | uint64(s.Present)<<47 |
		(limit>>16&0xf)<<48 | uint64(s.L)<<53 | uint64(s.DB)<<54 | uint64(s.G)<<55 |
		(s.Base>>24&0xff)<<56
}

// entry writes the GDT and fills the parts of an Entry that both modes share: interrupts off, flat
// segments, an empty IDT.
func entry(ram *memory.RAM, mode Mode) (Entry, error) {
	e := Entry{
		Mode: mode, RFLAGS: rflagsFixed, RSP: stackTop, CR0: cr0PE | cr0ET,
		CS: flatCode(mode == Long64), Data: flatData(), TR: busyTSS(), LDT: noLDT(),
	}
	gdt := make([]byte, selTSS+16)
	binary.LittleEndian.PutUint64(gdt[selCode:], e.CS.descriptor())
	binary.LittleEndian.PutUint64(gdt[selData:], e.Data.descriptor())
	binary.LittleEndian.PutUint64(gdt[selTSS:], e.TR.descriptor())
	if err := ram.Write(gdtBase, gdt); err != nil {
		return Entry{}, fmt.Errorf("write the GDT: %w", err)
	}
	e.GDT = Table{Base: gdtBase, Limit: uint16(len(gdt) - 1)}
	return e, nil
}

// identityMap writes page tables that map the first 4 GiB one to one in 2 MiB pages and returns CR3.
func identityMap(ram *memory.RAM) (uint64, error) {
	const (
		present = 1 << 0
		write   = 1 << 1
		large   = 1 << 7
		tables  = 6
	)
	t := make([]byte, tables*memory.PageSize)
	put := func(table, index int, v uint64) {
		binary.LittleEndian.PutUint64(t[table*memory.PageSize+index*8:], v)
	}
	put(0, 0, pageTableBase+1*memory.PageSize|present|write)
	for gib := range 4 {
		put(1, gib, uint64(pageTableBase+(2+gib)*memory.PageSize)|present|write)
		for i := range 512 {
			put(2+gib, i, uint64(gib)<<30|uint64(i)<<21|present|write|large)
		}
	}
	if err := ram.Write(pageTableBase, t); err != nil {
		return 0, fmt.Errorf("write the page tables: %w", err)
	}
	return pageTableBase, nil
}
