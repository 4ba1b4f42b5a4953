package legacy

import (
	"bytes"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
)

type pc struct {
	*platformtest.Machine
	serial   *Serial
	rtc      *RTC
	keyboard *Keyboard
	acpi     *ACPI
	clock    time.Duration // of the PM timer
	now      time.Time     // of the RTC
}

func newPC(t testing.TB) *pc {
	t.Helper()
	m := &pc{Machine: platformtest.New(t, 32<<20), now: time.Date(2026, 11, 22, 23, 59, 58, 0, time.UTC)}
	m.Do(func() {
		var err error
		if m.serial, err = NewSerial(m); err != nil {
			t.Fatal(err)
		}
		if m.rtc, err = NewRTC(m); err != nil {
			t.Fatal(err)
		}
		if m.keyboard, err = NewKeyboard(m); err != nil {
			t.Fatal(err)
		}
		if m.acpi, err = NewACPI(m); err != nil {
			t.Fatal(err)
		}
		m.rtc.now = func() time.Time { return m.now }
		m.acpi.clock = func() time.Duration { return m.clock }
	})
	return m
}

func (m *pc) parts() []platform.Stateful {
	return []platform.Stateful{m.serial, m.rtc, m.keyboard, m.acpi}
}

func (m *pc) activate(t testing.TB) { m.Machine.Activate(t, m.serial, m.rtc, m.keyboard, m.acpi) }

func (m *pc) move(t testing.TB) *pc {
	t.Helper()
	to := newPC(t)
	for i, p := range m.parts() {
		state := m.Save(p)
		for range 2 {
			if err := to.Restore(to.parts()[i], state); err != nil {
				t.Fatalf("%s: %v", p.StateID(), err)
			}
			if !bytes.Equal(to.Save(to.parts()[i]), state) {
				t.Fatalf("%s: a restore changes the state", p.StateID())
			}
		}
		for n := range state {
			if to.Restore(to.parts()[i], state[:n]) == nil {
				t.Fatalf("%s: %d of %d bytes were taken", p.StateID(), n, len(state))
			}
		}
	}
	return to
}

const com = platform.SerialBase

// TestSerialProbe does what Linux's 8250 driver does to find out what it has (autoconfig and
// autoconfig_16550a in drivers/tty/serial/8250).
func TestSerialProbe(t *testing.T) {
	m := newPC(t)
	m.activate(t)
	m.Out(com+regIER, 1, 0)
	if got := m.In(com+regIER, 1); got != 0 {
		t.Fatalf("IER %#x", got)
	}
	m.Out(com+regIER, 1, 0xff)
	if got := m.In(com+regIER, 1); got != 0x0f {
		t.Fatalf("IER %#x", got)
	}
	m.Out(com+regIER, 1, 0)
	m.Out(com+regMCR, 1, 0x10|0x0a)
	if got := m.In(com+regMSR, 1) & 0xf0; got != 0x90 {
		t.Fatalf("MSR in loopback %#x", got)
	}
	m.Out(com+regData, 1, 'z')
	if m.In(com+regLSR, 1)&1 == 0 || m.In(com+regData, 1) != 'z' || m.Text.Len() != 0 {
		t.Fatal("loopback does not loop")
	}
	m.Out(com+regMCR, 1, 0)
	m.Out(com+regIIR, 1, 1)
	if got := m.In(com+regIIR, 1); got>>6 != 3 {
		t.Fatalf("IIR with FIFO %#x", got)
	}
	m.Out(com+regLCR, 1, 0x80)
	m.Out(com+regData, 1, 1)
	m.Out(com+regIER, 1, 0)
	if got := m.In(com+regData, 2); got != 1 {
		t.Fatalf("divisor %#x", got)
	}
	m.Out(com+regLCR, 1, 3)
	m.Out(com+regSCR, 1, 0x5a)
	if got := m.In(com+regSCR, 1); got != 0x5a {
		t.Fatalf("scratch %#x", got)
	}
}

