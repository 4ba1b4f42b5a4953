package legacy

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// CMOS registers (MC146818A data sheet, table 3; the sizes of memory are the PC's custom).
const (
	rtcPort = 0x70

	rtcSecond    = 0x00
	rtcMinute    = 0x02
	rtcHour      = 0x04
	rtcWeekday   = 0x06
	rtcDay       = 0x07
	rtcMonth     = 0x08
	rtcYear      = 0x09
	rtcA         = 0x0a
	rtcB         = 0x0b
	rtcC         = 0x0c
	rtcD         = 0x0d
	cmosBaseMem  = 0x15 // KiB below 640 KiB
	cmosExtMem   = 0x17 // KiB above 1 MiB, at most 65535
	cmosExtMem2  = 0x30 // the same
	cmosMem16M   = 0x34 // 64 KiB blocks above 16 MiB
	cmosMem4G    = 0x5b // 64 KiB blocks above 4 GiB, three bytes
	cmosSize     = 128
	rtcAValue    = 0x26 // 32,768 Hz, 1,024 Hz; update in progress is never seen
	rtcAUIP      = 0x80
	rtcBSet      = 0x80 // the clock stands still and may be set
	rtcBBinary   = 0x04
	rtcB24Hours  = 0x02
	rtcPM        = 0x80
	rtcDValid    = 0x80
	rtcIndexMask = 0x7f // bit 7 masks NMIs
)

// RTC is the CMOS with its real-time clock. It shows the host's UTC and what the guest has added to
// it by setting the clock. It raises no interrupts.
type RTC struct {
	now   func() time.Time
	index byte
	ram   [cmosSize]byte // registers A and B, alarms, and what the guest keeps in the rest
	// offset is what the guest has added to the host's time.
	offset time.Duration
	// frozen is the time that the guest is setting while register B's SET bit is on.
	frozen time.Time
	// loaded is the time that a checkpoint shows, from which a restored clock goes on when it is activated;
	// zero: it goes already.
	loaded time.Time
}

// NewRTC maps ports 0x70 and 0x71. The device lock is held.
func NewRTC(p platform.Platform) (*RTC, error) {
	r := &RTC{now: time.Now}
	r.ram[rtcA], r.ram[rtcB] = rtcAValue, rtcB24Hours
	var low, high uint64
	for _, g := range p.RAM().Regions() {
		if g.GPA < memory.HighBase {
			low = max(low, g.GPA+g.Size)
		} else {
			high += g.Size
		}
	}
	le := binary.LittleEndian
	le.PutUint16(r.ram[cmosBaseMem:], 640)
	extended := uint16(min(max(low, 1<<20)-1<<20, 65535<<10) >> 10)
	le.PutUint16(r.ram[cmosExtMem:], extended)
	le.PutUint16(r.ram[cmosExtMem2:], extended)
	le.PutUint16(r.ram[cmosMem16M:], uint16((max(low, 16<<20)-16<<20)>>16))
	blocks := min(high>>16, 1<<24-1)
	r.ram[cmosMem4G], r.ram[cmosMem4G+1], r.ram[cmosMem4G+2] = byte(blocks), byte(blocks>>8), byte(blocks>>16)
	if err := p.Ports().Map(rtcPort, 2, ports{r.read, r.write}); err != nil {
		return nil, fmt.Errorf("map the CMOS: %w", err)
	}
	return r, nil
}

func (r *RTC) read(port int) byte {
	if port == 0 {
		return 0xff // the index is write-only
	}
	switch r.index {
	case rtcC:
		return 0
	case rtcD:
		return rtcDValid
	}
	if isTime(r.index) {
		return r.field(r.index)
	}
	return r.ram[r.index]
}

func isTime(index byte) bool {
	switch index {
	case rtcSecond, rtcMinute, rtcHour, rtcWeekday, rtcDay, rtcMonth, rtcYear, platform.RTCCenturyIndex:
		return true
	}
	return false
}

func (r *RTC) time() time.Time {
	if r.ram[rtcB]&rtcBSet != 0 {
		return r.frozen
	}
	return r.now().Add(r.offset).UTC()
}

func (r *RTC) field(index byte) byte {
	t := r.time()
	switch index {
	case rtcSecond:
		return r.encode(t.Second())
	case rtcMinute:
		return r.encode(t.Minute())
	case rtcHour:
		h := t.Hour()
		if r.ram[rtcB]&rtcB24Hours != 0 {
			return r.encode(h)
		}
		v := r.encode((h+11)%12 + 1)
		if h >= 12 {
			v |= rtcPM
		}
		return v
	case rtcWeekday:
		return r.encode(int(t.Weekday()) + 1)
	case rtcDay:
		return r.encode(t.Day())
	case rtcMonth:
		return r.encode(int(t.Month()))
	case rtcYear:
		return r.encode(t.Year() % 100)
	}
	return r.encode(t.Year() / 100)
}

