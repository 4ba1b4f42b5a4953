package vmm

import (
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// HostCPU asks what processor this machine and its kernel can give to guests. It makes a machine for the
// purpose, without memory, and takes about 10 ms.
func HostCPU() (cpu.Host, error) {
	sys, err := kvm.Open()
	if err != nil {
		return cpu.Host{}, err
	}
	defer sys.Close()
	if err := sys.Check(); err != nil {
		return cpu.Host{}, err
	}
	vm, err := sys.CreateVM()
	if err != nil {
		return cpu.Host{}, err
	}
	defer vm.Close()
	if err := vm.CreateIRQChip(); err != nil { // the LAPIC's registers need one
		return cpu.Host{}, err
	}
	c, err := vm.CreateVCPU(0)
	if err != nil {
		return cpu.Host{}, err
	}
	defer c.Close()
	return probeCPU(sys, c)
}

// probeCPU asks by way of a vCPU that is new. It leaves the host's own CPUID in it.
func probeCPU(sys *kvm.System, c *kvm.VCPU) (cpu.Host, error) {
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return cpu.Host{}, err
	}
	leaves := make([]cpu.Leaf, 0, len(supported))
	for _, e := range supported {
		leaves = append(leaves, cpu.Leaf{
			Function: e.Function, Index: e.Index, Indexed: e.Flags&kvm.CPUIDIndexed != 0, EAX: e.EAX, EBX: e.EBX, ECX: e.ECX, EDX: e.EDX,
		})
	}
	f := cpu.Facts{
		TSCScaling:  sys.Extension(kvm.CapTSCControl) != 0,
		TSCDeadline: sys.Extension(kvm.CapTSCDeadlineTimer) != 0,
	}
	if f.TSCKHz, err = c.TSCKHz(); err != nil {
		return cpu.Host{}, err
	}
	if sys.Extension(kvm.CapGetMSRFeatures) != 0 {
		f.ArchCaps, _ = sys.FeatureMSR(cpu.MSRArchCaps)
	}
	if sys.Extension(kvm.CapExceptionPayload) != 0 {
		f.Events |= cpu.ExceptionPayload
	}
	if sys.Extension(kvm.CapTripleFaultEvent) != 0 {
		f.Events |= cpu.TripleFault
	}
	f.Brand, f.Microcode = cpuInfo()
	f.Kernel = kernelRelease()
	first, err := cpu.FromLeaves(leaves, f)
	if err != nil {
		return cpu.Host{}, err
	}
	// Which registers there are can depend on what the vCPU shows.
	if err := c.SetCPUID(entries(first.Leaves(0, 1))); err != nil {
		return cpu.Host{}, err
	}
	if f.MSRs, f.MSRList, err = probeMSRs(sys, c); err != nil {
		return cpu.Host{}, err
	}
	return cpu.FromLeaves(leaves, f)
}

// entries is what KVM wants to have of leaves.
func entries(leaves []cpu.Leaf) []kvm.CPUIDEntry {
	out := make([]kvm.CPUIDEntry, len(leaves))
	for i, l := range leaves {
		out[i] = kvm.CPUIDEntry{Function: l.Function, Index: l.Index, EAX: l.EAX, EBX: l.EBX, ECX: l.ECX, EDX: l.EDX}
		if l.Indexed {
			out[i].Flags = kvm.CPUIDIndexed
		}
	}
	return out
}

// probeMSRs finds those registers of a checkpoint that this host's KVM has: it gives a value and takes it
// back. list is a digest of all that KVM lists.
func probeMSRs(sys *kvm.System, c *kvm.VCPU) (usable cpu.MSRSet, list uint32, err error) {
	listed, err := sys.MSRIndexes()
	if err != nil {
		return nil, 0, err
	}
	has := make(map[uint32]bool, len(listed))
	h := fnv.New32a()
	for _, i := range listed {
		has[i] = true
		fmt.Fprintf(h, "%x ", i)
	}
	for _, r := range cpu.MSRs {
		if (has[r.Index] || r.Unlisted) && takesBack(c, r.Index) {
			usable.Add(r.Index)
		}
	}
	return usable, h.Sum32(), nil
}

