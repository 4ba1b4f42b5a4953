package cpu

import (
	"fmt"
	"math/bits"
	"strings"
)

// word numbers the registers of CPUID that hold features. New ones go to the end: texts count them.
type word int

const (
	w1ECX word = iota
	w1EDX
	w7EBX // leaf 7, index 0
	w7ECX
	w7EDX
	w71EAX // leaf 7, index 1
	w71EDX
	w72EDX // leaf 7, index 2
	wD1EAX // leaf 0xd, index 1
	w81ECX // leaf 0x80000001
	w81EDX // without what AMD repeats from leaf 1
	w87EDX // leaf 0x80000007
	w88EBX // leaf 0x80000008
	w21EAX // leaf 0x80000021
	w21ECX
	wKVM // leaf 0x40000001 EAX
	words
)

// Features are the CPUID bits that a guest may be shown.
type Features [words]uint32

// vocabulary names the bits of each word from bit 0 on, as Linux names them in /proc/cpuinfo where it
// does (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst).
//
// "-" is a bit without a meaning, or one that this program does not know. A "!" marks what guests are
// not shown: its state is not in a checkpoint (nested virtualization, performance counters, tracing, AMX,
// shadow stacks), the operating system sets it or the topology does, or it tells of the host's firmware
// and power management.
var vocabulary = [words]string{
	w1ECX: "sse3 pclmulqdq !dtes64 !monitor !ds_cpl !vmx !smx !est !tm2 ssse3 !cid !sdbg fma cx16 !xtpr !pdcm " +
		"- pcid !dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave !osxsave avx f16c rdrand hypervisor",
	w1EDX: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov " +
		"pat pse36 !pn clflush - !ds !acpi mmx fxsr sse sse2 ss !ht !tm !ia64 !pbe",
	w7EBX: "fsgsbase tsc_adjust !sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm !cqm zero_fcs_fds !mpx !rdt_a " +
		"avx512f avx512dq rdseed adx smap avx512ifma !pcommit clflushopt clwb !intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
	w7ECX: "prefetchwt1 avx512vbmi umip pku !ospke waitpkg avx512_vbmi2 !shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg !tme avx512_vpopcntdq - " +
		"la57 - - - - - rdpid !kl !bus_lock_detect cldemote - movdiri movdir64b !enqcmd !sgx_lc !pks",
	w7EDX: "- - avx512_4vnniw avx512_4fmaps fsrm !uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize !hybrid " +
		"tsxldtrk - !pconfig !arch_lbr !ibt - !amx_bf16 avx512_fp16 !amx_tile !amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities !core_capabilities ssbd",
	w71EAX: "sha512 sm3 sm4 !rao_int avx_vnni avx512_bf16 !lass cmpccxadd !arch_perfmon_ext - fzrm fsrs fsrc - - - " +
		"- !fred lkgs wrmsrns !nmi_src !amx_fp16 !hreset avx_ifma - - lam !msrlist - - !invd_disable !movrs",
	w71EDX: "- - - - avx_vnni_int8 avx_ne_convert - - !amx_complex - avx_vnni_int16 - - - prefetchiti - - - - !avx10 - !apx_f - - - - - - - - - -",
	w72EDX: "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no - - - - - - - - - - - - - - - - - - - - - - - - - -",
	wD1EAX: "xsaveopt xsavec xgetbv1 xsaves !xfd - - - - - - - - - - - - - - - - - - - - - - - - - - -",
	w81ECX: "lahf_lm !cmp_legacy !svm !extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch !osvw !ibs xop !skinit !wdt - !lwp " +
		"fma4 !tce - !nodeid_msr - tbm topoext !perfctr_core !perfctr_nb - !bpext !ptsc !perfctr_llc !mwaitx - -",
	w81EDX: "- - - - - - - - - - - syscall - - - - - - - !mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
	w87EDX: "!ts !fid !vid !ttp !tm_amd !stc !100mhzsteps !hwpstate invtsc !cpb !eff_freq_ro !proc_feedback !acc_power - - - - - - - - - - - - - - - - - - -",
	w88EBX: "clzero !irperf xsaveerptr !invlpgb !rdpru - !mba - !mcommit wbnoinvd - - amd_ibpb !int_wbinvd amd_ibrs amd_stibp " +
		"ibrs_always_on stibp_always_on ibrs_preferred ibrs_same_mode - - - !amd_ppin amd_ssbd virt_ssbd ssb_no !cppc amd_psfd btc_no ibpb_ret -",
	w21EAX: "no_nested_data_bp fsgs_non_serializing lfence_rdtsc !smm_page_cfg_lock - verw_clear null_sel_clr_base !upper_addr_ignore autoibrs !no_smm_ctl_msr amd_fsrs amd_fsrc - !prefetch_ctl_msr - - " +
		"- !cpuid_user_dis !epsf - prefetchi - - - !erapsi - - sbpb ibpb_brtype srso_no srso_user_kernel_no !srso_bp_spec_reduce",
	w21ECX: "- tsa_sq_no tsa_l1_no - - - - - - - - - - - - - - - - - - - - - - - - - - - - -",
	wKVM: "kvmclock kvm_nopiodelay !kvm_mmu_op kvmclock2 !kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt " +
		"- kvm_pv_tlb_flush !kvm_asyncpf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield !kvm_asyncpf_int !kvm_msi_ext_dest_id " +
		"!kvm_hc_map_gpa !kvm_migration_control - - - - - - kvmclock_stable - - - - - - -",
}