// encode and decode follow register B's data mode: binary, or BCD.
func (r *RTC) encode(v int) byte {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return byte(v)
	}
	return byte(v/10<<4 | v%10)
}

func (r *RTC) decode(v byte) int {
	if r.ram[rtcB]&rtcBBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xf)
}

func (r *RTC) write(port int, v byte) {
	if port == 0 {
		r.index = v & rtcIndexMask
		return
	}
	switch r.index {
	case rtcA:
		r.ram[rtcA] = v &^ rtcAUIP
	case rtcB:
		was := r.ram[rtcB]
		if v&rtcBSet != 0 && was&rtcBSet == 0 {
			r.frozen = r.time()
		}
		if v&rtcBSet == 0 && was&rtcBSet != 0 {
			r.setTime(r.frozen)
		}
		r.ram[rtcB] = v
	case rtcC, rtcD: // read-only
	default:
		if isTime(r.index) {
			r.setField(r.index, v)
			return
		}
		r.ram[r.index] = v
	}
}

func (r *RTC) setTime(t time.Time) { r.offset = t.Sub(r.now()) }

// setField replaces one field of the time. Values out of range carry over, which real clocks leave
// undefined.
func (r *RTC) setField(index, v byte) {
	t := r.time()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	n := r.decode(v)
	switch index {
	case rtcSecond:
		second = n
	case rtcMinute:
		minute = n
	case rtcHour:
		hour = n
		if r.ram[rtcB]&rtcB24Hours == 0 {
			hour = r.decode(v&^rtcPM) % 12
			if v&rtcPM != 0 {
				hour += 12
			}
		}
	case rtcWeekday:
		return // follows from the date
	case rtcDay:
		day = n
	case rtcMonth:
		month = time.Month(n)
	case rtcYear:
		year = year/100*100 + n
	default:
		year = n*100 + year%100
	}
	t = time.Date(year, month, day, hour, minute, second, t.Nanosecond(), time.UTC)
	if r.ram[rtcB]&rtcBSet != 0 {
		r.frozen = t
		return
	}
	r.setTime(t)
}

// Reset implements platform.Resetter. The clock has a battery: it keeps its time, its mode and its memory.
// A guest that died while it was setting the time leaves the clock running.
func (r *RTC) Reset() {
	if r.ram[rtcB]&rtcBSet != 0 {
		r.setTime(r.frozen)
	}
	r.index = 0
	r.ram[rtcB] &= rtcBBinary | rtcB24Hours
}

// StateID implements platform.Stateful.
func (r *RTC) StateID() string { return "rtc0" }

// StateVersion implements platform.Stateful.
func (r *RTC) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful.
func (r *RTC) SaveState(b []byte) []byte {
	b = append(b, r.index)
	b = append(b, r.ram[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.offset))
	var frozen int64
	if r.ram[rtcB]&rtcBSet != 0 {
		frozen = r.frozen.Unix()
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(frozen))
	now := r.loaded
	if now.IsZero() {
		now = r.now().Add(r.offset)
	}
	return binary.LittleEndian.AppendUint64(b, uint64(now.UnixNano()))
}

// RestoreState implements platform.Stateful.
func (r *RTC) RestoreState(_ uint16, b []byte) error {
	d := codec.NewReader(b)
	index := d.U8()
	var ram [cmosSize]byte
	d.Fill(ram[:])
	offset, frozen, loaded := time.Duration(d.U64()), time.Unix(int64(d.U64()), 0).UTC(), time.Unix(0, int64(d.U64()))
	if index&^rtcIndexMask != 0 || ram[rtcA]&rtcAUIP != 0 {
		d.Failf("CMOS index %#x, register A %#x", index, ram[rtcA])
	}
	if err := d.Done(); err != nil {
		return err
	}
	r.index, r.ram, r.offset, r.frozen, r.loaded = index, ram, offset, frozen, loaded
	return nil
}

// Advance moves the clock on by d: the time that a guest has missed since the checkpoint that was loaded. The
// device lock is held.
func (r *RTC) Advance(d time.Duration) {
	if d > 0 && !r.loaded.IsZero() {
		r.loaded = r.loaded.Add(d)
	}
}

// Activate implements platform.Activator: a restored clock goes on from what it showed, whatever this host's
// wall clock says.
func (r *RTC) Activate() error {
	if !r.loaded.IsZero() {
		r.setTime(r.loaded)
		r.loaded = time.Time{}
	}
	return nil
}
