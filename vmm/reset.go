package vmm

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// resetStep is how many pages of guest memory a reset clears at once, without a pause between: some
// milliseconds, and 64 MiB for the next checkpoint to tell of.
const resetStep = 16384

// ioapicInputs is the number of inputs of the IOAPIC.
const ioapicInputs = 24

// powerOnState is what KVM's own devices are when a machine is made. The vCPUs keep theirs.
type powerOnState struct {
	pit   kvm.PIT
	chips [kvm.IRQChips]kvm.IRQChip
}

// keepPowerOn notes the power-on state. Nothing has run yet, and no thread is there.
func (m *Machine) keepPowerOn() error {
	if err := m.vm.PITState(&m.powerOn.pit); err != nil {
		return err
	}
	for i := range m.powerOn.chips {
		if err := m.vm.IRQChipState(i, &m.powerOn.chips[i]); err != nil {
			return err
		}
	}
	for _, v := range m.vcpus {
		if err := v.keepPowerOn(); err != nil {
			return err
		}
	}
	return nil
}

func (v *vcpu) keepPowerOn() (err error) {
	c, s := v.kvm, &v.powerOn
	s.msrs = v.state.msrs
	s.xsave = make([]byte, len(v.state.xsave))
	if s.mp, err = c.MPState(); err != nil {
		return err
	}
	for _, read := range []func() error{
		func() error { return c.Regs(&s.regs) },
		func() error { return c.Sregs(&s.sregs) },
		func() error { return c.Events(&s.events) },
		func() error { return c.DebugRegs(&s.debug) },
		func() error { return c.LAPIC(&s.lapic) },
		func() error { return c.XSAVE(s.xsave) },
	} {
		if err := read(); err != nil {
			return err
		}
	}
	if v.m.model.XCR0() != 0 {
		if err := c.XCRs(&s.xcrs); err != nil {
			return err
		}
	}
	if n, err := c.GetMSRs(&s.msrs); err != nil {
		return err
	} else if n < int(s.msrs.N) {
		return fmt.Errorf("vCPU %d: KVM does not read MSR %#x", v.id, s.msrs.Entries[n].Index)
	}
	return s.takeClock(new(vcpuClock)) // time goes on
}

// ErrPoweredOff says that a guest has switched itself off: there is nothing to be reset.
var ErrPoweredOff = errors.New("the guest has switched itself off")

// Reset brings the machine back to its power-on state, whatever its guest is doing, and has it boot anew
// from what the machine was made with: what the guest has loaded or written before is gone, but for its
// disks. It returns when the guest runs again. The host's part of the machine stays as it is.
//
// Seen from outside it is one more thing that happens in the running epoch: what the guest wrote to its
// disks and said before is not touched, its requests in flight are dropped as by a power cut, memory
// counts as written, everything else is state. It may take a while. Pauses are possible in between, and
// between, if it is not nil, is called where one is welcome: memory that is given back adds up otherwise.
// A capture that is taken meanwhile says that the guest has asked for a reset: whoever restores it begins
// the reset anew.
//
// A reset waits for the end of a stay. ErrStopped: the machine was stopped, the reset is not complete.
func (m *Machine) Reset(between func()) error {
	m.resets.Lock()
	defer m.resets.Unlock()
	g := &m.gate
	g.Lock()
	if g.closing || !g.started {
		g.Unlock()
		return ErrStopped
	}
	if g.power == platform.PowerOff {
		g.Unlock()
		return ErrPoweredOff
	}
	run := g.runs
	g.power, g.told = platform.Reset, true
	m.callOut()
	g.Unlock()

	err := m.exclusive(run, m.resetDevices)
	for page := 0; err == nil && page < m.ram.Pages(); {
		err = m.exclusive(run, func() (err error) {
			page, err = m.ram.Clear(page, resetStep)
			return err
		})
		if err == nil && between != nil {
			between()
		}
	}
	if err == nil {
		err = m.exclusive(run, m.bootAgain)
	}
	if errors.Is(err, ErrStopped) {
		m.Lock()
		m.copies = nil
		m.Unlock()
		return err
	}
	if err != nil {
		return fmt.Errorf("reset the machine: %w", err)
	}
	return nil
}

// resetDevices ends what the devices have under way and brings them to their power-on state.
func (m *Machine) resetDevices() error {
	m.Lock()
	m.copies = make([]func(), 0)
	m.suspend()
	m.Unlock()
	m.drain()
	m.Lock()
	defer m.Unlock()
	m.powerOnDevices()
	return nil
}

// powerOnDevices brings all devices to their power-on state. The device lock is held.
func (m *Machine) powerOnDevices() {
	for _, d := range m.devices.all {
		if r, ok := d.(platform.Resetter); ok {
			r.Reset()
		}
	}
}

// bootAgain brings the vCPUs and KVM's devices to their power-on state, loads the guest and lets it run.
func (m *Machine) bootAgain() error {
	m.Lock()
	defer m.Unlock()
	// The end of a stay may have set the devices going.
	m.suspend()
	m.powerOnDevices()
	for gsi := range ioapicInputs {
		if err := m.vm.SetLine(gsi, false); err != nil {
			return err
		}
	}
	if err := m.resetVCPUs(); err != nil {
		return err
	}
	for i := range m.powerOn.chips {
		if err := m.vm.SetIRQChipState(&m.powerOn.chips[i]); err != nil {
			return err
		}
	}
	if err := m.vm.SetPITState(&m.powerOn.pit); err != nil {
		return err
	}
	if err := m.load(); err != nil {
		return err
	}
	if err := m.activate(); err != nil {
		return fmt.Errorf("start the guest's devices: %w", err)
	}
	copies := m.copies
	m.copies = nil
	for _, again := range copies {
		again()
	}
	m.gate.Lock()
	m.gate.power, m.gate.told = 0, false
	m.gate.Unlock()
	return nil
}

// resetVCPUs brings the vCPUs to their power-on state. Their time stamp counters go on, without what the
// guest has added to them.
func (m *Machine) resetVCPUs() error {
	adjust := make([]uint64, len(m.vcpus))
	for i, v := range m.vcpus {
		v.abandonAccess()
		// Asking lets it take a start-up message that is on its way, which would wait for the new guest.
		if _, err := v.kvm.MPState(); err != nil {
			return err
		}
		var err error
		if adjust[i], err = getMSR(v.kvm, msrTSCAdjust); err != nil {
			return err
		}
		if err := v.powerOn.write(v); err != nil {
			return err
		}
		v.halfDone, v.synced = false, false
		v.fault.Store(nil)
	}
	return m.unadjustTSC(adjust)
}

// abandonAccess ends an access to a damaged page that KVM waits for: it would be completed into the
// registers of the new guest. The vCPU's thread is at the gate.
func (v *vcpu) abandonAccess() {
	f := v.fault.Load()
	if f == nil || !f.access {
		return
	}
	runtime.LockOSThread() // KVM_RUN sets this thread's signal mask meanwhile
	defer runtime.UnlockOSThread()
	const pieces = 16 // more than an instruction accesses
	for range pieces {
		a := v.kvm.MMIO()
		if !a.Write {
			for i := range a.Data {
				a.Data[i] = 0xff
			}
		}
		v.kvm.SetImmediateExit(true)
		if err := v.kvm.Run(); err != nil || v.kvm.Exit() != kvm.ExitMMIO {
			return
		}
	}
}
