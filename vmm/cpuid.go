package vmm

import (
	"encoding/binary"
	"hash/fnv"
	"math/bits"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// CPUMask takes CPU features away from what a guest sees.
type CPUMask interface {
	// Apply may clear bits of the registers of one CPUID leaf before the guest sees it.
	Apply(leaf, index uint32, eax, ebx, ecx, edx *uint32)
}

// apicBusHz is the rate of the LAPIC timer that KVM emulates.
const apicBusHz = 1_000_000_000

// Bits that are set or cleared here (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
const (
	ecx1VMX         = 1 << 5
	ecx1PDCM        = 1 << 15
	ecx1X2APIC      = 1 << 21
	ecx1TSCDeadline = 1 << 24
	ecx1XSAVE       = 1 << 26
	ecx1Hypervisor  = 1 << 31
	edx1DS          = 1 << 21
	edx1HTT         = 1 << 28

	ecx8SVM       = 1 << 2
	ecx8CmpLegacy = 1 << 1
	ecx8PerfCtr   = 1<<23 | 1<<24 | 1<<28

	// KVM's paravirtual features (Documentation/virt/kvm/x86/cpuid.rst) whose state would not
	// travel, or which need help from user space: asynchronous page faults, their exits and
	// interrupts, hypercalls about memory and migration.
	kvmHidden = 1<<4 | 1<<10 | 1<<14 | 1<<16 | 1<<17
)

// guestCPUID is what vCPU id of n sees: what KVM supports, without what a checkpoint does not
// carry (nested virtualization, performance counters), with one socket of n cores, and with the
// rate of the TSC, so that nobody has to measure it.
func guestCPUID(supported []kvm.CPUIDEntry, id, n, tscKHz int, deadline bool, mask CPUMask) []kvm.CPUIDEntry {
	width := bits.Len(uint(n - 1)) // bits of an APIC ID that number cores
	var out []kvm.CPUIDEntry
	for _, e := range supported {
		switch e.Function {
		case 1:
			e.EBX = e.EBX&0x0000_ffff | uint32(id)<<24 | uint32(1<<width)<<16
			e.ECX = e.ECX&^(ecx1VMX|ecx1PDCM) | ecx1X2APIC | ecx1Hypervisor
			if deadline {
				e.ECX |= ecx1TSCDeadline
			}
			e.EDX &^= edx1DS | edx1HTT
			if n > 1 {
				e.EDX |= edx1HTT
			}
		case 4: // caches on Intel: the last level is shared by all cores
			if e.EAX&0x1f != 0 {
				e.EAX = shareCache(e.EAX, n)&0x03ff_ffff | uint32(1<<width-1)<<26
			}
		case 0xa:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case 0xb, 0x1f, 0x15, 0x8000_0022, 0x4000_0010:
			continue // made anew below, or not shown
		case 0x4000_0000:
			e.EAX = max(e.EAX, 0x4000_0010)
		case 0x4000_0001:
			e.EAX &^= kvmHidden
		case 0x8000_0001:
			e.ECX &^= ecx8SVM | ecx8PerfCtr | ecx8CmpLegacy
			if n > 1 {
				e.ECX |= ecx8CmpLegacy
			}
		case 0x8000_0008:
			e.ECX = uint32(width)<<12 | uint32(n-1)
		case 0x8000_000a, 0x8000_001f:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0 // SVM, memory encryption
		case 0x8000_001d: // caches on AMD
			if e.EAX&0x1f != 0 {
				e.EAX = shareCache(e.EAX, n)
			}
		case 0x8000_001e:
			e.EAX, e.EBX, e.ECX = uint32(id), uint32(id), 0
		}
		out = append(out, e)
	}
	out = append(out,
		kvm.CPUIDEntry{Function: 0xb, Index: 0, Flags: kvm.CPUIDIndexed, EAX: 0, EBX: 1, ECX: 1 << 8, EDX: uint32(id)},
		kvm.CPUIDEntry{Function: 0xb, Index: 1, Flags: kvm.CPUIDIndexed, EAX: uint32(width), EBX: uint32(n), ECX: 2<<8 | 1, EDX: uint32(id)},
		kvm.CPUIDEntry{Function: 0xb, Index: 2, Flags: kvm.CPUIDIndexed, ECX: 2, EDX: uint32(id)},
	)
	if tscKHz > 0 {
		num, den := ratio(uint64(tscKHz), apicBusHz/1000, 1<<32/(apicBusHz/1000))
		out = append(out,
			kvm.CPUIDEntry{Function: 0x15, EAX: den, EBX: num, ECX: apicBusHz},
			kvm.CPUIDEntry{Function: 0x4000_0010, EAX: uint32(tscKHz), EBX: apicBusHz / 1000})
	}
	for i := range out {
		e := &out[i]
		if e.Function == 0 {
			e.EAX = max(e.EAX, 0x15) // the highest leaf
			e.EAX = min(e.EAX, 0x1e) // beyond 0x1f are leaves that KVM does not give
		}
		if mask != nil {
			mask.Apply(e.Function, e.Index, &e.EAX, &e.EBX, &e.ECX, &e.EDX)
		}
	}
	return out
}

// shareCache says in EAX of a cache's leaf by how many cores the cache is shared: a third level by
// all n, the others by none.
func shareCache(eax uint32, n int) uint32 {
	eax &^= 0xfff << 14
	if level := eax >> 5 & 7; level >= 3 {
		eax |= uint32(n-1) << 14
	}
	return eax
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

// featureHash is equal on two hosts where a guest sees the same CPU features. Names, cache sizes and
// rates do not count.
func featureHash(entries []kvm.CPUIDEntry) uint64 {
	h := fnv.New64a()
	for _, e := range entries {
		switch e.Function {
		case 1:
			e.EAX, e.EBX = 0, 0
		case 7, 0xd, 0x14, 0x19, 0x1d, 0x1e, 0x4000_0001, 0x8000_0001, 0x8000_0007, 0x8000_0021:
		case 0x8000_0008:
			e.ECX = 0
		default:
			continue
		}
		var b [24]byte
		for i, w := range [...]uint32{e.Function, e.Index, e.EAX, e.EBX, e.ECX, e.EDX} {
			binary.LittleEndian.PutUint32(b[4*i:], w)
		}
		h.Write(b[:])
	}
	return h.Sum64()
}

// hasXSAVE says whether a guest that sees these entries can change its XCR0.
func hasXSAVE(entries []kvm.CPUIDEntry) bool {
	for _, e := range entries {
		if e.Function == 1 {
			return e.ECX&ecx1XSAVE != 0
		}
	}
	return false
}
