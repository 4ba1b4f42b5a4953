package vmm

import (
	"fmt"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// vcpuFault is a memory fault that a vCPU waits with.
type vcpuFault struct {
	page int
	// access is set where KVM has handed us the access as if RAM were a device: it is carried out
	// on the healed page, and until then the vCPU's state can't be saved.
	access bool
}

// inRAM says whether a guest-physical address is backed by RAM.
func (m *Machine) inRAM(gpa uint64) bool {
	_, err := m.ram.View(gpa, 1)
	return err == nil
}

// drainSignals takes the signals of this thread that ended KVM_RUN.
func (v *vcpu) drainSignals() {
	var info siginfo
	for takeSignal(&vcpuSignals, &info) {
		if unix.Signal(info.signo) != unix.SIGBUS {
			continue
		}
		off, ok := offsetIn(v.m.ram.Bytes(), info.addr)
		if !ok {
			v.m.hostFault(fmt.Errorf("memory error outside of the guest's RAM, of kind %d", info.code))
			continue
		}
		gpa := v.m.gpaOf(off)
		if info.code == busAO {
			v.m.reportFault(MemoryFault{Page: off / memory.PageSize, GPA: gpa, VCPU: -1, Optional: true})
			continue
		}
		v.faultAt(gpa, false)
	}
}

// gpaOf translates an offset in the RAM file.
func (m *Machine) gpaOf(off int) uint64 {
	for _, r := range m.ram.Regions() {
		if o := uint64(off); o >= r.Offset && o-r.Offset < r.Size {
			return r.GPA + o - r.Offset
		}
	}
	return 0
}

func (m *Machine) pageOf(gpa uint64) int {
	for _, r := range m.ram.Regions() {
		if gpa >= r.GPA && gpa-r.GPA < r.Size {
			return int((gpa - r.GPA + r.Offset) / memory.PageSize)
		}
	}
	return -1
}

// faultAt makes the vCPU wait for Heal.
func (v *vcpu) faultAt(gpa uint64, access bool) {
	if v.m.cfg.OnMemoryFault == nil {
		v.crash("a page of guest memory can't be read", zap.Uint64("gpa", gpa))
		return
	}
	f := &vcpuFault{page: v.m.pageOf(gpa), access: access}
	v.fault.Store(f)
	v.m.reportFault(MemoryFault{Page: f.page, GPA: gpa, VCPU: v.id})
}

func (m *Machine) reportFault(f MemoryFault) {
	m.log.Error("a page of guest memory can't be read", zap.Int("page", f.Page), zap.Uint64("gpa", f.GPA),
		zap.Int("vcpu", f.VCPU), zap.Bool("action_optional", f.Optional))
	if m.cfg.OnMemoryFault != nil {
		go m.cfg.OnMemoryFault(f)
	}
}

// awaitHeal parks the thread until its page has been healed or it is called to the gate.
func (v *vcpu) awaitHeal() {
	g := &v.m.gate
	g.Lock()
	for v.fault.Load() != nil && !v.m.attention.Load() {
		g.wait(false)
	}
	g.Unlock()
}

// Heal puts a fresh page with data in the place of a damaged one, and the vCPUs that wait for it go
// on. It may be called at any time. The page does not count as written: data is what the twin
// already has.
func (m *Machine) Heal(page int, data []byte) error {
	if err := m.ram.Replace(page, data); err != nil {
		return fmt.Errorf("heal a page of guest memory: %w", err)
	}
	g := &m.gate
	g.Lock()
	defer g.Unlock()
	for _, v := range m.vcpus {
		f := v.fault.Load()
		if f == nil || f.page != page {
			continue
		}
		if f.access {
			v.accessRAM()
		}
		v.fault.Store(nil)
	}
	g.broadcast()
	return nil
}

// accessRAM carries out an access to RAM that KVM took for one to a device. The vCPU's thread
// waits meanwhile.
func (v *vcpu) accessRAM() {
	a := v.kvm.MMIO()
	var err error
	if a.Write {
		err = v.m.ram.Write(a.Addr, a.Data)
	} else {
		err = v.m.ram.Read(a.Addr, a.Data)
	}
	if err != nil { // it ends beyond the RAM: a device's part, and nobody is there
		for i := range a.Data {
			a.Data[i] = 0xff
		}
	}
	v.halfDone = true
}
