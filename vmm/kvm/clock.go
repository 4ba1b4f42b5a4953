package kvm

import (
	"fmt"
	"time"
)

type pitConfig struct {
	flags uint32
	_     [60]byte
}

// pitSpeakerDummy is KVM_PIT_SPEAKER_DUMMY: KVM answers port 0x61, too, which guests use to
// calibrate against channel 2.
const pitSpeakerDummy = 1

// CreatePIT2 gives the machine an i8254 timer (api.rst, 4.71). It comes after the IRQ chips.
func (v *VM) CreatePIT2() error {
	if _, err := ioctlPtr(v.fd, ioCreatePIT2, &pitConfig{flags: pitSpeakerDummy}); err != nil {
		return fmt.Errorf("KVM_CREATE_PIT2: %w", err)
	}
	return nil
}

// PIT is struct kvm_pit_state2.
type PIT [112]byte

// PITState reads the timer's state (api.rst, 4.72).
func (v *VM) PITState(to *PIT) error {
	if _, err := ioctlPtr(v.fd, ioGetPIT2, to); err != nil {
		return fmt.Errorf("KVM_GET_PIT2: %w", err)
	}
	return nil
}

// SetPITState is its counterpart (api.rst, 4.73).
func (v *VM) SetPITState(s *PIT) error {
	if _, err := ioctlPtr(v.fd, ioSetPIT2, s); err != nil {
		return fmt.Errorf("KVM_SET_PIT2: %w", err)
	}
	return nil
}

type clockData struct {
	clock      uint64
	flags, pad uint32
	_          [32]byte
}

// Clock reads kvmclock (api.rst, 4.29).
func (v *VM) Clock() (time.Duration, error) {
	var c clockData
	if _, err := ioctlPtr(v.fd, ioGetClock, &c); err != nil {
		return 0, fmt.Errorf("KVM_GET_CLOCK: %w", err)
	}
	return time.Duration(c.clock), nil
}

// SetClock sets it (api.rst, 4.30).
func (v *VM) SetClock(d time.Duration) error {
	if _, err := ioctlPtr(v.fd, ioSetClock, &clockData{clock: uint64(d)}); err != nil {
		return fmt.Errorf("KVM_SET_CLOCK: %w", err)
	}
	return nil
}
