package cpu

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Host is what one machine's processor and kernel can give to guests: a model that has all of it, and what
// is needed to know whether another model runs there.
type Host struct {
	Name string // in the cluster; not a part of the text
	Model
	TSCScaling bool   // a guest's time stamp counter can have another rate than the host's
	MSRs       MSRSet // the registers that KVM reads and sets
	// For people, and to notice that a machine has become another one:
	MSRList   uint32 // a digest of all the registers that KVM lists
	Kernel    string // its release
	Microcode string // as /proc/cpuinfo has it
}

// Leaf is what CPUID answers to one question.
type Leaf struct {
	Function, Index    uint32
	Indexed            bool // the answer depends on Index
	EAX, EBX, ECX, EDX uint32
}

// Facts are what FromLeaves needs beside CPUID.
type Facts struct {
	Brand       string // of /proc/cpuinfo: KVM does not tell it
	ArchCaps    uint64 // MSR 0x10a as KVM gives it to guests
	TSCKHz      int
	TSCScaling  bool
	TSCDeadline bool // KVM_CAP_TSC_DEADLINE_TIMER: older kernels do not say it in CPUID
	Events      Events
	MSRs        MSRSet
	MSRList     uint32
	Kernel      string
	Microcode   string
}

// FromLeaves reads what KVM_GET_SUPPORTED_CPUID says.
func FromLeaves(leaves []Leaf, f Facts) (Host, error) {
	at := func(function, index uint32) Leaf {
		for _, l := range leaves {
			if l.Function == function && (l.Index == index || !l.Indexed) {
				return l
			}
		}
		return Leaf{}
	}
	zero := at(0, 0)
	vendor := registersText(zero.EBX, zero.EDX, zero.ECX)
	if len(vendor) != 12 || strings.ContainsFunc(vendor, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Host{}, fmt.Errorf("CPUID names no vendor (%q)", vendor)
	}
	one, ext1, ext8 := at(1, 0), at(0x8000_0001, 0), at(0x8000_0008, 0)
	h := Host{TSCScaling: f.TSCScaling, MSRs: f.MSRs, MSRList: f.MSRList, Kernel: f.Kernel, Microcode: f.Microcode}
	h.Model = Model{
		Vendor: vendor, Signature: one.EAX & 0x0fff_3fff, Brand: f.Brand,
		ArchCaps: f.ArchCaps, TSCKHz: f.TSCKHz, Events: f.Events,
		PhysBits: int(ext8.EAX & 0xff), LinearBits: int(ext8.EAX >> 8 & 0xff), GuestPhysBits: int(ext8.EAX >> 16 & 0xff),
	}
	m := &h.Model
	if m.Brand = cleanBrand(f.Brand); m.Brand == "" {
		m.Brand = brand(vendor, "host")
	}
	if m.PhysBits == 0 {
		m.PhysBits, m.LinearBits = 36, 48
	}
	if m.GuestPhysBits == 0 || m.GuestPhysBits > m.PhysBits {
		m.GuestPhysBits = m.PhysBits
	}
	seven, state1 := at(7, 0), at(0xd, 1)
	m.Features = Features{
		w1ECX: one.ECX, w1EDX: one.EDX, w7EBX: seven.EBX, w7ECX: seven.ECX, w7EDX: seven.EDX,
		w71EAX: at(7, 1).EAX, w71EDX: at(7, 1).EDX, w72EDX: at(7, 2).EDX, wD1EAX: state1.EAX,
		w81ECX: ext1.ECX, w81EDX: ext1.EDX, w87EDX: at(0x8000_0007, 0).EDX, w88EBX: ext8.EBX,
		w21EAX: at(0x8000_0021, 0).EAX, w21ECX: at(0x8000_0021, 0).ECX, wKVM: at(0x4000_0001, 0).EAX,
	}.And(known).Or(of("x2apic hypervisor")) // KVM emulates an x2APIC everywhere
	if f.TSCDeadline {
		m.Features = m.Features.Or(of("tsc_deadline_timer"))
	}
	if m.isAMD() {
		// Some kernels give it to guests on AMD as well; no AMD processor has it, and some guests mind.
		m.Features = m.Features.Without(of("arch_capabilities"))
	}
	m.components(at)
	m.caches(at)
	m.settle()
	return h, nil
}

