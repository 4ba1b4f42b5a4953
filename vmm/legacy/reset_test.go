package legacy

import (
	"bytes"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// After a reset the devices are as they were made, save for the clocks, which go on.
func TestResetIsPowerOn(t *testing.T) {
	m := newPC(t)
	m.activate(t)
	parts := []struct {
		part platform.Stateful
		mess func()
	}{
		{m.serial, func() {
			m.Out(platform.SerialBase+regIER, 1, ierData|ierEmpty)
			m.Out(platform.SerialBase+regLCR, 1, 3)
			m.Out(platform.SerialBase+regMCR, 1, 0xb)
			m.Out(platform.SerialBase+regSCR, 1, 0x55)
			m.Out(platform.SerialBase+regIIR, 1, fcrEnable)
			m.Do(func() { m.serial.Input([]byte("typed for the old guest")) })
		}},
		{m.keyboard, func() {
			m.Out(portKeyboardStatus, 1, 0x60)
			m.Out(portKeyboardData, 1, 0x43)
			m.Out(portKeyboardStatus, 1, 0xaa)
			m.Out(portSystemControl, 1, 3)
			m.Out(portFastReset, 1, 2)
		}},
		{m.acpi, func() {
			m.Out(platform.PMBase+platform.PM1EventOffset+2, 2, pm1PowerButton)
			m.Out(platform.PMBase+platform.PM1ControlOffset, 2, 2)
			m.Out(platform.PMBase+platform.GPE0Offset+2, 2, 1<<platform.GPEGeneration)
			m.Do(func() {
				m.acpi.PowerButton()
				m.acpi.RaiseGPE(platform.GPEGeneration)
			})
		}},
	}
	for _, p := range parts {
		fresh := m.Save(p.part)
		p.mess()
		if bytes.Equal(m.Save(p.part), fresh) {
			t.Fatalf("%s has not changed", p.part.StateID())
		}
		m.Do(p.part.(platform.Resetter).Reset)
		if got := m.Save(p.part); !bytes.Equal(got, fresh) {
			t.Errorf("%s after a reset: %x, when it was made: %x", p.part.StateID(), got, fresh)
		}
	}
	m.Do(func() {
		for line, high := range m.Lines {
			if high {
				t.Errorf("interrupt line %d is high after a reset", line)
			}
		}
	})
}

func TestResetKeepsTheTime(t *testing.T) {
	m := newPC(t)
	m.activate(t)
	m.Out(rtcPort, 1, rtcB)
	m.Out(rtcPort+1, 1, rtcB24Hours|rtcBBinary|rtcBSet|0x40)
	m.Out(rtcPort, 1, rtcHour)
	m.Out(rtcPort+1, 1, 7)
	m.Out(rtcPort, 1, 0x40)
	m.Out(rtcPort+1, 1, 0x99) // what the guest keeps there
	m.Do(m.rtc.Reset)
	m.now = m.now.Add(time.Hour)
	read := func(index uint32) uint32 {
		m.Out(rtcPort, 1, index)
		return m.In(rtcPort+1, 1)
	}
	if hour := read(rtcHour); hour != 8 {
		t.Errorf("an hour after the guest set it to 7 and died: %d", hour)
	}
	if b, kept := read(rtcB), read(0x40); b != rtcB24Hours|rtcBBinary || kept != 0x99 {
		t.Errorf("register B %#x, a byte that was kept %#x", b, kept)
	}
	m.clock = 5 * time.Second
	before := m.In(platform.PMBase+platform.PMTimerOffset, 4)
	m.Do(m.acpi.Reset)
	if after := m.In(platform.PMBase+platform.PMTimerOffset, 4); after != before {
		t.Errorf("the PM timer goes from %d to %d in a reset", before, after)
	}
}

// A restored clock goes on from what it showed, moved on by the outage, on a host with another wall clock.
func TestRTCGoesOnElsewhere(t *testing.T) {
	m := newPC(t)
	state := m.Save(m.rtc)
	to := newPC(t)
	to.now = to.now.Add(-time.Hour)
	if err := to.Restore(to.rtc, state); err != nil {
		t.Fatal(err)
	}
	to.Do(func() { to.rtc.Advance(2 * time.Second) })
	to.now = to.now.Add(time.Minute) // before it is activated nothing goes
	to.activate(t)
	to.now = to.now.Add(3 * time.Second)
	if got, want := to.rtc.time(), m.rtc.time().Add(5*time.Second); !got.Equal(want) {
		t.Errorf("the clock shows %v, want %v", got, want)
	}
}
