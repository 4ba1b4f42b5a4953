package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function, Index    uint32
	Flags              uint32
	EAX, EBX, ECX, EDX uint32
	_                  [3]uint32
}

// CPUIDIndexed is KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the leaf has sub-leaves.
const CPUIDIndexed = 1

const maxCPUIDEntries = 256 // KVM_MAX_CPUID_ENTRIES

type cpuid2 struct {
	n, _    uint32
	entries [maxCPUIDEntries]CPUIDEntry
}

// SupportedCPUID lists what KVM can give to a guest on this host (api.rst, 4.46).
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	c := &cpuid2{n: maxCPUIDEntries}
	if _, err := ioctlPtr(s.fd, ioGetSupportedCPUID, c); err != nil {
		return nil, fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	return c.entries[:min(c.n, maxCPUIDEntries)], nil
}

// SetCPUID says what the guest's CPUID shows (api.rst, 4.20). It comes before anything else that
// is set in a vCPU and can't change once it has run.
func (c *VCPU) SetCPUID(e []CPUIDEntry) error {
	if len(e) > maxCPUIDEntries {
		return fmt.Errorf("KVM_SET_CPUID2: %d entries, KVM takes %d", len(e), maxCPUIDEntries)
	}
	a := &cpuid2{n: uint32(len(e))}
	copy(a.entries[:], e)
	if _, err := ioctlPtr(c.fd, ioSetCPUID2, a); err != nil {
		return fmt.Errorf("KVM_SET_CPUID2: %w", err)
	}
	return nil
}

// CPUID tells what the guest's CPUID shows (api.rst, 4.47).
func (c *VCPU) CPUID() ([]CPUIDEntry, error) {
	a := &cpuid2{n: maxCPUIDEntries}
	if _, err := ioctlPtr(c.fd, ioGetCPUID2, a); err != nil {
		return nil, fmt.Errorf("KVM_GET_CPUID2: %w", err)
	}
	return a.entries[:min(a.n, maxCPUIDEntries)], nil
}

// MSREntry is struct kvm_msr_entry.
type MSREntry struct {
	Index, _ uint32
	Value    uint64
}

// MaxMSRs is the most that MSRs holds.
const MaxMSRs = 128

// MSRs is struct kvm_msrs with room for MaxMSRs entries.
type MSRs struct {
	N, _    uint32
	Entries [MaxMSRs]MSREntry
}

type msrList struct {
	n       uint32
	indices [1024]uint32
}

// MSRIndexes lists the MSRs whose values belong to a guest's state (api.rst, 4.3).
func (s *System) MSRIndexes() ([]uint32, error) {
	l := &msrList{n: uint32(len(msrList{}.indices))}
	if _, err := ioctlPtr(s.fd, ioGetMSRIndexList, l); err != nil {
		if errors.Is(err, unix.E2BIG) {
			return nil, fmt.Errorf("KVM_GET_MSR_INDEX_LIST: more than %d MSRs: %w", len(l.indices), err)
		}
		return nil, fmt.Errorf("KVM_GET_MSR_INDEX_LIST: %w", err)
	}
	return l.indices[:min(int(l.n), len(l.indices))], nil
}

// GetMSRs reads m.N MSRs and returns how many KVM has read before one failed (api.rst, 4.18).
func (c *VCPU) GetMSRs(m *MSRs) (int, error) {
	n, err := ioctlPtr(c.fd, ioGetMSRs, m)
	if err != nil {
		return 0, fmt.Errorf("KVM_GET_MSRS: %w", err)
	}
	return n, nil
}

// SetMSRs is its counterpart (api.rst, 4.19).
func (c *VCPU) SetMSRs(m *MSRs) (int, error) {
	n, err := ioctlPtr(c.fd, ioSetMSRs, m)
	if err != nil {
		return 0, fmt.Errorf("KVM_SET_MSRS: %w", err)
	}
	return n, nil
}