// components reads leaf 0xd.
func (m *Model) components(at func(function, index uint32) Leaf) {
	zero := at(0xd, 0)
	for _, use := range xuses {
		for _, id := range use.ids {
			l := at(0xd, uint32(id))
			if zero.EAX&(1<<id) == 0 || l.EAX == 0 || l.ECX&1 != 0 || l.EAX > 4096 || l.EBX < xLegacyEnd || l.EBX > 8192 {
				continue
			}
			m.XSAVE = append(m.XSAVE, Component{ID: id, Size: l.EAX, Offset: l.EBX, Align: l.ECX&2 != 0})
		}
	}
	slices.SortFunc(m.XSAVE, func(a, b Component) int { return a.ID - b.ID })
}

// caches reads leaf 4, or 0x8000001d.
func (m *Model) caches(at func(function, index uint32) Leaf) {
	function := uint32(4)
	if m.isAMD() {
		function = 0x8000_001d
	}
	for i := range uint32(8) {
		l := at(function, i)
		c := Cache{
			Type: int(l.EAX & 0x1f), Level: int(l.EAX >> 5 & 7),
			LineBytes: int(l.EBX&0xfff) + 1, Partitions: int(l.EBX>>12&0x3ff) + 1, Ways: int(l.EBX>>22) + 1,
			Sets: int(l.ECX) + 1, Flags: l.EDX & 7,
		}
		if c.Type == 0 || l.Index != i {
			break
		}
		if c.Type > 3 || c.Level < 1 || c.Level > 4 || l.ECX > 1<<24 || c.Ways > 1023 || c.Partitions > 1023 || c.LineBytes > 4095 {
			continue
		}
		m.Caches = append(m.Caches, c)
	}
	slices.SortFunc(m.Caches, func(a, b Cache) int { return 4*(a.Level-b.Level) + a.Type - b.Type })
}

func registersText(regs ...uint32) string {
	var b []byte
	for _, r := range regs {
		b = append(b, byte(r), byte(r>>8), byte(r>>16), byte(r>>24))
	}
	return strings.TrimRight(string(b), "\x00")
}

// cleanBrand makes a brand fit into CPUID: printable ASCII, at most 47 characters, single spaces.
func cleanBrand(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	return strings.TrimSpace(s[:min(len(s), 47)])
}

// Check says why the host can't run a guest of this model; nil: it can.
func (h *Host) Check(m *Model) error {
	var wrong []string
	say := func(format string, a ...any) { wrong = append(wrong, fmt.Sprintf(format, a...)) }
	if h.Vendor != m.Vendor {
		return fmt.Errorf("has a CPU of %s, the guest was made for one of %s", h.Vendor, m.Vendor)
	}
	lacks := m.Features.Without(h.Features)
	if !lacks.IsEmpty() {
		say("lacks the CPU features %s", lacks)
	}
	for _, c := range m.XSAVE {
		if slices.Contains(h.XSAVE, c) {
			continue
		}
		if i := slices.IndexFunc(h.XSAVE, func(o Component) bool { return o.ID == c.ID }); i >= 0 {
			say("keeps XSAVE component %d at %#x (%d bytes), the guest at %#x (%d bytes)", c.ID, h.XSAVE[i].Offset, h.XSAVE[i].Size, c.Offset, c.Size)
		} else if lacks.IsEmpty() {
			say("lacks XSAVE component %d", c.ID)
		}
	}
	if caps := (m.ArchCaps &^ h.ArchCaps &^ archAffected) | (h.ArchCaps & archAffected &^ m.ArchCaps); caps != 0 && m.Features.Has("arch_capabilities") {
		say("has weaknesses that the guest takes for absent (ARCH_CAPABILITIES %#x)", caps)
	}
	if h.PhysBits < m.PhysBits || h.GuestPhysBits < m.GuestPhysBits {
		say("has physical addresses of %d bits, the guest of %d", h.GuestPhysBits, m.PhysBits)
	}
	if h.LinearBits < m.LinearBits {
		say("has linear addresses of %d bits, the guest of %d", h.LinearBits, m.LinearBits)
	}
	if m.TSCKHz > 0 && !h.TSCScaling && !SameRate(m.TSCKHz, h.TSCKHz) {
		say("has a time stamp counter of %d kHz and can't scale it to the guest's %d", h.TSCKHz, m.TSCKHz)
	}
	if list := h.MSRs.lacking(m.Features); list != nil {
		say("has a KVM that does not save or restore the registers %s", strings.Join(list, ", "))
	}
	if e := m.Events &^ h.Events; e != 0 {
		say("has a KVM that does not tell of pending events as the guest's does (%#x): its kernel is too old", uint8(e))
	}
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, "; "))
}

// SameRate says whether two rates of a time stamp counter are the same to KVM: they differ by no more than
// 250 parts in a million.
func SameRate(a, b int) bool {
	d := a - b
	if d < 0 {
		d = -d
	}
	return d <= a/4000
}
