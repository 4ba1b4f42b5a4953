package cpu

import "fmt"

// levels are the x86-64 micro-architecture levels (x86-64 psABI, section 3.1.1), each in addition to
// those before. Index 0 is x86-64-v1.
var levels = [...]Features{
	of("cmov cx8 fpu fxsr mmx syscall sse sse2 lm"),
	of("cx16 lahf_lm popcnt sse3 sse4_1 sse4_2 ssse3"),
	of("avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
	of("avx512f avx512bw avx512cd avx512dq avx512vl"),
}

// companions are what a guest of a level is shown beside it, where all hosts have it: what operating
// systems run on, instructions for cryptography, and the remedies against speculative execution. A level
// that hid those would be a weaker guest than its hosts.
var companions = [...]Features{
	of(`vme de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 clflush ss nx pdpe1gb rdtscp hypervisor x2apic
		tsc_deadline_timer tsc_adjust invtsc cr8_legacy misalignsse mmxext fxsr_opt 3dnowprefetch topoext
		pcid fsgsbase smep smap umip erms fsrm invpcid aes pclmulqdq rdrand rdseed adx
		spec_ctrl intel_stibp ssbd flush_l1d arch_capabilities md_clear srbds_ctrl tsx_force_abort rtm_always_abort
		intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no
		amd_ibpb amd_ibrs amd_stibp ibrs_always_on stibp_always_on ibrs_preferred ibrs_same_mode amd_ssbd virt_ssbd ssb_no amd_psfd btc_no ibpb_ret
		no_nested_data_bp lfence_rdtsc verw_clear null_sel_clr_base autoibrs sbpb ibpb_brtype srso_no srso_user_kernel_no tsa_sq_no tsa_l1_no
		kvmclock kvm_nopiodelay kvmclock2 kvm_steal_time kvm_pv_eoi kvm_pv_unhalt kvm_pv_tlb_flush kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvmclock_stable`),
	{},
	of("xsaveopt xsavec xgetbv1 xsaves xsaveerptr"),
	{},
}

// upTo are the features of levels 1 to n, with their companions in the second set.
func upTo(n int) (must, may Features) {
	for i := range n {
		must, may = must.Or(levels[i]), may.Or(companions[i])
	}
	return must, may
}

// Level is the highest micro-architecture level that the features reach; 0: not even the first.
func (f Features) Level() int {
	for i, l := range levels {
		if !l.Without(f).IsEmpty() {
			return i
		}
	}
	return len(levels)
}

// LevelName is what a level is called, for people.
func LevelName(n int) string {
	if n == 0 {
		return "below x86-64-v1"
	}
	return fmt.Sprintf("x86-64-v%d", n)
}
