package kvm

import (
	"testing"
	"unsafe"
)

// The sizes are those of the C structures on x86-64.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"kvm_regs", unsafe.Sizeof(Regs{}), 144},
		{"kvm_segment", unsafe.Sizeof(Segment{}), 24},
		{"kvm_translation", unsafe.Sizeof(translation{}), 24},
		{"kvm_sregs", unsafe.Sizeof(Sregs{}), 312},
		{"kvm_sregs2", unsafe.Sizeof(Sregs2{}), 320},
		{"kvm_msrs", unsafe.Offsetof(MSRs{}.Entries), 8},
		{"kvm_msr_entry", unsafe.Sizeof(MSREntry{}), 16},
		{"kvm_cpuid_entry2", unsafe.Sizeof(CPUIDEntry{}), 40},
		{"kvm_clock_data", unsafe.Sizeof(clockData{}), 48},
		{"kvm_enable_cap", unsafe.Sizeof(enableCap{}), 104},
		{"kvm_userspace_memory_region", unsafe.Sizeof(userspaceMemoryRegion{}), 32},
		{"kvm_dirty_log", unsafe.Sizeof(dirtyLog{}), 16},
		{"kvm_clear_dirty_log", unsafe.Sizeof(clearDirtyLog{}), 24},
		{"kvm_ioeventfd", unsafe.Sizeof(ioEventFD{}), 64},
		{"kvm_msi", unsafe.Sizeof(msi{}), 32},
		{"kvm_pit_config", unsafe.Sizeof(pitConfig{}), 64},
		{"kvm_run.exit_reason", unsafe.Offsetof(run{}.exitReason), 8},
		{"kvm_run.io", unsafe.Offsetof(run{}.exit), 32},
		{"kvm_run.kvm_valid_regs", unsafe.Offsetof(run{}.validRegs), 288},
		{"kvm_run.s", unsafe.Offsetof(run{}.regs), 304},
		{"kvm_sync_regs", unsafe.Sizeof(run{}) - unsafe.Offsetof(run{}.regs), 520},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, the kernel has %d", c.name, c.got, c.want)
		}
	}
}
