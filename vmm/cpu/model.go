package cpu

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
)

// Model is a processor as a guest sees it.
type Model struct {
	Vendor    string // the 12 characters of CPUID leaf 0
	Signature uint32 // family, model and stepping: EAX of leaf 1
	Brand     string // for people, at most 47 characters
	Features  Features
	XSAVE     []Component // by ID
	// ArchCaps is MSR 0x10a, which tells of weaknesses that a processor does not have; 0 unless the
	// feature arch_capabilities is shown.
	ArchCaps uint64

	PhysBits      int // of a physical address
	GuestPhysBits int // of those that nested paging can map; at most PhysBits
	LinearBits    int // 48, or 57 with la57

	Caches []Cache // by level and type
	TSCKHz int     // rate of the time stamp counter; 0: unknown
	Events Events
}

// Cache is one cache of a processor (CPUID leaf 4; on AMD 0x8000001d).
type Cache struct {
	Level, Type            int // type 1: data, 2: instructions, 3: both
	Ways, Partitions, Sets int
	LineBytes              int
	Flags                  uint32 // EDX: write-back behaviour, inclusiveness, indexing
}

// Bytes is its size.
func (c Cache) Bytes() int { return c.Ways * c.Partitions * c.Sets * c.LineBytes }

// Events are what KVM can tell of an event that a vCPU was about to take (KVM_CAP_EXCEPTION_PAYLOAD,
// KVM_CAP_X86_TRIPLE_FAULT_EVENT). Both hosts have to speak of events in the same way.
type Events uint8

const (
	ExceptionPayload Events = 1 << iota
	TripleFault
)

// Vendors as CPUID names them.
const (
	Intel = "GenuineIntel"
	AMD   = "AuthenticAMD"
	Hygon = "HygonGenuine"
)

// isAMD says whether leaves are laid out as AMD's are.
func (m *Model) isAMD() bool { return m.Vendor == AMD || m.Vendor == Hygon }

// Family, ModelNumber and Stepping decode the signature (Intel SDM volume 2, CPUID, leaf 1).
func (m *Model) Family() int {
	f := int(m.Signature >> 8 & 0xf)
	if f == 0xf {
		f += int(m.Signature >> 20 & 0xff)
	}
	return f
}

func (m *Model) ModelNumber() int {
	return int(m.Signature>>4&0xf | m.Signature>>12&0xf0)
}

func (m *Model) Stepping() int { return int(m.Signature & 0xf) }

// Digest is equal for equal models.
func (m *Model) Digest() uint64 {
	h := fnv.New64a()
	h.Write([]byte(m.Text()))
	return h.Sum64()
}

// archAffected are the bits of ArchCaps that name a weakness; all others name its absence, or a remedy.
// RSBA and RRSBA (Intel, "Retpoline: A Branch Target Injection Mitigation").
const archAffected = 1<<2 | 1<<19

// common is the processor that both can be. Their vendors are the same.
func common(a, b *Model) Model {
	m := Model{
		Vendor: a.Vendor, Signature: older(a, b), Features: a.Features.And(b.Features),
		ArchCaps: a.ArchCaps&b.ArchCaps | (a.ArchCaps|b.ArchCaps)&archAffected,
		PhysBits: min(a.PhysBits, b.PhysBits), GuestPhysBits: min(a.GuestPhysBits, b.GuestPhysBits), LinearBits: min(a.LinearBits, b.LinearBits),
		Events: a.Events & b.Events,
	}
	m.Brand = a.Brand
	if a.Brand != b.Brand {
		m.Brand = brand(m.Vendor, "pair")
	}
	for _, c := range a.XSAVE {
		if slices.Contains(b.XSAVE, c) {
			m.XSAVE = append(m.XSAVE, c)
		}
	}
	for _, c := range a.Caches {
		i := slices.IndexFunc(b.Caches, func(o Cache) bool { return o.Level == c.Level && o.Type == c.Type })
		if i >= 0 {
			m.Caches = append(m.Caches, smaller(c, b.Caches[i]))
		}
	}
	m.settle()
	return m
}

// older is the signature of the older generation: guests work around its errata, and what they know
// of the newer one may not hold on the older.
func older(a, b *Model) uint32 {
	c := cmp.Or(cmp.Compare(a.Family(), b.Family()), cmp.Compare(a.ModelNumber(), b.ModelNumber()), cmp.Compare(a.Stepping(), b.Stepping()), cmp.Compare(a.Signature, b.Signature))
	if c <= 0 {
		return a.Signature
	}
	return b.Signature
}

func smaller(a, b Cache) Cache {
	c := cmp.Or(cmp.Compare(a.Bytes(), b.Bytes()), cmp.Compare(a.Ways, b.Ways), cmp.Compare(a.LineBytes, b.LineBytes),
		cmp.Compare(a.Partitions, b.Partitions), cmp.Compare(a.Sets, b.Sets), cmp.Compare(a.Flags, b.Flags))
	if c <= 0 {
		return a
	}
	return b
}

// brand is a brand string for a processor that is none.
func brand(vendor, what string) string {
	maker := map[string]string{Intel: "Intel", AMD: "AMD", Hygon: "Hygon"}[vendor]
	if maker == "" {
		maker = "virtual"
	}
	return fmt.Sprintf("%s processor (Pollux %s)", maker, what)
}
