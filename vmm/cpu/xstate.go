package cpu

import (
	"fmt"
	"slices"
)

// Component is a part of the XSAVE area beyond x87 and SSE: where the processor's XSAVE puts it (CPUID leaf
// 0xd). Processors of one vendor may disagree about that: the protection keys of AMD's Zen 3 lie where
// AVX-512 lies on Zen 4. A guest that saw one place could not run where it is the other.
type Component struct {
	ID     int    // bit in XCR0
	Size   uint32 // bytes
	Offset uint32 // in the standard format
	Align  bool   // to 64 bytes, in the compacted format
}

// Components that a guest may use. MPX, processor trace, shadow stacks and AMX are not among them.
const (
	xAVX       = 2
	xOpmask    = 5
	xZMMHi256  = 6
	xHi16ZMM   = 7
	xPKRU      = 9
	xLegacy    = 3 // XCR0 of x87 and SSE, which have fixed places
	xLegacyEnd = 576
)

// xuse says what needs some components. The three of AVX-512 come together or not at all.
type xuse struct {
	ids     []int
	feature string
}

var xuses = []xuse{
	{[]int{xAVX}, "avx"},
	{[]int{xOpmask, xZMMHi256, xHi16ZMM}, "avx512f"},
	{[]int{xPKRU}, "pku"},
}

func (c Component) String() string {
	s := fmt.Sprintf("%d:%x:%x", c.ID, c.Size, c.Offset)
	if c.Align {
		s += "a"
	}
	return s
}

// XCR0 are the components as bits of that register.
func (m *Model) XCR0() uint64 {
	if !m.Features.Has("xsave") {
		return 0
	}
	x := uint64(xLegacy)
	for _, c := range m.XSAVE {
		x |= 1 << c.ID
	}
	return x
}

// xsaveSize is the size of an area with all components in the standard format, in bytes.
func (m *Model) xsaveSize() uint32 {
	n := uint32(xLegacyEnd)
	for _, c := range m.XSAVE {
		n = max(n, c.Offset+c.Size)
	}
	return n
}

// settle makes the parts of a model agree: a feature without its components goes, and so does a component
// that nothing needs, and what hangs on other features that are not there.
func (m *Model) settle() {
	m.Features = m.Features.consistent()
	has := func(id int) bool {
		return slices.ContainsFunc(m.XSAVE, func(c Component) bool { return c.ID == id })
	}
	for _, use := range xuses {
		for _, id := range use.ids {
			if !has(id) {
				m.Features = m.Features.Without(of(use.feature))
			}
		}
	}
	m.Features = m.Features.consistent()
	m.XSAVE = slices.DeleteFunc(slices.Clone(m.XSAVE), func(c Component) bool {
		return !slices.ContainsFunc(xuses, func(u xuse) bool {
			return slices.Contains(u.ids, c.ID) && m.Features.Has(u.feature)
		})
	})
	if len(m.XSAVE) == 0 {
		m.XSAVE = nil
	}
	if !m.Features.Has("arch_capabilities") {
		m.ArchCaps = 0
	}
	if !m.Features.Has("la57") {
		m.LinearBits = min(m.LinearBits, 48)
	}
}
