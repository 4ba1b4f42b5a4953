package vmm

import (
	"fmt"
	"slices"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// MSRs with a treatment of their own (Intel SDM volume 4; AMD APM volume 2, appendix A).
const (
	msrTSC         = 0x10
	msrTSCDeadline = 0x6e0
)

// savedMSRs are the MSRs whose values a guest would miss. KVM's own list has more: those that only
// say what the host is like, performance counters and debug stores, which guests are not shown, and
// Hyper-V's. The order is the order of restoring; the two with a treatment of their own come last.
var savedMSRs = []uint32{
	0x174, 0x175, 0x176, // SYSENTER
	0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102, // STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE
	0xc000_0103,  // TSC_AUX
	0x277,        // PAT
	0x3a,         // FEATURE_CONTROL
	0x3b,         // TSC_ADJUST
	0x48,         // SPEC_CTRL
	0xc001_011f,  // VIRT_SPEC_CTRL
	0xe1,         // UMWAIT_CONTROL
	0x122,        // TSX_CTRL
	0x140,        // MISC_FEATURES_ENABLES
	0x17a, 0x17b, // MCG_STATUS, MCG_CTL
	0x1a0,        // MISC_ENABLE
	0x1c4, 0x1c5, // XFD, XFD_ERR
	0x1d9,        // DEBUGCTL
	0xc001_0015,  // HWCR
	0xd90,        // BNDCFGS
	0xda0,        // XSS
	0x6a0, 0x6a2, // U_CET, S_CET
	0x6a4, 0x6a5, 0x6a6, 0x6a7, 0x6a8, // shadow stack pointers
	0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01, // kvmclock: wall clock and system time, old and new
	0x4b56_4d03,            // steal time
	0x4b56_4d04,            // PV EOI
	0x4b56_4d05,            // poll control
	msrTSC, msrTSCDeadline, //
}

// mtrrs are not in KVM's list, although they can be read and set.
var mtrrs = func() []uint32 {
	l := []uint32{0x2ff, 0x250, 0x258, 0x259}
	for i := uint32(0x268); i <= 0x26f; i++ {
		l = append(l, i)
	}
	for i := uint32(0x200); i <= 0x20f; i++ {
		l = append(l, i)
	}
	return l
}()

// knownMSR says whether an MSR may occur in a saved state.
func knownMSR(index uint32) bool {
	return slices.Contains(savedMSRs, index) || slices.Contains(mtrrs, index)
}

// usableMSRs are those that this host's KVM has: it gives a value and takes it back.
func usableMSRs(sys *kvm.System, c *kvm.VCPU) ([]uint32, error) {
	has, err := sys.MSRIndexes()
	if err != nil {
		return nil, err
	}
	wanted := slices.Clone(mtrrs)
	for _, i := range savedMSRs {
		if slices.Contains(has, i) {
			wanted = append(wanted, i)
		}
	}
	var usable []uint32
	var one kvm.MSRs
	for _, i := range wanted {
		one.N, one.Entries[0] = 1, kvm.MSREntry{Index: i}
		if n, err := c.GetMSRs(&one); err != nil || n != 1 {
			continue
		}
		if i == msrTSC || i == msrTSCDeadline {
			usable = append(usable, i)
			continue
		}
		if n, err := c.SetMSRs(&one); err != nil || n != 1 {
			continue
		}
		usable = append(usable, i)
	}
	if !slices.Contains(usable, msrTSC) {
		return nil, fmt.Errorf("KVM does not give the guest's time stamp counter away")
	}
	return usable, nil
}