func TestSerialInterrupts(t *testing.T) {
	m := newPC(t)
	m.activate(t)
	line := func(what string, want bool) {
		t.Helper()
		if m.Lines[platform.SerialIRQ] != want {
			t.Fatalf("%s: line is %v", what, m.Lines[platform.SerialIRQ])
		}
	}
	m.Out(com+regIER, 1, ierEmpty)
	line("the transmitter is empty", true)
	if got := m.In(com+regIIR, 1); got != iirEmpty {
		t.Fatalf("IIR %#x", got)
	}
	line("IIR was read", false)
	for _, c := range []byte("hi") {
		m.Out(com+regData, 1, uint32(c))
		line("a byte went out", true)
		m.In(com+regIIR, 1)
	}
	if m.Text.String() != "hi" {
		t.Fatalf("output %q", m.Text.String())
	}
	m.Do(func() { m.serial.Input([]byte("ab")) })
	line("input without its interrupt", false)
	m.Out(com+regIER, 1, ierData|ierEmpty)
	line("input", true)
	if got := m.In(com+regIIR, 1); got != iirData {
		t.Fatalf("IIR %#x", got)
	}
	m = m.move(t)
	m.activate(t)
	line("input after a restore", true)
	if a, b := m.In(com+regData, 1), m.In(com+regData, 1); a != 'a' || b != 'b' {
		t.Fatalf("read %c%c", a, b)
	}
	line("input was read", false)
	if got := m.In(com+regLSR, 1); got != lsrEmpty {
		t.Fatalf("LSR %#x", got)
	}
	m.Do(func() {
		if n := m.serial.Input(make([]byte, serialInput+1)); n != serialInput {
			t.Errorf("%d bytes taken", n)
		}
	})
	m.Out(com+regIIR, 1, fcrEnable|fcrClearRX)
	line("the FIFO was cleared", false)
}

func (m *pc) cmos(i uint32) uint32 {
	m.Out(0x70, 1, i)
	return m.In(0x71, 1)
}

func (m *pc) setCMOS(i, v uint32) {
	m.Out(0x70, 1, i)
	m.Out(0x71, 1, v)
}

func (m *pc) clockReads() [7]uint32 {
	return [7]uint32{m.cmos(0x32), m.cmos(9), m.cmos(8), m.cmos(7), m.cmos(4), m.cmos(2), m.cmos(0)}
}

func TestRTC(t *testing.T) {
	m := newPC(t)
	if m.cmos(rtcA)&rtcAUIP != 0 || m.cmos(rtcD) != rtcDValid {
		t.Fatalf("register A %#x, D %#x", m.cmos(rtcA), m.cmos(rtcD))
	}
	if got, want := m.clockReads(), [7]uint32{0x20, 0x26, 0x11, 0x22, 0x23, 0x59, 0x58}; got != want {
		t.Fatalf("time %x", got)
	}
	if got := m.cmos(rtcWeekday); got != 1 {
		t.Errorf("weekday %d, it is a Sunday", got)
	}
	m.setCMOS(rtcB, rtcBBinary)
	if got, want := m.clockReads(), [7]uint32{20, 26, 11, 22, 11 | rtcPM, 59, 58}; got != want {
		t.Errorf("binary, 12 hours: %v", got)
	}
	m.now = m.now.Add(2 * time.Second)
	if got := m.cmos(rtcHour); got != 12 {
		t.Errorf("midnight is hour %d of 12", got)
	}
	// Set the clock: stop it, write, let it go.
	m.setCMOS(rtcB, rtcBSet|rtcB24Hours)
	for i, v := range []uint32{0x20, 0x31, 0x02, 0x28, 0x12, 0x34, 0x56} {
		m.setCMOS([]uint32{0x32, 9, 8, 7, 4, 2, 0}[i], v)
	}
	m.now = m.now.Add(time.Hour)
	m = m.move(t)
	m.setCMOS(rtcB, rtcB24Hours)
	m.now = m.now.Add(3 * time.Second)
	if got, want := m.clockReads(), [7]uint32{0x20, 0x31, 0x02, 0x28, 0x12, 0x34, 0x59}; got != want {
		t.Errorf("time after it was set: %x", got)
	}
	m.setCMOS(0x40, 0xab)
	m = m.move(t)
	if m.cmos(0x40) != 0xab || m.cmos(rtcYear) != 0x31 {
		t.Error("CMOS did not move")
	}
	for i, want := range map[uint32]uint32{0x15: 640 & 0xff, 0x16: 640 >> 8, 0x17: 31 << 10 & 0xff, 0x18: 31 << 10 >> 8, 0x34: 0, 0x35: 1, 0x5b: 0} {
		if got := m.cmos(i); got != want {
			t.Errorf("CMOS %#x is %#x, want %#x", i, got, want)
		}
	}
}

