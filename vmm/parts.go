package vmm

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// machinePart is what belongs to the machine as a whole: kvmclock, the TSC's rate, what CPU the
// guest sees, and whether it has asked for power-off.
type machinePart struct{ m *Machine }

func (p machinePart) StateID() string      { return "machine" }
func (p machinePart) StateVersion() uint16 { return 1 }

// SaveState appends kvmclock u64 (ns), TSC rate u32 (kHz), digest of the CPU model u64, power event u8.
func (p machinePart) SaveState(b []byte) []byte {
	clock, err := p.m.vm.Clock()
	if err != nil {
		p.m.saveErr = err
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(clock))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.m.tscKHz))
	b = binary.LittleEndian.AppendUint64(b, p.m.digest)
	p.m.gate.Lock()
	defer p.m.gate.Unlock()
	return append(b, byte(p.m.gate.power))
}

func (p machinePart) RestoreState(_ uint16, b []byte) error {
	m := p.m
	r := codec.NewReader(b)
	clock, khz, model, power := r.U64(), r.U32(), r.U64(), platform.PowerEvent(r.U8())
	if clock > 1<<62 {
		r.Failf("kvmclock of %d ns", clock)
	}
	if khz == 0 || khz > 1<<30 {
		r.Failf("TSC rate of %d kHz", khz)
	}
	if power > platform.MaxPowerEvent {
		r.Failf("power event %d", power)
	}
	if err := r.Done(); err != nil {
		return err
	}
	if model != m.digest || int(khz) != m.tscKHz {
		return fmt.Errorf("%w: %w: the guest's CPU is another one than this machine's", ErrState, ErrCPU)
	}
	m.clock.kvmclock = time.Duration(clock)
	m.gate.Lock()
	m.gate.power, m.gate.told = power, false
	m.gate.Unlock()
	return nil
}

// pitPart is the i8254.
type pitPart struct {
	m *Machine
	s kvm.PIT
}

func (p *pitPart) StateID() string      { return "pit" }
func (p *pitPart) StateVersion() uint16 { return 1 }

func (p *pitPart) SaveState(b []byte) []byte {
	if err := p.m.vm.PITState(&p.s); err != nil {
		p.m.saveErr = err
	}
	return append(b, p.s[:]...)
}

func (p *pitPart) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	r.Fill(p.s[:])
	if err := r.Done(); err != nil {
		return err
	}
	if err := p.m.vm.SetPITState(&p.s); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}

// irqchipPart is the two PICs and the IOAPIC.
type irqchipPart struct {
	m *Machine
	s [kvm.IRQChips]kvm.IRQChip
}

func (p *irqchipPart) StateID() string      { return "irqchip" }
func (p *irqchipPart) StateVersion() uint16 { return 1 }

func (p *irqchipPart) SaveState(b []byte) []byte {
	for i := range p.s {
		if err := p.m.vm.IRQChipState(i, &p.s[i]); err != nil {
			p.m.saveErr = err
		}
		b = append(b, p.s[i][:]...)
	}
	return b
}

func (p *irqchipPart) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	for i := range p.s {
		r.Fill(p.s[i][:])
		if id := binary.LittleEndian.Uint32(p.s[i][:]); int(id) != i {
			r.Failf("interrupt controller %d in the place of %d", id, i)
		}
	}
	if err := r.Done(); err != nil {
		return err
	}
	for i := range p.s {
		if err := p.m.vm.SetIRQChipState(&p.s[i]); err != nil {
			return fmt.Errorf("%w: %w", ErrState, err)
		}
	}
	return nil
}
