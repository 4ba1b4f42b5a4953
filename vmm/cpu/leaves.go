package cpu

import "math/bits"

// apicBusHz is the rate of the LAPIC timer that KVM emulates.
const apicBusHz = 1_000_000_000

const (
	maxBasic  = 0x15
	maxKVM    = 0x4000_0010
	amdMax    = 0x8000_0021
	intelMax  = 0x8000_0008
	edx1HTT   = 1 << 28
	ecx8CmpLg = 1 << 1
	eax6ARAT  = 1 << 2
	// What AMD repeats in leaf 0x80000001 EDX of leaf 1 EDX.
	amdRepeated = 0x0183_f3ff
)

// Leaves is what CPUID tells vCPU id of n: the model, one socket of n cores without threads, and the rate
// of the time stamp counter, so that nobody has to measure it.
func (m *Model) Leaves(id, n int) []Leaf {
	width := bits.Len(uint(n - 1)) // bits of an APIC ID that number cores
	f := &m.Features
	vendor := func(l Leaf) Leaf {
		l.EBX, l.EDX, l.ECX = textRegister(m.Vendor, 0), textRegister(m.Vendor, 4), textRegister(m.Vendor, 8)
		return l
	}
	one := Leaf{
		Function: 1, EAX: m.Signature, EBX: uint32(id)<<24 | uint32(1<<width)<<16 | 8<<8, // 8: CLFLUSH of 64 bytes
		ECX: f[w1ECX], EDX: f[w1EDX],
	}
	ext := Leaf{Function: 0x8000_0001, ECX: f[w81ECX], EDX: f[w81EDX]}
	if m.isAMD() {
		ext.EAX, ext.EDX = m.Signature, ext.EDX|f[w1EDX]&amdRepeated
	}
	if n > 1 {
		one.EDX |= edx1HTT
		if m.isAMD() {
			ext.ECX |= ecx8CmpLg
		}
	}
	out := []Leaf{vendor(Leaf{Function: 0, EAX: maxBasic}), one}
	if !m.isAMD() {
		out = append(out, Leaf{Function: 2, EAX: 0x00ff_0001}) // descriptor 0xff: leaf 4 tells of the caches
		out = append(out, m.cacheLeaves(4, n, width)...)
	}
	out = append(out, Leaf{Function: 6, EAX: eax6ARAT})
	out = append(out, m.sevenLeaves()...)
	out = append(out, topology(id, n, width)...)
	out = append(out, m.xsaveLeaves()...)
	if m.TSCKHz > 0 {
		num, den := ratio(uint64(m.TSCKHz), apicBusHz/1000, 1<<32/(apicBusHz/1000))
		out = append(out, Leaf{Function: 0x15, EAX: den, EBX: num, ECX: apicBusHz})
	}
	out = append(out, m.kvmLeaves()...)

	top := uint32(intelMax)
	if m.isAMD() {
		top = amdMax
	}
	out = append(out, vendor(Leaf{Function: 0x8000_0000, EAX: top}), ext)
	for i := range uint32(3) {
		at := int(16 * i)
		out = append(out, Leaf{
			Function: 0x8000_0002 + i, EAX: textRegister(m.Brand, at), EBX: textRegister(m.Brand, at+4), ECX: textRegister(m.Brand, at+8), EDX: textRegister(m.Brand, at+12),
		})
	}
	out = append(out, m.oldCacheLeaves()...)
	eight := Leaf{Function: 0x8000_0008, EAX: uint32(m.PhysBits) | uint32(m.LinearBits)<<8, EBX: f[w88EBX]}
	if m.GuestPhysBits < m.PhysBits {
		eight.EAX |= uint32(m.GuestPhysBits) << 16
	}
	if m.isAMD() {
		eight.ECX = uint32(width)<<12 | uint32(n-1)
	}
	out = append(out, Leaf{Function: 0x8000_0007, EDX: f[w87EDX]}, eight)
	if m.isAMD() {
		if f.Has("topoext") {
			out = append(out, m.cacheLeaves(0x8000_001d, n, width)...)
			// A core of its own for each vCPU (EBX), all of them on one node (ECX).
			out = append(out, Leaf{Function: 0x8000_001e, EAX: uint32(id), EBX: uint32(id)})
		}
		out = append(out, Leaf{Function: amdMax, EAX: f[w21EAX], ECX: f[w21ECX]})
	}
	return out
}

// sevenLeaves are leaf 7's, as many as say something.
func (m *Model) sevenLeaves() []Leaf {
	f := &m.Features
	last := uint32(0)
	switch {
	case f[w72EDX] != 0:
		last = 2
	case f[w71EAX]|f[w71EDX] != 0:
		last = 1
	}
	return []Leaf{
		{Function: 7, Index: 0, Indexed: true, EAX: last, EBX: f[w7EBX], ECX: f[w7ECX], EDX: f[w7EDX]},
		{Function: 7, Index: 1, Indexed: true, EAX: f[w71EAX], EDX: f[w71EDX]},
		{Function: 7, Index: 2, Indexed: true, EDX: f[w72EDX]},
	}
}

// topology is leaf 0xb: level 0 threads, level 1 cores. Leaf 0x1f would say the same and is not shown.
func topology(id, n, width int) []Leaf {
	const smt, core = 1 << 8, 2 << 8
	return []Leaf{
		{Function: 0xb, Index: 0, Indexed: true, EAX: 0, EBX: 1, ECX: smt, EDX: uint32(id)},
		{Function: 0xb, Index: 1, Indexed: true, EAX: uint32(width), EBX: uint32(n), ECX: core | 1, EDX: uint32(id)},
		{Function: 0xb, Index: 2, Indexed: true, ECX: 2, EDX: uint32(id)},
	}
}