// place is where a feature's bit is.
type place struct {
	word word
	bit  int
}

var names, places, known = index()

// index reads the vocabulary. known is what a guest may be shown.
func index() (names [words][32]string, places map[string]place, known Features) {
	places = map[string]place{}
	for w, text := range vocabulary {
		fields := strings.Fields(text)
		if len(fields) != 32 {
			panic(fmt.Sprintf("feature word %d has %d names", w, len(fields)))
		}
		for bit, name := range fields {
			if name == "-" || name[0] == '!' {
				continue
			}
			if _, twice := places[name]; twice {
				panic("feature " + name + " is named twice")
			}
			names[w][bit] = name
			places[name] = place{word(w), bit}
			known[w] |= 1 << bit
		}
	}
	return names, places, known
}

// of makes a set out of names, separated by spaces.
func of(list string) Features {
	var f Features
	for _, name := range strings.Fields(list) {
		p, ok := places[name]
		if !ok {
			panic("there is no feature " + name)
		}
		f[p.word] |= 1 << p.bit
	}
	return f
}

// Has says whether a feature is in the set, by its name.
func (f Features) Has(name string) bool {
	p, ok := places[name]
	return ok && f[p.word]&(1<<p.bit) != 0
}

// And is what is in both.
func (f Features) And(g Features) Features {
	for w := range f {
		f[w] &= g[w]
	}
	return f
}

// Or is what is in either.
func (f Features) Or(g Features) Features {
	for w := range f {
		f[w] |= g[w]
	}
	return f
}

// Without is what is in f and not in g.
func (f Features) Without(g Features) Features {
	for w := range f {
		f[w] &^= g[w]
	}
	return f
}

// IsEmpty says that there is nothing in it.
func (f Features) IsEmpty() bool { return f == Features{} }

// Names lists the set in the order of the bits.
func (f Features) Names() []string {
	var list []string
	for w, v := range f {
		for ; v != 0; v &= v - 1 {
			bit := bits.TrailingZeros32(v)
			name := names[w][bit]
			if name == "" {
				name = fmt.Sprintf("word%d.%d", w, bit)
			}
			list = append(list, name)
		}
	}
	return list
}

func (f Features) String() string { return strings.Join(f.Names(), " ") }

// follows lists what makes no sense without another feature. Operating systems check some of it and
// complain, and instructions of the second need what the first one stands for.
var follows = []struct{ needs, features string }{
	{"xsave", "avx xsaveopt xsavec xgetbv1 xsaves pku"},
	{"avx", "avx2 fma fma4 xop f16c vaes vpclmulqdq avx_vnni avx_ifma avx_vnni_int8 avx_vnni_int16 avx_ne_convert sha512 sm3 sm4"},
	{"avx2", "avx512f"},
	{"avx512f", "avx512dq avx512ifma avx512pf avx512er avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq " +
		"avx512_4vnniw avx512_4fmaps avx512_vp2intersect avx512_fp16 avx512_bf16"},
	{"xsavec", "xsaves"},
	{"pcid", "invpcid"},
	{"lm", "lahf_lm syscall la57 lam"},
	{"tsc", "tsc_deadline_timer tsc_adjust rdtscp invtsc"},
	{"kvmclock2", "kvmclock_stable"},
}

// consistent drops what makes no sense without something that is missing.
func (f Features) consistent() Features {
	for _, rule := range follows {
		if !f.Has(rule.needs) {
			f = f.Without(of(rule.features))
		}
	}
	return f
}
