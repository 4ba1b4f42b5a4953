package vmm

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// vcpuState is all that a vCPU is. It is saved into memory that is there already.
type vcpuState struct {
	regs   kvm.Regs
	wide   bool // sregs2 instead of sregs
	sregs  kvm.Sregs
	sregs2 kvm.Sregs2
	events kvm.Events
	debug  kvm.DebugRegs
	xcrs   kvm.XCRs // all zero where the guest has no XSAVE
	lapic  kvm.LAPIC
	mp     uint32
	msrs   kvm.MSRs
	xsave  []byte
}

const maxXSAVE = 16 << 10 // AMX makes it 11 KiB

const (
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLMA = 1 << 10
)

// save reads the vCPU's state, on its own thread, while all vCPUs are out of the guest.
func (v *vcpu) save() {
	v.saveErr = v.state.read(v)
}

func (s *vcpuState) read(v *vcpu) error {
	c, m := v.kvm, v.m
	if f := v.fault.Load(); f != nil && f.access {
		return fmt.Errorf("vCPU %d waits at a damaged page %d: %w", v.id, f.page, ErrMemoryFault)
	}
	var err error
	// Asking lets the vCPU take an INIT that another one has just sent, which changes its
	// registers: so it comes first, and with several vCPUs the registers are fetched after it.
	if s.mp, err = c.MPState(); err != nil {
		return err
	}
	if m.syncRegs {
		if len(m.vcpus) > 1 || !v.synced {
			v.resync()
		}
		r, sr, ev := c.Synced()
		s.regs, s.sregs, s.events = *r, *sr, *ev
	} else {
		if err := c.Regs(&s.regs); err != nil {
			return err
		}
		if err := c.Sregs(&s.sregs); err != nil {
			return err
		}
		if err := c.Events(&s.events); err != nil {
			return err
		}
	}
	// The page directory pointers are latched in PAE paging alone.
	s.wide = m.sregs2 && s.sregs.CR0&cr0PG != 0 && s.sregs.CR4&cr4PAE != 0 && s.sregs.EFER&eferLMA == 0
	if s.wide {
		if err := c.Sregs2(&s.sregs2); err != nil {
			return err
		}
	}
	if err := c.DebugRegs(&s.debug); err != nil {
		return err
	}
	if m.model.XCR0() != 0 {
		if err := c.XCRs(&s.xcrs); err != nil {
			return err
		}
	}
	if err := c.XSAVE(s.xsave); err != nil {
		return err
	}
	if n, err := c.GetMSRs(&s.msrs); err != nil {
		return err
	} else if n < int(s.msrs.N) {
		return fmt.Errorf("vCPU %d: KVM does not read MSR %#x any more", v.id, s.msrs.Entries[n].Index)
	}
	return c.LAPIC(&s.lapic)
}

// StateID implements platform.Stateful.
func (v *vcpu) StateID() string { return fmt.Sprintf("vcpu%d", v.id) }

// StateVersion implements platform.Stateful.
func (v *vcpu) StateVersion() uint16 { return 1 }

// SaveState appends what the thread has saved:
//
//	regs 144, kind u8 (1 sregs 312 | 2 sregs2 320), events 64, debugregs 128, xcrs 392, lapic 1024,
//	mp_state u32, MSRs u16 x {index u32, value u64}, XSAVE area u32 length without the zeros at
//	its end.
func (v *vcpu) SaveState(b []byte) []byte { return v.state.append(b) }

func (s *vcpuState) append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, bytesOf(&s.regs)...)
	if s.wide {
		b = append(append(b, 2), bytesOf(&s.sregs2)...)
	} else {
		b = append(append(b, 1), bytesOf(&s.sregs)...)
	}
	b = append(b, s.events[:]...)
	b = append(b, s.debug[:]...)
	b = append(b, s.xcrs[:]...)
	b = append(b, s.lapic[:]...)
	b = le.AppendUint32(b, s.mp)
	b = le.AppendUint16(b, uint16(s.msrs.N))
	for _, e := range s.msrs.Entries[:s.msrs.N] {
		b = le.AppendUint32(b, e.Index)
		b = le.AppendUint64(b, e.Value)
	}
	n := len(s.xsave)
	for n >= 8 && le.Uint64(s.xsave[n-8:]) == 0 {
		n -= 8
	}
	return codec.AppendBytes(b, s.xsave[:n])
}

