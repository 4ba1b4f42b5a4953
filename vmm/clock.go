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
	tsc      []uint64 // of each vCPU
	deadline []uint64 // of each vCPU's LAPIC timer, in TSC units; 0: none
}

// AdvanceClock says, before Start, how much later than the loaded checkpoint it is: the guest's TSC
// and kvmclock go on from there. Time never goes backwards: a negative d counts as 0.
func (m *Machine) AdvanceClock(d time.Duration) {
	m.Lock()
	defer m.Unlock()
	m.clock.advance = max(d, 0)
}

// setClock brings the loaded times, moved on, into KVM.
func (m *Machine) setClock() error {
	c := &m.clock
	if !c.loaded {
		return nil
	}
	// The vCPUs' counters are in step; they were read one after the other. The latest reading is
	// the one that none has been beyond.
	var tsc uint64
	for _, t := range c.tsc {
		tsc = max(tsc, t)
	}
	hi, lo := bits.Mul64(uint64(c.advance), uint64(m.tscKHz))
	delta, _ := bits.Div64(hi%1_000_000, lo, 1_000_000) // ns * kHz / 10^6
	tsc += delta
	for i, v := range m.vcpus {
		if i == 0 {
			// KVM takes a value near the one that it expects for an attempt to keep the vCPUs in
			// step and goes on with its own (kvm_synchronize_tsc). A far one first breaks that;
			// the others are in step with this one just so.
			if err := setMSR(v.kvm, msrTSC, tsc+1<<50); err != nil {
				return err
			}
		}
		if err := setMSR(v.kvm, msrTSC, tsc); err != nil {
			return err
		}
	}
	if err := m.vm.SetClock(c.kvmclock + c.advance); err != nil {
		return err
	}
	for i, v := range m.vcpus {
		if d := c.deadline[i]; d != 0 {
			if err := setMSR(v.kvm, msrTSCDeadline, d); err != nil {
				return err
			}
		}
	}
	c.loaded, c.advance = false, 0
	return nil
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
