package legacy

import (
	"fmt"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// Events of the pvpanic port (QEMU, docs/specs/pvpanic.rst). Reading it says which ones are understood.
const (
	panicPanicked    = 1 << 0 // the kernel has panicked: the platform is to act
	panicCrashLoaded = 1 << 1 // it has panicked and handles that itself, by a crash kernel
)

// PVPanic is the port by which a guest's kernel says that it has panicked. The ACPI tables describe it
// as device QEMU0001, for which stock kernels load pvpanic-mmio. It has no state that the guest sees.
type PVPanic struct {
	p           platform.Platform
	crashLoaded func()
	told        bool // since the last reset: a guest that says it over and over fills no log
}

// NewPVPanic maps the port. crashLoaded hears of a panic that the guest handles by itself, once
// until the next reset; it may be nil. The device lock is held.
func NewPVPanic(p platform.Platform, crashLoaded func()) (*PVPanic, error) {
	d := &PVPanic{p: p, crashLoaded: crashLoaded}
	if err := p.Ports().Map(platform.PanicPort, 1, ports{d.read, d.write}); err != nil {
		return nil, fmt.Errorf("map the panic port: %w", err)
	}
	return d, nil
}

// Reset implements platform.Resetter.
func (d *PVPanic) Reset() { d.told = false }

func (*PVPanic) read(int) byte { return panicPanicked | panicCrashLoaded }

func (d *PVPanic) write(_ int, v byte) {
	switch {
	case v&panicPanicked != 0:
		d.p.PowerEvent(platform.Panicked)
	case v&panicCrashLoaded != 0 && d.crashLoaded != nil && !d.told:
		d.told = true
		d.crashLoaded()
	}
}