func TestKeyboard(t *testing.T) {
	m := newPC(t)
	command := func(c uint32) uint32 {
		m.Out(0x64, 1, c)
		if m.In(0x64, 1)&3 != keyboardOutputFull {
			t.Fatalf("no answer to %#x", c)
		}
		return m.In(0x60, 1)
	}
	if got := command(0xaa); got != 0x55 {
		t.Errorf("self-test %#x", got)
	}
	m.Out(0x64, 1, 0x60)
	m.Out(0x60, 1, 0x47)
	m = m.move(t)
	if got := command(0x20); got != 0x47 {
		t.Errorf("command byte %#x", got)
	}
	if got := m.In(0x64, 1); got&1 != 0 {
		t.Errorf("status %#x after reading", got)
	}
	m.Out(0x60, 1, 0xf2)
	if got := m.In(0x60, 1); got != keyboardResend {
		t.Errorf("a keyboard answers %#x", got)
	}
	if a, b := m.In(0x61, 1), m.In(0x61, 1); (a^b)&controlRefresh == 0 {
		t.Error("memory refresh does not toggle")
	}
	if len(m.Power) != 0 {
		t.Fatalf("power events %v", m.Power)
	}
	for i, reset := range []func(){
		func() { m.Out(0x64, 1, 0xfe) },
		func() { m.Out(0x92, 1, 1) },
		func() { m.Out(0x64, 1, 0xd1); m.Out(0x60, 1, 0xfe) },
	} {
		reset()
		if len(m.Power) != i+1 || m.Power[i] != platform.Reset {
			t.Errorf("way %d: power events %v", i, m.Power)
		}
	}
}

func TestACPI(t *testing.T) {
	const pm = platform.PMBase
	m := newPC(t)
	m.activate(t)
	if got := m.In(pm+4, 2); got != 1 {
		t.Fatalf("control %#x: SCI_EN must be set", got)
	}
	m.Do(m.acpi.PowerButton)
	if m.Lines[platform.SCIIRQ] {
		t.Fatal("SCI though the button is not enabled")
	}
	m.Out(pm+2, 2, pm1PowerButton)
	if !m.Lines[platform.SCIIRQ] || m.In(pm, 2) != pm1PowerButton {
		t.Fatal("no SCI")
	}
	m = m.move(t)
	m.activate(t)
	if !m.Lines[platform.SCIIRQ] {
		t.Fatal("no SCI after a restore")
	}
	m.Out(pm, 2, pm1PowerButton)
	if m.Lines[platform.SCIIRQ] || m.In(pm, 4) != pm1PowerButton<<16 {
		t.Fatalf("events %#x after they were cleared", m.In(pm, 4))
	}
	m.Out(pm+4, 2, 1<<13|3<<10) // S3 is not offered
	m.Out(pm+4, 2, 5<<10)
	if len(m.Power) != 0 {
		t.Fatalf("power events %v", m.Power)
	}
	m.Out(pm+4, 2, 1<<13|platform.SleepTypeS5<<10)
	if len(m.Power) != 1 || m.Power[0] != platform.PowerOff {
		t.Fatalf("power events %v", m.Power)
	}
	if got := m.In(pm+platform.GPE0Offset, 4); got != 0 {
		t.Errorf("general-purpose events %#x", got)
	}
}

func TestPMTimer(t *testing.T) {
	const timer = platform.PMBase + platform.PMTimerOffset
	m := newPC(t)
	m.clock = time.Hour // is not the timer's
	if got := m.In(timer, 4); got != 0 {
		t.Fatalf("runs before it is activated: %d", got)
	}
	m.activate(t)
	m.clock += time.Second
	if got := m.In(timer, 4); got != pmTimerHz {
		t.Fatalf("%d ticks a second", got)
	}
	to := m.move(t)
	to.clock = 500 * time.Hour
	if got := to.In(timer, 4); got != pmTimerHz {
		t.Fatalf("timer %d after a restore", got)
	}
	to.Do(func() { to.acpi.Advance(2 * time.Second); to.acpi.Advance(-time.Second) })
	to.activate(t)
	to.clock += time.Second
	if got := to.In(timer, 4); got != 4*pmTimerHz {
		t.Fatalf("timer %d", got)
	}
	to.clock += 300 * 24 * time.Hour // wraps around many times
	want := uint32((4*pmTimerHz + 300*24*3600*pmTimerHz) & 0xffffffff)
	if got := to.In(timer, 4); got != want {
		t.Fatalf("timer %d, want %d", got, want)
	}
}

// A hidden controller is none for firmware that looks for a keyboard, and still the reset line.
func TestHiddenKeyboard(t *testing.T) {
	m := platformtest.New(t, 1<<20)
	m.Do(func() {
		k, err := NewKeyboard(m)
		if err != nil {
			t.Fatal(err)
		}
		k.Hide()
	})
	m.Out(0x64, 1, 0xaa)
	if status, data := m.In(0x64, 1), m.In(0x60, 1); status != 0xff || data != 0xff {
		t.Errorf("status %#x, data %#x", status, data)
	}
	m.Out(0x64, 1, 0xfe)
	if len(m.Power) != 1 || m.Power[0] != platform.Reset {
		t.Errorf("power events %v", m.Power)
	}
}
