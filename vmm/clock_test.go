package vmm

import (
	"testing"
	"time"
)

// The vCPUs of a machine that goes on are in step, by as much as its guest has set them apart itself.
func TestTSCOfSeveralCPUs(t *testing.T) {
	m := newMachine(t, Config{CPUs: 2})
	if !m.vcpus[0].kvm.HasTSCOffset() || !movesTSC(t) {
		t.Skip("needs a KVM with an offset of its own for each vCPU's time stamp counter: this one gives guests the host's")
	}
	offsets := func() (o [2]uint64) {
		for i, v := range m.vcpus {
			var err error
			if o[i], err = v.kvm.TSCOffset(); err != nil {
				t.Fatal(err)
			}
		}
		return o
	}
	const apart = 1 << 33
	m.clock.loaded, m.clock.advance = true, time.Second
	m.clock.vcpus[0] = vcpuClock{tsc: 1 << 50}
	m.clock.vcpus[1] = vcpuClock{tsc: 1<<50 + apart + 1000, adjust: apart} // read a little later
	if err := m.setClock(); err != nil {
		t.Fatal(err)
	}
	if o := offsets(); o[1]-o[0] != apart {
		t.Errorf("the vCPUs are %d apart, want %d", int64(o[1]-o[0]), int64(apart))
	}
	now, err := getMSR(m.vcpus[0].kvm, msrTSC)
	if least := uint64(1<<50 + 1000 + m.tscKHz*1000); err != nil || now < least {
		t.Errorf("the first vCPU's counter is at %d, %v, want %d at least", now, err, least)
	}
	if err := m.unadjustTSC([]uint64{0, apart}); err != nil {
		t.Fatal(err)
	}
	if o := offsets(); o[0] != o[1] {
		t.Errorf("after a reset the vCPUs are %d apart", int64(o[1]-o[0]))
	}
}
