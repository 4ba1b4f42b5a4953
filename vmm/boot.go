package vmm

import (
	"fmt"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// Boot loads the kernel and puts the first vCPU at its entry. The others wait for their start-up
// message. The machine has not run before.
func (m *Machine) Boot() error {
	m.Lock()
	defer m.Unlock()
	if err := m.mustBeIdle(); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if m.cfg.Firmware != nil {
		// A reset keeps the firmware that is there, as it does on any machine.
		if err := m.devices.flash.Prepare(m.cfg.Firmware.Image); err != nil {
			return fmt.Errorf("boot: %w", err)
		}
	}
	if err := m.load(); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	m.ready = true
	return nil
}

// load puts what the guest begins with into memory that is all zero, and the first vCPU, which is in its
// power-on state as are the others, at its entry. It serves the first boot and every reset: what it takes must
// not have changed since the machine was made. The device lock is held.
func (m *Machine) load() error {
	if m.cfg.Firmware != nil {
		return m.vcpus[0].enter(boot.ResetVector())
	}
	e, err := boot.Load(m.ram, boot.Params{Kernel: m.cfg.Kernel, Initrd: m.cfg.Initrd, Cmdline: m.cfg.Cmdline, CPUs: m.cfg.CPUs})
	if err != nil {
		return err
	}
	return m.vcpus[0].enter(e)
}

// enter sets the registers of a vCPU that is to run.
func (v *vcpu) enter(e boot.Entry) error {
	var s kvm.Sregs
	if err := v.kvm.Sregs(&s); err != nil {
		return err
	}
	data := segment(e.Data)
	s.CS, s.DS, s.ES, s.FS, s.GS, s.SS = segment(e.CS), data, data, data, data, data
	s.TR, s.LDT = segment(e.TR), segment(e.LDT)
	s.GDT = kvm.Table{Base: e.GDT.Base, Limit: e.GDT.Limit}
	s.IDT = kvm.Table{Base: e.IDT.Base, Limit: e.IDT.Limit}
	s.CR0, s.CR3, s.CR4, s.EFER = e.CR0, e.CR3, e.CR4, e.EFER
	if err := v.kvm.SetSregs(&s); err != nil {
		return err
	}
	v.synced = false
	return v.kvm.SetRegs(&kvm.Regs{RIP: e.RIP, RSP: e.RSP, RSI: e.RSI, RBX: e.RBX, RFLAGS: e.RFLAGS})
}

func segment(s boot.Segment) kvm.Segment {
	return kvm.Segment{Base: s.Base, Limit: s.Limit, Selector: s.Selector, Type: s.Type, Present: s.Present,
		DPL: s.DPL, DB: s.DB, S: s.S, L: s.L, G: s.G, Unusable: s.Unusable}
}
