package cpu

import (
	"fmt"
	"slices"
	"strings"
)

// MSR is a model-specific register whose value is a part of a vCPU's state (Intel SDM volume 4; AMD APM
// volume 2, appendix A; Documentation/virt/kvm/x86/msr.rst).
type MSR struct {
	Index uint32
	Name  string
	// Needs are features, of which one makes the register necessary. "" is one that every guest has;
	// "-" is one that is saved where KVM has it.
	Needs string
	// Default is the value of a guest that has never touched it: a host that lacks the register takes that.
	Default uint64
	// Unlisted registers are not in KVM_GET_MSR_INDEX_LIST, at least not of all kernels, although KVM reads
	// and sets them.
	Unlisted bool
}

// Registers with a treatment of their own.
const (
	MSRTSC         = 0x10
	MSRTSCAdjust   = 0x3b
	MSRTSCDeadline = 0x6e0
	MSRArchCaps    = 0x10a
)

// MCEBanks is the number of machine check banks of a guest. KVM's default of 32 would be 128 registers
// in each checkpoint.
const MCEBanks = 2

// MSRs are all that a checkpoint carries, in the order in which they are restored. Not among them are
// those that only say what the host is like, performance counters, debug stores and tracing, nested
// virtualization's and Hyper-V's, which guests are not shown.
//
// SYSENTER and SYSCALL's come first; steal time, PV EOI and kvmclock follow what they depend on, the LAPIC
// and the APIC base, which are restored before all MSRs. The last four are set when the guest starts:
// kvmclock's wall time, which KVM writes into the guest's memory when it is set, and the time stamp
// counter with its timer.
var MSRs = func() []MSR {
	list := []MSR{
		{Index: 0x174, Name: "SYSENTER_CS"}, {Index: 0x175, Name: "SYSENTER_ESP"}, {Index: 0x176, Name: "SYSENTER_EIP"},
		{Index: 0xc000_0081, Name: "STAR"}, {Index: 0xc000_0082, Name: "LSTAR"}, {Index: 0xc000_0083, Name: "CSTAR"},
		{Index: 0xc000_0084, Name: "SYSCALL_MASK"}, {Index: 0xc000_0102, Name: "KERNEL_GS_BASE"},
		{Index: 0xc000_0103, Name: "TSC_AUX", Needs: "rdtscp rdpid"},
		{Index: 0x277, Name: "PAT"},
		{Index: 0x3a, Name: "FEATURE_CONTROL", Needs: "-"},
		{Index: 0x3b, Name: "TSC_ADJUST", Needs: "tsc_adjust"},
		{Index: 0x48, Name: "SPEC_CTRL", Needs: "spec_ctrl intel_stibp ssbd amd_ibrs amd_stibp amd_ssbd"},
		{Index: 0xc001_011f, Name: "VIRT_SPEC_CTRL", Needs: "virt_ssbd"},
		{Index: 0xe1, Name: "UMWAIT_CONTROL", Needs: "waitpkg"},
		{Index: 0x122, Name: "TSX_CTRL", Needs: "-"},
		{Index: 0x8b, Name: "UCODE_REV", Needs: "-"},
		{Index: 0xce, Name: "PLATFORM_INFO", Needs: "-", Default: 1 << 31},
		{Index: 0x140, Name: "MISC_FEATURES_ENABLES", Needs: "-"},
		{Index: 0x1a0, Name: "MISC_ENABLE"},
		{Index: 0x1d9, Name: "DEBUGCTL", Needs: "-"}, // older kernels complain in their log when it is set
		{Index: 0x1fc, Name: "POWER_CTL", Needs: "-"},
		{Index: 0x9e, Name: "SMBASE", Needs: "-", Default: 0x30000},
		{Index: 0x34, Name: "SMI_COUNT", Needs: "-"},
		{Index: 0xc001_0015, Name: "HWCR", Needs: "-", Default: 1 << 24},
		{Index: 0xc001_1029, Name: "DE_CFG", Needs: "-", Unlisted: true},
		{Index: 0xda0, Name: "XSS", Needs: "xsaves"},
		{Index: 0x17a, Name: "MCG_STATUS", Needs: "mca"}, {Index: 0x17b, Name: "MCG_CTL", Needs: "-"},
	}
	for bank := range uint32(MCEBanks) {
		for i, what := range []string{"CTL", "STATUS", "ADDR", "MISC"} {
			list = append(list, MSR{Index: 0x400 + 4*bank + uint32(i), Name: fmt.Sprintf("MC%d_%s", bank, what), Needs: "-", Unlisted: true})
		}
	}
	mtrr := func(index uint32, name string) {
		list = append(list, MSR{Index: index, Name: "MTRR_" + name, Needs: "mtrr", Unlisted: true})
	}
	mtrr(0x250, "FIX64K")
	mtrr(0x258, "FIX16K_0")
	mtrr(0x259, "FIX16K_1")
	for i := range uint32(8) {
		mtrr(0x268+i, fmt.Sprintf("FIX4K_%d", i))
	}
	for i := range uint32(8) {
		mtrr(0x200+2*i, fmt.Sprintf("BASE%d", i))
		mtrr(0x201+2*i, fmt.Sprintf("MASK%d", i))
	}
	mtrr(0x2ff, "DEF_TYPE") // the last of them: it switches them on
	return append(list,
		MSR{Index: 0x4b56_4d01, Name: "KVM_SYSTEM_TIME", Needs: "kvmclock kvmclock2"},
		MSR{Index: 0x4b56_4d03, Name: "KVM_STEAL_TIME", Needs: "kvm_steal_time"},
		MSR{Index: 0x4b56_4d04, Name: "KVM_PV_EOI", Needs: "kvm_pv_eoi"},
		MSR{Index: 0x4b56_4d05, Name: "KVM_POLL_CONTROL", Needs: "kvm_poll_control"},
		MSR{Index: 0x11, Name: "KVM_WALL_CLOCK_OLD", Needs: "-"},
		MSR{Index: 0x4b56_4d00, Name: "KVM_WALL_CLOCK", Needs: "-"},
		MSR{Index: MSRTSC, Name: "TSC"},
		MSR{Index: MSRTSCDeadline, Name: "TSC_DEADLINE", Needs: "tsc_deadline_timer"},
	)
}()