// takesBack says whether KVM gives a register's value and takes it back.
func takesBack(c *kvm.VCPU, index uint32) bool {
	one := kvm.MSRs{N: 1}
	one.Entries[0].Index = index
	if n, err := c.GetMSRs(&one); err != nil || n != 1 {
		return false
	}
	if index == cpu.MSRTSC || index == cpu.MSRTSCDeadline {
		return true // to set these has effects, and nobody has a KVM where they can't be
	}
	n, err := c.SetMSRs(&one)
	return err == nil && n == 1
}

// settleMSRs looks once more, at a vCPU that shows the guest's CPU, whether all that a checkpoint is to
// hold can be read and set. What the guest can't do without is an error now, and not at a takeover.
func (m *Machine) settleMSRs(c *kvm.VCPU) error {
	var lost []string
	m.msrs = slices.DeleteFunc(m.msrs, func(index uint32) bool {
		if takesBack(c, index) {
			return false
		}
		if r, _ := cpu.FindMSR(index); r.Needs != "-" {
			lost = append(lost, fmt.Sprintf("%s (%#x)", r.Name, index))
		}
		return true
	})
	if lost != nil {
		return fmt.Errorf("this host's KVM does not save and restore the registers %s of a guest with this CPU: %w", strings.Join(lost, ", "), ErrCPU)
	}
	return nil
}

// cpuInfo is the processor's name and its microcode, as the kernel tells people.
func cpuInfo() (brand, microcode string) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", ""
	}
	first, _, _ := strings.Cut(string(b), "\n\n")
	for _, line := range strings.Split(first, "\n") {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			brand = strings.TrimSpace(value)
		case "microcode":
			microcode = strings.TrimSpace(value)
		}
	}
	return brand, microcode
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// chooseCPU decides, with the help of the first vCPU, what processor the guest sees: the configured one,
// if this host can run it, or all that the host has.
func (m *Machine) chooseCPU(sys *kvm.System, c *kvm.VCPU) error {
	host, err := probeCPU(sys, c)
	if err != nil {
		return fmt.Errorf("find out what CPU a guest can have: %w", err)
	}
	m.model = host.Model
	if m.cfg.CPU != nil {
		m.model = *m.cfg.CPU
	}
	if err := host.Check(&m.model); err != nil {
		return fmt.Errorf("this host %w: %w", err, ErrCPU)
	}
	m.digest = m.model.Digest()
	m.scaledTSC = !cpu.SameRate(m.model.TSCKHz, host.TSCKHz)
	if m.tscKHz = m.model.TSCKHz; m.tscKHz == 0 {
		m.tscKHz = host.TSCKHz
	}
	for _, r := range cpu.MSRs {
		if host.MSRs.Has(r.Index) && r.WantedBy(m.model.Features) {
			m.msrs = append(m.msrs, r.Index)
		}
	}
	for bit, c := range map[cpu.Events]kvm.Cap{cpu.ExceptionPayload: kvm.CapExceptionPayload, cpu.TripleFault: kvm.CapTripleFaultEvent} {
		if m.model.Events&bit == 0 {
			continue
		}
		if err := m.vm.EnableCap(c, 1); err != nil {
			return fmt.Errorf("let KVM tell of all pending events: %w", err)
		}
	}
	return nil
}

// shape makes a new vCPU the processor that was chosen.
func (v *vcpu) shape() error {
	m := v.m
	if m.scaledTSC {
		if err := v.kvm.SetTSCKHz(m.tscKHz); err != nil {
			return fmt.Errorf("scale the guest's time stamp counter: %w", err)
		}
	}
	if err := v.kvm.SetCPUID(entries(m.model.Leaves(v.id, m.cfg.CPUs))); err != nil {
		return err
	}
	if err := v.kvm.SetUpMCE(cpu.MCEBanks); err != nil {
		return err
	}
	if m.model.Features.Has("arch_capabilities") {
		if err := setMSR(v.kvm, cpu.MSRArchCaps, m.model.ArchCaps); err != nil {
			return err
		}
	}
	if v.id == 0 {
		if err := m.settleMSRs(v.kvm); err != nil {
			return err
		}
	}
	v.state.msrs.N = uint32(len(m.msrs))
	for i, index := range m.msrs {
		v.state.msrs.Entries[i].Index = index
	}
	return nil
}

// CPU is the processor that the guest sees.
func (m *Machine) CPU() cpu.Model { return m.model }