// decode reads what append wrote. xsave is the size of this host's XSAVE area.
func (s *vcpuState) decode(b []byte, xsave int) error {
	r := codec.NewReader(b)
	r.Fill(bytesOf(&s.regs))
	switch kind := r.U8(); kind {
	case 1:
		s.wide = false
		r.Fill(bytesOf(&s.sregs))
	case 2:
		s.wide = true
		r.Fill(bytesOf(&s.sregs2))
	default:
		r.Failf("special registers of kind %d", kind)
	}
	r.Fill(s.events[:])
	r.Fill(s.debug[:])
	r.Fill(s.xcrs[:])
	r.Fill(s.lapic[:])
	s.mp = r.U32()
	n := r.U16()
	if n > kvm.MaxMSRs {
		r.Failf("%d MSRs", n)
		n = 0
	}
	s.msrs.N = uint32(n)
	for i := range s.msrs.Entries[:n] {
		index, value := r.U32(), r.U64()
		if _, known := cpu.FindMSR(index); !known && r.Err() == nil {
			r.Failf("MSR %#x is none of a guest's", index)
		}
		s.msrs.Entries[i] = kvm.MSREntry{Index: index, Value: value}
	}
	area := r.Bytes(maxXSAVE)
	if len(area) > xsave {
		r.Failf("an XSAVE area of %d bytes where this host has %d: its CPU lacks features that the guest uses", len(area), xsave)
	}
	if err := r.Done(); err != nil {
		return err
	}
	s.xsave = make([]byte, xsave)
	copy(s.xsave, area)
	return nil
}

// take removes an MSR from the list and returns its value.
func (s *vcpuState) take(index uint32) (value uint64, ok bool) {
	n := 0
	for _, e := range s.msrs.Entries[:s.msrs.N] {
		if e.Index == index {
			value, ok = e.Value, true
			continue
		}
		s.msrs.Entries[n] = e
		n++
	}
	s.msrs.N = uint32(n)
	return value, ok
}

// RestoreState implements platform.Stateful. The time stamp counter and the timer that hangs on it
// are kept for Start: they go on from there.
func (v *vcpu) RestoreState(_ uint16, b []byte) error {
	var s vcpuState
	if err := s.decode(b, len(v.state.xsave)); err != nil {
		return err
	}
	var clock vcpuClock
	if err := s.takeClock(&clock); err != nil {
		return err
	}
	if err := s.write(v); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	v.halfDone, v.synced = false, false
	v.fault.Store(nil)
	v.m.clock.vcpus[v.id] = clock
	return nil
}

// write gives the state to KVM: the LAPIC's base address before the LAPIC, its timer's mode before
// its deadline, pending events last.
func (s *vcpuState) write(v *vcpu) error {
	c := v.kvm
	switch {
	case s.wide && v.m.sregs2:
		if err := c.SetSregs2(&s.sregs2); err != nil {
			return err
		}
	case s.wide: // without the page directory pointers: KVM reads them from memory
		copy(bytesOf(&s.sregs)[:unsafe.Offsetof(s.sregs.InterruptBitmap)], bytesOf(&s.sregs2))
		fallthrough
	default:
		if err := c.SetSregs(&s.sregs); err != nil {
			return err
		}
	}
	if err := c.SetRegs(&s.regs); err != nil {
		return err
	}
	if s.xcrs != (kvm.XCRs{}) {
		if err := c.SetXCRs(&s.xcrs); err != nil {
			return err
		}
	}
	if err := c.SetXSAVE(s.xsave); err != nil {
		return err
	}
	if err := c.SetDebugRegs(&s.debug); err != nil {
		return err
	}
	if err := c.SetLAPIC(&s.lapic); err != nil {
		return err
	}
	if err := s.writeMSRs(c); err != nil {
		return err
	}
	if err := c.SetEvents(&s.events); err != nil {
		return err
	}
	return c.SetMPState(s.mp)
}

// writeMSRs sets all MSRs. One that this host does not have is of no consequence while it has the value
// of a guest that has never touched it.
func (s *vcpuState) writeMSRs(c *kvm.VCPU) error {
	rest := &kvm.MSRs{}
	todo := s.msrs.Entries[:s.msrs.N]
	for len(todo) > 0 {
		rest.N = uint32(copy(rest.Entries[:], todo))
		n, err := c.SetMSRs(rest)
		if err != nil {
			return err
		}
		if n >= len(todo) {
			return nil
		}
		e := todo[n]
		if r, _ := cpu.FindMSR(e.Index); e.Value != 0 && e.Value != r.Default {
			return fmt.Errorf("this host's KVM does not take %#x for the register %s (%#x) of vCPU %d", e.Value, r.Name, e.Index, c.ID())
		}
		todo = todo[n+1:]
	}
	return nil
}
