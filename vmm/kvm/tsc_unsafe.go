package kvm

import (
	"fmt"
	"unsafe"
)

type deviceAttr struct {
	flags, group uint32
	attr, addr   uint64
}

// Of a vCPU (Documentation/virt/kvm/devices/vcpu.rst, section 4): group KVM_VCPU_TSC_CTRL, attribute
// KVM_VCPU_TSC_OFFSET.
const (
	vcpuTSCControl = 0
	vcpuTSCOffset  = 0
)

// HasTSCOffset says whether the offset between the host's time stamp counter, scaled, and the vCPU's
// can be set as such (Linux 5.16). Setting the counter itself is subject to KVM's guesses at what is meant.
func (c *VCPU) HasTSCOffset() bool {
	_, err := ioctlPtr(c.fd, ioHasDeviceAttr, &deviceAttr{group: vcpuTSCControl, attr: vcpuTSCOffset})
	return err == nil
}

// TSCOffset reads it.
func (c *VCPU) TSCOffset() (uint64, error) {
	offset := new(uint64)
	a := deviceAttr{group: vcpuTSCControl, attr: vcpuTSCOffset, addr: uint64(uintptr(unsafe.Pointer(offset)))}
	if _, err := ioctlPtr(c.fd, ioGetDeviceAttr, &a); err != nil {
		return 0, fmt.Errorf("KVM_GET_DEVICE_ATTR, TSC offset of vCPU %d: %w", c.id, err)
	}
	return *offset, nil
}

// SetTSCOffset sets it. vCPUs with the same offset and rate are in step.
func (c *VCPU) SetTSCOffset(offset uint64) error {
	at := new(uint64)
	*at = offset
	a := deviceAttr{group: vcpuTSCControl, attr: vcpuTSCOffset, addr: uint64(uintptr(unsafe.Pointer(at)))}
	if _, err := ioctlPtr(c.fd, ioSetDeviceAttr, &a); err != nil {
		return fmt.Errorf("KVM_SET_DEVICE_ATTR, TSC offset of vCPU %d to %#x: %w", c.id, offset, err)
	}
	return nil
}

// ClockPaused has KVM tell the guest, by a flag in its kvmclock page, that it has been stopped, so that it
// does not take the time that has passed for a lockup (KVM_KVMCLOCK_CTRL, api.rst, 4.74). It says false
// where the guest uses no kvmclock.
func (c *VCPU) ClockPaused() bool {
	_, err := ioctl(c.fd, ioKVMClockCtrl, 0)
	return err == nil
}