// FindMSR finds a register of the list.
func FindMSR(index uint32) (MSR, bool) {
	for _, r := range MSRs {
		if r.Index == index {
			return r, true
		}
	}
	return MSR{}, false
}

// necessary says whether a guest with these features can't do without the register.
func (r MSR) necessary(f Features) bool {
	switch r.Needs {
	case "":
		return true
	case "-":
		return false
	}
	for _, name := range strings.Fields(r.Needs) {
		if f.Has(name) {
			return true
		}
	}
	return false
}

// WantedBy says whether a checkpoint of a guest with these features holds the register, where KVM has it.
func (r MSR) WantedBy(f Features) bool { return r.Needs == "-" || r.necessary(f) }

// MSRSet is a set of registers by their index, ascending.
type MSRSet []uint32

// Add puts a register in.
func (s *MSRSet) Add(index uint32) {
	if i, found := slices.BinarySearch(*s, index); !found {
		*s = slices.Insert(*s, i, index)
	}
}

// Has says whether a register is in the set.
func (s MSRSet) Has(index uint32) bool {
	_, found := slices.BinarySearch(s, index)
	return found
}

// lacking lists the registers that a guest with these features needs and the set does not have.
func (s MSRSet) lacking(f Features) []string {
	var list []string
	for _, r := range MSRs {
		if r.necessary(f) && !s.Has(r.Index) {
			list = append(list, fmt.Sprintf("%s (%#x)", r.Name, r.Index))
		}
	}
	return list
}

// String lists the set as ranges of hexadecimal numbers.
func (s MSRSet) String() string {
	var b strings.Builder
	for i := 0; i < len(s); {
		last := i
		for last+1 < len(s) && s[last+1] == s[last]+1 {
			last++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%x", s[i])
		if last > i {
			fmt.Fprintf(&b, "-%x", s[last])
		}
		i = last + 1
	}
	return b.String()
}
