package pci

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
)

// dog is a machine with a watchdog and a clock that a test moves.
type dog struct {
	*platformtest.Machine
	w    *Watchdog
	now  time.Duration
	tick *fakeTick
}

type fakeTick struct {
	due time.Duration
	fn  func()
}

func (f *fakeTick) Stop() bool { f.fn = nil; return true }

func newDog(t testing.TB) *dog {
	d := &dog{Machine: platformtest.New(t, 1<<20)}
	d.Do(func() {
		h, err := NewHost(d)
		if err == nil {
			d.w, err = NewWatchdog(d, h)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	d.w.clock = func() time.Duration { return d.now }
	d.w.after = func(after time.Duration, fn func()) stopper {
		d.tick = &fakeTick{d.now + after, fn}
		return d.tick
	}
	d.Activate(t, d.w)
	return d
}

// pass lets time go by for a host that keeps up.
func (d *dog) pass(by time.Duration) {
	for end := d.now + by; d.now < end; {
		d.now = min(end, d.now+100*time.Millisecond)
		if f := d.tick; f != nil && f.fn != nil && f.due <= d.now {
			fn := f.fn
			f.fn = nil
			fn()
		}
	}
}

func (d *dog) config(reg uint64) uint64 {
	return platform.ECAMBase + uint64(d.w.Slot())<<15 + reg
}

func (d *dog) bar() uint64 { return d.Load(d.config(0x10), 4) &^ 0xf }

// unlocked writes a register as the driver does.
func (d *dog) unlocked(reg uint64, n int, v uint64) {
	d.Store(d.bar()+watchdogReload, 2, unlockFirst)
	d.Store(d.bar()+watchdogReload, 2, unlockSecond)
	d.Store(d.bar()+reg, n, v)
}

// startLinux does what Linux's i6300esb does for a timeout of so many seconds.
func (d *dog) startLinux(seconds uint64) {
	d.Store(d.config(watchdogConfig), 2, 3)
	d.unlocked(watchdogReload, 2, reloadTimers)
	d.unlocked(watchdogTimer1, 4, seconds<<9)
	d.unlocked(watchdogTimer2, 4, seconds<<9)
	d.feed()
	d.Store(d.config(watchdogLock), 1, lockEnable)
}

func (d *dog) feed() { d.unlocked(watchdogReload, 2, reloadTimers) }

func (d *dog) move(t *testing.T, outage time.Duration) *dog {
	t.Helper()
	to := newDog(t)
	to.now = 1000 * time.Hour // its clock has nothing to do with the other's
	to.Do(to.w.Suspend)
	state := d.Save(d.w)
	for range 2 {
		if err := to.Restore(to.w, state); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(to.Save(to.w), state) {
		t.Fatal("a restore changes the state")
	}
	to.Do(func() { to.w.Advance(outage) })
	to.Machine.Activate(t, to.w)
	return to
}

func TestWatchdogIsFoundAndFed(t *testing.T) {
	d := newDog(t)
	if id := d.Load(d.config(0), 4); id != 0x25ab_8086 {
		t.Fatalf("device %#x", id)
	}
	d.startLinux(30)
	if got := d.Load(d.config(watchdogLock), 1); got != lockEnable {
		t.Fatalf("lock register %#x", got)
	}
	for range 20 {
		d.pass(25 * time.Second)
		d.feed()
	}
	if len(d.Power) != 0 {
		t.Fatalf("a watchdog that is fed: %v", d.Power)
	}
	d.pass(29 * time.Second)
	if len(d.Power) != 0 {
		t.Fatal("too early")
	}
	d.pass(3 * time.Second)
	if len(d.Power) != 1 || d.Power[0] != platform.WatchdogExpired {
		t.Fatalf("power events %v", d.Power)
	}
	// The guest boots again and asks why.
	d.Do(func() { d.w.Suspend(); d.w.Reset() })
	d.Machine.Activate(t, d.w)
	if got := d.Load(d.bar()+watchdogReload, 2); got != reloadTimedOut {
		t.Errorf("reload register %#x after a reset by the watchdog", got)
	}
	if got := d.Load(d.config(watchdogLock), 1); got != 0 {
		t.Errorf("lock register %#x after a reset", got)
	}
	d.unlocked(watchdogReload, 2, reloadTimedOut)
	if got := d.Load(d.bar()+watchdogReload, 2); got != 0 {
		t.Errorf("reload register %#x after it was cleared", got)
	}
	d.pass(time.Hour)
	if len(d.Power) != 1 {
		t.Error("a watchdog that nobody has started expires")
	}
}

func TestWatchdogRegisters(t *testing.T) {
	d := newDog(t)
	d.Store(d.bar()+watchdogTimer1, 4, 1)
	if got := d.Load(d.bar()+watchdogTimer1, 4); got != timerBits {
		t.Errorf("timer %#x: written though locked", got)
	}
	d.unlocked(watchdogTimer1, 4, 0xffff_ffff)
	d.Store(d.bar()+watchdogTimer2, 4, 7) // one unlocking, one write
	if a, b := d.Load(d.bar(), 4), d.Load(d.bar()+4, 4); a != timerBits || b != timerBits {
		t.Errorf("timers %#x, %#x", a, b)
	}
	d.Store(d.config(watchdogConfig), 2, 0xffff)
	if got := d.Load(d.config(watchdogConfig), 2); got != configBits {
		t.Errorf("config %#x", got)
	}
	d.Store(d.config(watchdogLock), 1, 0xff)
	d.Store(d.config(watchdogLock), 1, 0)
	if got := d.Load(d.config(watchdogLock), 1); got != lockBits {
		t.Errorf("lock register %#x: what is locked stays", got)
	}
	d.pass(time.Hour) // free-running, and the longest time at the fast rate: nothing is reset
	if len(d.Power) != 0 {
		t.Errorf("power events %v", d.Power)
	}
}

func TestWatchdogInterrupt(t *testing.T) {
	d := newDog(t)
	line := platform.PCIInterrupt(d.w.Slot())
	d.startLinux(10)
	d.Store(d.config(watchdogConfig), 2, interruptINTA|configNoOutput)
	d.pass(6 * time.Second)
	if !d.Lines[line] || d.Load(d.bar()+watchdogStatus, 4) != 1 {
		t.Fatal("no interrupt from the first stage")
	}
	d.Store(d.bar()+watchdogStatus, 4, 1)
	if d.Lines[line] {
		t.Fatal("the interrupt stays")
	}
	d.pass(10 * time.Second)
	if len(d.Power) != 0 {
		t.Fatalf("power events %v with the output disabled", d.Power)
	}
}

func TestWatchdogOverTakeover(t *testing.T) {
	d := newDog(t)
	d.startLinux(30)
	d.pass(20 * time.Second) // 10 s are left, of the second stage
	to := d.move(t, 500*time.Millisecond)
	to.pass(9 * time.Second)
	if len(to.Power) != 0 {
		t.Fatal("a takeover shortens the guest's time")
	}
	to.pass(3 * time.Second)
	if len(to.Power) != 1 {
		t.Fatal("a takeover stops the watchdog")
	}

	// An outage that is longer than what was left.
	d = newDog(t)
	d.startLinux(30)
	d.pass(2 * time.Second)
	to = d.move(t, time.Hour)
	to.pass(8 * time.Second)
	if len(to.Power) != 0 {
		t.Fatal("an outage counts as the guest's fault")
	}
	to.feed()
	to.pass(25 * time.Second)
	if len(to.Power) != 0 {
		t.Fatal("fed, and expired all the same")
	}

	// A host that stands still, and a machine that does.
	d = newDog(t)
	d.startLinux(30)
	d.pass(15 * time.Second)
	d.now += time.Hour
	d.pass(10 * time.Second)
	d.Do(d.w.Suspend)
	d.pass(time.Hour)
	d.Machine.Activate(t, d.w)
	if len(d.Power) != 0 {
		t.Fatal("a standstill counts as the guest's fault")
	}
	d.pass(10 * time.Second)
	if len(d.Power) != 1 {
		t.Fatal("a standstill stops the watchdog")
	}
}

func FuzzWatchdog(f *testing.F) {
	f.Add([]byte{0, 0, 3, 2, 12, 0x80, 2, 12, 0x86, 2, 12, 1, 1, 0, 2, 3, 0, 60})
	f.Add([]byte{1, 0, 6, 2, 12, 0x80, 2, 12, 0x86, 2, 0, 1, 3, 9, 200, 4, 0, 0, 5, 0, 9})
	f.Fuzz(func(t *testing.T, ops []byte) {
		d := newDog(t)
		for ; len(ops) >= 3; ops = ops[3:] {
			v, n := uint64(ops[2]), 1<<(ops[1]>>4&3)
			switch ops[0] % 6 {
			case 0:
				d.Store(d.config(watchdogConfig)+uint64(ops[1]&1), n, v)
			case 1:
				d.Store(d.config(watchdogLock), n, v)
			case 2:
				d.Store(d.bar()+uint64(ops[1]&0xf), n, v|v<<8)
			case 3:
				d.pass(time.Duration(v) * time.Second)
			case 4:
				d.Do(func() { d.w.Suspend(); d.w.Advance(time.Duration(v) * time.Second) })
				d.Machine.Activate(t, d.w)
			case 5:
				d.Load(d.bar()+v&0x3f, n)
			}
		}
		state := d.Save(d.w)
		if err := d.Restore(d.w, state); err != nil {
			t.Fatalf("a state of its own is refused: %v", err)
		}
		if !bytes.Equal(d.Save(d.w), state) {
			t.Fatal("a restore changes the state")
		}
	})
}

func TestWatchdogRefusesBadState(t *testing.T) {
	d := newDog(t)
	d.startLinux(30)
	good := d.Save(d.w)
	for n := range good {
		if d.Restore(d.w, good[:n]) == nil {
			t.Fatalf("%d of %d bytes were taken", n, len(good))
		}
	}
	own := len(good) - 23 // after the function's registers
	for _, bad := range []struct {
		at int
		v  byte
	}{{own, 0x40}, {own + 2, 0x80}, {own + 3, 3}, {own + 4, 3}, {own + 8, 0xff}, {own + 20, 0xff}, {own + 2, 0}} {
		b := bytes.Clone(good)
		b[bad.at] = bad.v
		if d.Restore(d.w, b) == nil {
			t.Errorf("byte %d = %#x was taken", bad.at-own, bad.v)
		}
	}
	if err := d.Restore(d.w, good); err != nil {
		t.Fatal(err)
	}
	if left := binary.LittleEndian.Uint64(good[own+13:]); left == 0 {
		t.Error("no time is left")
	}
}

// A guest may set the shortest time and have the watchdog run free: that must not keep the host busy.
func TestWatchdogIsNotLookedAtAllTheTime(t *testing.T) {
	d := newDog(t)
	d.Store(d.config(watchdogConfig), 2, configFast|3)
	d.unlocked(watchdogTimer1, 4, 0)
	d.Store(d.config(watchdogLock), 1, lockEnable|lockFreeRun)
	for range 3 {
		if wait := d.tick.due - d.now; wait < time.Millisecond {
			t.Fatalf("it is looked at again in %v", wait)
		}
		d.pass(100 * time.Millisecond)
	}
	if d.Load(d.bar()+watchdogStatus, 4)&1 == 0 {
		t.Error("the timer has not expired")
	}
}