// xsaveLeaves are leaf 0xd's. KVM puts the sizes for the guest's XCR0 of the moment into index 0 and 1.
func (m *Model) xsaveLeaves() []Leaf {
	if !m.Features.Has("xsave") {
		return nil
	}
	size := m.xsaveSize()
	compact := uint32(xLegacyEnd)
	for _, c := range m.XSAVE {
		if c.Align {
			compact = (compact + 63) &^ 63
		}
		compact += c.Size
	}
	x := m.XCR0()
	out := []Leaf{
		{Function: 0xd, Index: 0, Indexed: true, EAX: uint32(x), EBX: size, ECX: size, EDX: uint32(x >> 32)},
		{Function: 0xd, Index: 1, Indexed: true, EAX: m.Features[wD1EAX], EBX: compact},
	}
	for _, c := range m.XSAVE {
		l := Leaf{Function: 0xd, Index: uint32(c.ID), Indexed: true, EAX: c.Size, EBX: c.Offset}
		if c.Align {
			l.ECX = 2
		}
		out = append(out, l)
	}
	return out
}

// kvmLeaves tell the guest that it runs on KVM, and the rates of its clocks
// (Documentation/virt/kvm/x86/cpuid.rst; leaf 0x40000010 is VMware's convention).
func (m *Model) kvmLeaves() []Leaf {
	const signature = "KVMKVMKVM"
	out := []Leaf{
		{Function: 0x4000_0000, EAX: maxKVM, EBX: textRegister(signature, 0), ECX: textRegister(signature, 4), EDX: textRegister(signature, 8)},
		{Function: 0x4000_0001, EAX: m.Features[wKVM]},
	}
	if m.TSCKHz > 0 {
		out = append(out, Leaf{Function: maxKVM, EAX: uint32(m.TSCKHz), EBX: apicBusHz / 1000})
	}
	return out
}

// cacheLeaves are leaf 4 of Intel and 0x8000001d of AMD, which have one layout but for the upper bits of
// EAX. The third level is shared by all vCPUs, the others by none.
func (m *Model) cacheLeaves(function uint32, n, width int) []Leaf {
	const selfInitializing = 1 << 8
	var out []Leaf
	for i, c := range m.Caches {
		l := Leaf{
			Function: function, Index: uint32(i), Indexed: true,
			EAX: uint32(c.Type) | uint32(c.Level)<<5 | selfInitializing,
			EBX: uint32(c.LineBytes-1) | uint32(c.Partitions-1)<<12 | uint32(c.Ways-1)<<22,
			ECX: uint32(c.Sets - 1), EDX: c.Flags,
		}
		if m.isAMD() {
			if c.Level >= 3 {
				l.EAX |= uint32(n-1) << 14
			}
		} else {
			// APIC IDs are counted, not processors: powers of two.
			if c.Level >= 3 {
				l.EAX |= uint32(1<<width-1) << 14
			}
			l.EAX |= uint32(1<<width-1) << 26
		}
		out = append(out, l)
	}
	return append(out, Leaf{Function: function, Index: uint32(len(out)), Indexed: true})
}

// oldCacheLeaves are 0x80000005 and 0x80000006, which some programs still read (AMD APM volume 3,
// E.4.4): Intel has the second level's alone.
func (m *Model) oldCacheLeaves() []Leaf {
	const tlb = 0xff40_ff40 // 64 entries, fully associative
	var five, six Leaf
	five.Function, six.Function = 0x8000_0005, 0x8000_0006
	for _, c := range m.Caches {
		first := min(uint32(c.Bytes()>>10), 0xff)<<24 | min(uint32(c.Ways), 0xfe)<<16 | 1<<8 | uint32(c.LineBytes)
		switch {
		case c.Level == 1 && c.Type == 1:
			five.ECX = first
		case c.Level == 1 && c.Type == 2:
			five.EDX = first
		case c.Level == 2:
			six.ECX = min(uint32(c.Bytes()>>10), 0xffff)<<16 | ways(c.Ways)<<12 | 1<<8 | uint32(c.LineBytes)
		case c.Level == 3:
			six.EDX = min(uint32(c.Bytes()>>19), 0x3fff)<<18 | ways(c.Ways)<<12 | 1<<8 | uint32(c.LineBytes)
		}
	}
	if !m.isAMD() {
		return []Leaf{{Function: 0x8000_0006, ECX: six.ECX}}
	}
	five.EAX, five.EBX = tlb, tlb
	return []Leaf{five, six}
}

// ways is the associativity as leaf 0x80000006 has it; 9 refers to 0x8000001d.
func ways(n int) uint32 {
	for code, ways := range map[uint32]int{1: 1, 2: 2, 4: 4, 6: 8, 8: 16, 0xa: 32, 0xb: 48, 0xc: 64, 0xd: 96, 0xe: 128} {
		if n == ways {
			return code
		}
	}
	return 9
}

// textRegister is four characters of a text as a register; zero beyond its end.
func textRegister(s string, at int) (r uint32) {
	for i := range 4 {
		if at+i < len(s) {
			r |= uint32(s[at+i]) << (8 * i)
		}
	}
	return r
}

// ratio is the fraction with a numerator of at most limit that is next to a/b, by continued
// fractions. Guests multiply the numerator with the crystal's kHz in 32 bits, hence the limit.
func ratio(a, b, limit uint64) (num, den uint32) {
	p0, q0, p1, q1 := uint64(0), uint64(1), uint64(1), uint64(0)
	for b != 0 {
		k := a / b
		p2, q2 := k*p1+p0, k*q1+q0
		if p2 >= limit {
			break
		}
		p0, q0, p1, q1 = p1, q1, p2, q2
		a, b = b, a%b
	}
	return uint32(p1), uint32(q1)
}
