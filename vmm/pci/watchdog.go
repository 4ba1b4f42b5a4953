package pci

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// Registers of the watchdog timer of Intel's 6300ESB I/O controller hub (data sheet 300641-004, chapter
// 16): two in configuration space, the others behind base address register 0.
const (
	watchdogConfig = 0x60 // u16
	watchdogLock   = 0x68 // u8

	configNoOutput  = 1 << 5 // the second expiry does nothing
	configFast      = 1 << 2 // the timers count in 2^5 clocks instead of 2^15
	configInterrupt = 3      // what the first expiry does
	interruptINTA   = 0      // 2 would be an SMI, 3 nothing; neither is there
	configBits      = configNoOutput | configFast | configInterrupt

	lockLocked  = 1 << 0 // until the next reset: enable stays as it is
	lockEnable  = 1 << 1
	lockFreeRun = 1 << 2 // the first timer counts alone, again and again, and nothing is reset
	lockBits    = lockLocked | lockEnable | lockFreeRun

	watchdogTimer1 = 0x0 // u32, 20 bits
	watchdogTimer2 = 0x4
	watchdogStatus = 0x8 // u32; bit 0: the first timer has expired, cleared by writing it
	watchdogReload = 0xc // u16

	reloadTimers   = 1 << 8
	reloadTimedOut = 1 << 9 // the last reset was the watchdog's; cleared by writing it
	unlockFirst    = 0x80
	unlockSecond   = 0x86

	watchdogMHz = 33 // of the PCI clock
	timerBits   = 0xf_ffff
	watchdogBAR = 4096 // the chip's has 16 bytes; a page is what can be mapped

	// watchdogTick is how often passing time is noticed. A host that stands still for longer takes
	// nothing from the guest's time.
	watchdogTick = time.Second
	// watchdogSoonest is how soon at the earliest: a guest can set less than a microsecond.
	watchdogSoonest = 10 * time.Millisecond
	// watchdogGrace is what a takeover leaves a guest at least, to feed its watchdog again.
	watchdogGrace = 10 * time.Second
)

// Watchdog is the 6300ESB's watchdog timer, for which Linux has the driver i6300esb. When the guest stops
// feeding it, the first timer raises an interrupt, if the guest wants one, and starts the second, whose end
// is platform.WatchdogExpired.
//
// Its time is the guest's: it passes while the guest may run. It stands still while the machine is
// suspended, goes on over a takeover by what the guest's clock goes on, and never expires for an outage
// that kept the guest from feeding it.
type Watchdog struct {
	p     platform.Platform
	fn    *Function
	clock func() time.Duration                // monotonic
	after func(time.Duration, func()) stopper // as time.AfterFunc; runs without the device lock

	active   bool
	tick     stopper // nil: none is due
	since    time.Duration
	asked    time.Duration
	config   uint16
	lock     uint8
	preload  [2]uint32
	unlock   uint8 // steps of the unlock sequence that have been made: 0, 1 or 2
	stage    uint8 // 0: stopped; 1, 2: the timer that counts
	left     time.Duration
	status   bool
	timedOut bool
}

type stopper interface{ Stop() bool }

// NewWatchdog makes the watchdog and puts it on the bus. It begins suspended. The device lock is held.
func NewWatchdog(p platform.Platform, h *Host) (*Watchdog, error) {
	start := time.Now()
	w := &Watchdog{
		p:     p,
		clock: func() time.Duration { return time.Since(start) },
		after: func(d time.Duration, fn func()) stopper { return time.AfterFunc(d, fn) },
	}
	w.powerOn()
	w.fn = NewFunction(Config{
		Vendor: 0x8086, Device: 0x25ab, Class: 0x088000, // system peripheral, other
		SubsystemVendor: 0x8086, Subsystem: 0x25ab, Interrupt: true,
	})
	if err := w.fn.AddBAR(0, watchdogBAR, (*watchdogWindow)(w), nil); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	w.fn.Hook(watchdogConfig, 2, w.readConfig, w.writeConfig)
	w.fn.Hook(watchdogLock, 1, w.readLock, w.writeLock)
	if err := h.Add(w.fn); err != nil {
		return nil, fmt.Errorf("watchdog: %w", err)
	}
	return w, nil
}

