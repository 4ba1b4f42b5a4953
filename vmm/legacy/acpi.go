package legacy

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Registers of the power management block (ACPI 6.5, sections 4.8.3 and 4.8.4).
const (
	pmTimerHz = 3_579_545

	pm1PowerButton = 1 << 8 // PWRBTN_STS and PWRBTN_EN
	pm1Status      = 0xc731 // status bits, cleared by writing one
	pm1Enable      = 0x4721 // timer, global lock, power and sleep button, RTC, PCIe wake
	pm1SCI         = 1      // SCI_EN of the control register: always, there is no SMI
	pm1SleepType   = 7 << 10
	pm1SleepEnable = 1 << 13
	pm1Control     = pm1SleepType | 1<<1 // what the control register keeps

	gpeKnown = 1 << platform.GPEGeneration // events that can happen; the others' enable bits are kept all the same
)

// ACPI is the fixed hardware of ACPI: the PM1a event and control registers with the power button,
// the power management timer, and general-purpose events 0 to 15 (section 4.8.4.1).
type ACPI struct {
	p     platform.Platform
	clock func() time.Duration // monotonic
	level bool                 // the SCI

	status, enable, control uint16
	gpeStatus, gpeEnable    uint16

	// The timer shows base ticks plus the time since started while it runs. It stands still between
	// RestoreState and Activate.
	base    uint32
	started time.Duration
	runs    bool
}

// NewACPI maps the block at platform.PMBase. Its timer begins to run with Activate. The device lock is
// held.
func NewACPI(p platform.Platform) (*ACPI, error) {
	start := time.Now()
	a := &ACPI{p: p, clock: func() time.Duration { return time.Since(start) }}
	if err := p.Ports().Map(platform.PMBase, platform.PMWindowSize, (*pmBlock)(a)); err != nil {
		return nil, fmt.Errorf("map the ACPI registers: %w", err)
	}
	return a, nil
}

// PowerButton presses the power button: the guest is asked to shut down. The device lock is held.
func (a *ACPI) PowerButton() {
	a.status |= pm1PowerButton
	a.update()
}

// RaiseGPE reports general-purpose event n, one of platform's GPE numbers: the guest's handler of that
// number runs. The device lock is held.
func (a *ACPI) RaiseGPE(n int) {
	a.gpeStatus |= 1 << n & gpeKnown
	a.update()
}

// Advance moves the timer on by d: the time that a guest has missed since the checkpoint that was
// loaded. The device lock is held.
func (a *ACPI) Advance(d time.Duration) {
	if d > 0 {
		a.base += ticks(d)
	}
}

// Activate implements platform.Activator.
func (a *ACPI) Activate() error {
	if !a.runs {
		a.started, a.runs = a.clock(), true
	}
	a.level = a.wanted()
	a.p.SetIRQ(platform.SCIIRQ, a.level)
	return nil
}

// ticks converts a duration to ticks of the timer, modulo 2^32.
func ticks(d time.Duration) uint32 {
	hi, lo := bits.Mul64(uint64(d), pmTimerHz)
	t, _ := bits.Div64(hi%uint64(time.Second), lo, uint64(time.Second))
	return uint32(t)
}

func (a *ACPI) timer() uint32 {
	if !a.runs {
		return a.base
	}
	return a.base + ticks(a.clock()-a.started)
}

// wanted says whether the SCI is to be raised.
func (a *ACPI) wanted() bool { return a.status&a.enable != 0 || a.gpeStatus&a.gpeEnable != 0 }

func (a *ACPI) update() {
	if level := a.wanted(); level != a.level {
		a.level = level
		a.p.SetIRQ(platform.SCIIRQ, level)
	}
}

type pmBlock ACPI

func (b *pmBlock) Read(off uint64, data []byte) {
	a := (*ACPI)(b)
	var regs [platform.PMWindowSize]byte // what is not a register reads as 0
	le := binary.LittleEndian
	le.PutUint16(regs[platform.PM1EventOffset:], a.status)
	le.PutUint16(regs[platform.PM1EventOffset+2:], a.enable)
	le.PutUint16(regs[platform.PM1ControlOffset:], a.control|pm1SCI)
	le.PutUint16(regs[platform.GPE0Offset:], a.gpeStatus)
	le.PutUint16(regs[platform.GPE0Offset+2:], a.gpeEnable)
	if off < platform.PMTimerOffset+4 && off+uint64(len(data)) > platform.PMTimerOffset {
		le.PutUint32(regs[platform.PMTimerOffset:], a.timer())
	}
	copy(data, regs[off:])
}

func (b *pmBlock) Write(off uint64, data []byte) {
	a := (*ACPI)(b)
	for i, v := range data {
		reg := int(off) + i
		shift := 8 * (reg & 1)
		switch reg &^ 1 {
		case platform.PM1EventOffset:
			a.status &^= uint16(v) << shift & pm1Status
		case platform.PM1EventOffset + 2:
			a.enable = (a.enable&^(0xff<<shift) | uint16(v)<<shift) & pm1Enable
		case platform.GPE0Offset:
			a.gpeStatus &^= uint16(v) << shift
		case platform.GPE0Offset + 2:
			a.gpeEnable = a.gpeEnable&^(0xff<<shift) | uint16(v)<<shift
		case platform.PM1ControlOffset:
			value := a.control&^(0xff<<shift) | uint16(v)<<shift
			a.control = value & pm1Control // SLP_EN is write-only
			if value&pm1SleepEnable != 0 && value&pm1SleepType>>10 == platform.SleepTypeS5 {
				a.p.PowerEvent(platform.PowerOff)
			}
		}
	}
	a.update()
}

// Reset implements platform.Resetter. The timer has no reset: it goes on.
func (a *ACPI) Reset() {
	a.status, a.enable, a.control = 0, 0, 0
	a.gpeStatus, a.gpeEnable = 0, 0
	a.update()
}

// StateID implements platform.Stateful.
func (a *ACPI) StateID() string { return "acpi-pm" }

// StateVersion implements platform.Stateful.
func (a *ACPI) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful.
func (a *ACPI) SaveState(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, a.status)
	b = binary.LittleEndian.AppendUint16(b, a.enable)
	b = binary.LittleEndian.AppendUint16(b, a.control)
	b = binary.LittleEndian.AppendUint16(b, a.gpeStatus)
	b = binary.LittleEndian.AppendUint16(b, a.gpeEnable)
	return binary.LittleEndian.AppendUint32(b, a.timer())
}

// RestoreState implements platform.Stateful.
func (a *ACPI) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	status, enable, control := r.U16(), r.U16(), r.U16()
	gpeStatus, gpeEnable, base := r.U16(), r.U16(), r.U32()
	if status&^pm1Status != 0 || enable&^pm1Enable != 0 || control&^pm1Control != 0 || gpeStatus&^gpeKnown != 0 {
		r.Failf("ACPI status %#x, enable %#x, control %#x, events %#x", status, enable, control, gpeStatus)
	}
	if err := r.Done(); err != nil {
		return err
	}
	a.status, a.enable, a.control, a.base, a.runs = status, enable, control, base, false
	a.gpeStatus, a.gpeEnable = gpeStatus, gpeEnable
	return nil
}
