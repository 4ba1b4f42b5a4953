package vmm

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/pollux-ha/pollux/vmm/kvm"
)

// guestClock is the time at which a loaded machine goes on. Loading state does not start it: it is
// set by Start, from which moment the guest's clocks run again.
type guestClock struct {
	loaded   bool
	advance  time.Duration
	kvmclock time.Duration
	vcpus    []vcpuClock
}

// vcpuClock is what a vCPU's state says of time.
type vcpuClock struct {
	tsc      uint64
	adjust   uint64    // what the guest has added to it, as its TSC_ADJUST says
	deadline uint64    // of the LAPIC's timer, in TSC units; 0: none
	wall     [2]uint64 // where the guest wants kvmclock's wall time, by the MSRs of wallClockMSRs; 0: nowhere
}

// wallClockMSRs have KVM write the wall time at kvmclock's zero into guest memory, once, when they are set
// (Documentation/virt/kvm/x86/msr.rst). Set while a checkpoint is loaded they would make a replica's memory
// differ from its primary's.
var wallClockMSRs = [2]uint32{0x11, 0x4b56_4d00}

// takeClock moves what belongs to time from a vCPU's state to where it waits for Start.
func (s *vcpuState) takeClock(c *vcpuClock) error {
	var t vcpuClock
	var ok bool
	if t.tsc, ok = s.take(msrTSC); !ok {
		return fmt.Errorf("%w: no time stamp counter", ErrState)
	}
	t.deadline, _ = s.take(msrTSCDeadline)
	for _, e := range s.msrs.Entries[:s.msrs.N] {
		if e.Index == msrTSCAdjust {
			t.adjust = e.Value // KVM takes it as it is: the counter does not move by it
		}
	}
	for i, index := range wallClockMSRs {
		t.wall[i], _ = s.take(index)
	}
	*c = t
	return nil
}

// AdvanceClock says, before Start, how much later than the loaded checkpoint it is: the guest's TSC
// and kvmclock go on from there. Time never goes backwards: a negative d counts as 0.
func (m *Machine) AdvanceClock(d time.Duration) {
	m.Lock()
	defer m.Unlock()
	m.clock.advance = max(d, 0)
}

// advanceDevices moves the clocks of the devices on. The device lock is held.
func (m *Machine) advanceDevices(d time.Duration) {
	for _, part := range m.devices.all {
		if a, ok := part.(interface{ Advance(time.Duration) }); ok {
			a.Advance(d)
		}
	}
}

// setClock brings the loaded times, moved on, into KVM.
func (m *Machine) setClock() error {
	c := &m.clock
	if !c.loaded {
		return nil
	}
	// Without what the guest has added, the vCPUs' counters are in step; they were read one after the
	// other. The latest reading is the one that none has been beyond.
	base := c.vcpus[0].tsc - c.vcpus[0].adjust
	for _, v := range c.vcpus {
		if t := v.tsc - v.adjust; int64(t-base) > 0 {
			base = t
		}
	}
	hi, lo := bits.Mul64(uint64(c.advance), uint64(m.tscKHz))
	delta, _ := bits.Div64(hi%1_000_000, lo, 1_000_000) // ns * kHz / 10^6
	tsc := make([]uint64, len(m.vcpus))
	for i, v := range c.vcpus {
		tsc[i] = base + delta + v.adjust
	}
	if err := m.setTSC(tsc); err != nil {
		return err
	}
	// Read later than the counters, so never behind what the guest has made of them. KVM is not told of the
	// wall time: hosts' wall clocks differ, and step.
	if err := m.vm.SetClock(c.kvmclock + c.advance); err != nil {
		return err
	}
	for i, v := range m.vcpus {
		for j, at := range c.vcpus[i].wall {
			if at != 0 {
				if err := setMSR(v.kvm, wallClockMSRs[j], at); err != nil {
					return err
				}
			}
		}
		if d := c.vcpus[i].deadline; d != 0 {
			if err := setMSR(v.kvm, msrTSCDeadline, d); err != nil {
				return err
			}
		}
		v.kvm.ClockPaused()
	}
	c.loaded, c.advance = false, 0
	return nil
}

// setTSC makes the vCPUs' time stamp counters go on from the given values, all as of now.
func (m *Machine) setTSC(tsc []uint64) error {
	first := m.vcpus[0].kvm
	if first.HasTSCOffset() {
		offset, err := first.TSCOffset()
		if err != nil {
			return err
		}
		now, err := getMSR(first, msrTSC)
		if err != nil {
			return err
		}
		for i, v := range m.vcpus {
			if err := v.kvm.SetTSCOffset(tsc[i] - (now - offset)); err != nil {
				return err
			}
		}
		return nil
	}
	for i, v := range m.vcpus {
		if i == 0 || tsc[i] != tsc[i-1] {
			// KVM takes a value near the one that it expects for an attempt to keep the vCPUs in
			// step and goes on with its own (kvm_synchronize_tsc). A far one first breaks that;
			// those that follow with the same value are in step with this one just so.
			if err := setMSR(v.kvm, msrTSC, tsc[i]+1<<50); err != nil {
				return err
			}
		}
		if err := setMSR(v.kvm, msrTSC, tsc[i]); err != nil {
			return err
		}
	}
	return nil
}

// unadjustTSC takes back what the guest has added to the vCPUs' counters, each by its own amount: they are
// in step again.
func (m *Machine) unadjustTSC(adjust []uint64) error {
	adjusted := false
	for _, a := range adjust {
		adjusted = adjusted || a != 0
	}
	if !adjusted {
		return nil
	}
	now, err := getMSR(m.vcpus[0].kvm, msrTSC)
	if err != nil {
		return err
	}
	tsc := make([]uint64, len(m.vcpus))
	for i := range tsc {
		tsc[i] = now - adjust[0]
	}
	return m.setTSC(tsc)
}

func setMSR(c *kvm.VCPU, index uint32, value uint64) error {
	one := kvm.MSRs{N: 1}
	one.Entries[0] = kvm.MSREntry{Index: index, Value: value}
	n, err := c.SetMSRs(&one)
	if err == nil && n != 1 {
		err = fmt.Errorf("KVM does not take %#x for MSR %#x of vCPU %d", value, index, c.ID())
	}
	return err
}

// getMSR reads an MSR; one that the vCPU does not have is 0.
func getMSR(c *kvm.VCPU, index uint32) (uint64, error) {
	one := kvm.MSRs{N: 1}
	one.Entries[0].Index = index
	n, err := c.GetMSRs(&one)
	if err != nil || n != 1 {
		return 0, err
	}
	return one.Entries[0].Value, nil
}