// powerOn sets all but timedOut as a reset does.
func (w *Watchdog) powerOn() {
	w.config, w.lock, w.unlock, w.stage, w.left, w.status = 0, 0, 0, 0, 0, false
	w.preload = [2]uint32{timerBits, timerBits}
}

// Slot is the device's slot on PCI bus 0.
func (w *Watchdog) Slot() int { return w.fn.Slot() }

// Close ends the timer. The device lock is held.
func (w *Watchdog) Close() error {
	w.Suspend()
	return nil
}

func (w *Watchdog) readConfig(_ int, data []byte) { putBytes(data, uint64(w.config)) }

func (w *Watchdog) writeConfig(off int, data []byte) {
	if off != 0 || len(data) != 2 {
		return
	}
	w.config = binary.LittleEndian.Uint16(data) & configBits
	w.driveInterrupt()
}

func (w *Watchdog) readLock(_ int, data []byte) { putBytes(data, uint64(w.lock)) }

func (w *Watchdog) writeLock(_ int, data []byte) {
	if w.lock&lockLocked != 0 {
		return
	}
	was := w.lock
	w.lock = data[0] & lockBits
	switch {
	case w.lock&lockEnable == 0:
		w.stop()
	case was&lockEnable == 0:
		w.start(1)
	}
}

func putBytes(data []byte, v uint64) {
	for i := range data {
		data[i] = byte(v >> (8 * i))
	}
}

// watchdogWindow is base address register 0.
type watchdogWindow Watchdog

func (b *watchdogWindow) Read(off uint64, data []byte) {
	w := (*Watchdog)(b)
	var regs [16]byte
	le := binary.LittleEndian
	le.PutUint32(regs[watchdogTimer1:], w.preload[0])
	le.PutUint32(regs[watchdogTimer2:], w.preload[1])
	if w.status {
		regs[watchdogStatus] = 1
	}
	if w.timedOut {
		le.PutUint16(regs[watchdogReload:], reloadTimedOut)
	}
	clear(data)
	if off < uint64(len(regs)) {
		copy(data, regs[off:])
	}
}

func (b *watchdogWindow) Write(off uint64, data []byte) {
	w := (*Watchdog)(b)
	var p [8]byte
	copy(p[:], data)
	v := binary.LittleEndian.Uint64(p[:])
	switch {
	case off == watchdogStatus:
		if v&1 != 0 {
			w.status = false
			w.driveInterrupt()
		}
		return
	case off == watchdogReload && v == unlockFirst:
		w.unlock = 1
		return
	case off == watchdogReload && v == unlockSecond && w.unlock == 1:
		w.unlock = 2
		return
	}
	if w.unlock != 2 {
		return
	}
	// One write for each unlocking.
	w.unlock = 0
	switch {
	case off == watchdogTimer1 && len(data) == 4:
		w.preload[0] = uint32(v) & timerBits
	case off == watchdogTimer2 && len(data) == 4:
		w.preload[1] = uint32(v) & timerBits
	case off == watchdogReload:
		if v&reloadTimedOut != 0 {
			w.timedOut = false
		}
		if v&reloadTimers != 0 && w.lock&lockEnable != 0 {
			w.start(1)
		}
	}
}

// start loads the timer of a stage and lets it count. A preload value of 0 counts as 1.
func (w *Watchdog) start(stage uint8) {
	shift := 15
	if w.config&configFast != 0 {
		shift = 5
	}
	clocks := uint64(w.preload[stage-1]+1) << shift
	w.stage, w.left = stage, time.Duration(clocks*1000/watchdogMHz)
	w.since = w.clock()
	w.await()
}

func (w *Watchdog) stop() {
	w.stage, w.left = 0, 0
	w.await()
}

// await has time looked at again soon, while there is a timer that counts.
func (w *Watchdog) await() {
	if w.tick != nil {
		w.tick.Stop()
		w.tick = nil
	}
	if !w.active || w.stage == 0 {
		return
	}
	w.asked = max(min(w.left, watchdogTick), watchdogSoonest)
	var tick stopper
	tick = w.after(w.asked, func() {
		w.p.Lock()
		defer w.p.Unlock()
		if w.tick == tick { // else it was stopped too late
			w.tick = nil
			w.look()
			w.await()
		}
	})
	w.tick = tick
}

// passed is the guest's time since it was last counted.
func (w *Watchdog) passed() time.Duration {
	if !w.active || w.stage == 0 {
		return 0
	}
	return max(0, min(w.clock()-w.since, 2*watchdogTick))
}

// look counts the time that has passed.
func (w *Watchdog) look() {
	w.left -= w.passed()
	w.since = w.clock()
	if w.left > 0 {
		return
	}
	if w.stage == 1 {
		w.status = true
		w.driveInterrupt()
		if w.lock&lockFreeRun != 0 {
			w.start(1)
			return
		}
		w.start(2)
		return
	}
	w.stop()
	if w.config&configNoOutput == 0 {
		w.timedOut = true
		w.p.PowerEvent(platform.WatchdogExpired)
	}
}

func (w *Watchdog) driveInterrupt() {
	w.fn.SetINTx(w.status && w.config&configInterrupt == interruptINTA)
}

// Advance counts the time that a guest has missed since the checkpoint that was loaded, but for what it
// needs to feed the watchdog. The device lock is held.
func (w *Watchdog) Advance(d time.Duration) {
	if w.stage != 0 && d > 0 {
		w.left = max(w.left-d, min(w.left, watchdogGrace))
	}
}

// Activate implements platform.Activator.
func (w *Watchdog) Activate() error {
	if !w.active {
		w.active, w.since = true, w.clock()
		w.await()
	}
	w.driveInterrupt()
	return nil
}

// Suspend implements platform.Suspender.
func (w *Watchdog) Suspend() {
	w.left = max(w.left-w.passed(), 0)
	w.active = false
	w.await()
}

// Reset implements platform.Resetter. Whether the watchdog was the reason stays known, as the driver asks.
func (w *Watchdog) Reset() {
	w.powerOn()
	w.await()
	w.fn.Reset()
}

// StateID implements platform.Stateful.
func (w *Watchdog) StateID() string { return "watchdog0" }

// StateVersion implements platform.Stateful.
func (w *Watchdog) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful.
func (w *Watchdog) SaveState(b []byte) []byte {
	le := binary.LittleEndian
	b = w.fn.Save(b)
	b = le.AppendUint16(b, w.config)
	b = append(b, w.lock, w.unlock, w.stage)
	b = le.AppendUint32(b, w.preload[0])
	b = le.AppendUint32(b, w.preload[1])
	b = le.AppendUint64(b, uint64(max(w.left-w.passed(), 0)))
	b = codec.AppendBool(b, w.status)
	return codec.AppendBool(b, w.timedOut)
}

// RestoreState implements platform.Stateful.
func (w *Watchdog) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	function := w.fn.Load(r)
	config, lock, unlock, stage := r.U16(), r.U8(), r.U8(), r.U8()
	preload := [2]uint32{r.U32(), r.U32()}
	left, status, timedOut := r.U64(), r.Bool(), r.Bool()
	if config&^configBits != 0 || lock&^lockBits != 0 || unlock > 2 || stage > 2 ||
		preload[0]&^timerBits != 0 || preload[1]&^timerBits != 0 || left > uint64(time.Hour) {
		r.Failf("watchdog config %#x, lock %#x, unlock %d, timers %#x, %d ns left of stage %d", config, lock, unlock, preload, left, stage)
	}
	if (stage != 0) && lock&lockEnable == 0 {
		r.Failf("a watchdog that is disabled counts")
	}
	if err := r.Done(); err != nil {
		return err
	}
	w.Suspend()
	w.config, w.lock, w.unlock, w.stage, w.preload = config, lock, unlock, stage, preload
	w.left, w.status, w.timedOut = time.Duration(left), status, timedOut
	function()
	return nil
}
