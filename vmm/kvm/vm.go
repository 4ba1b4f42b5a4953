package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// VM is a virtual machine: memory slots, interrupt controllers, clock. Its methods are safe for
// concurrent use; KVM serializes them.
type VM struct {
	fd      int
	runSize int
}

// CreateVM makes an empty machine (api.rst, 4.2).
func (s *System) CreateVM() (*VM, error) {
	n, err := s.runSize()
	if err != nil {
		return nil, err
	}
	fd, err := ioctl(s.fd, ioCreateVM, 0)
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	unix.CloseOnExec(fd)
	return &VM{fd, n}, nil
}

// Close gives the machine back. Its vCPUs must be closed, too, before its memory is freed.
func (v *VM) Close() error { return unix.Close(v.fd) }

// Extension is System.Extension for this machine.
func (v *VM) Extension(c Cap) int { return extension(v.fd, c) }

type enableCap struct {
	cap, flags uint32
	args       [4]uint64
	_          [64]byte
}

// EnableCap switches a capability on (api.rst, 4.37).
func (v *VM) EnableCap(c Cap, arg0 uint64) error {
	a := enableCap{cap: uint32(c), args: [4]uint64{arg0}}
	if _, err := ioctlPtr(v.fd, ioEnableCap, &a); err != nil {
		return fmt.Errorf("KVM_ENABLE_CAP %d: %w", c, err)
	}
	return nil
}

// SetTSSAddr reserves three guest-physical pages that Intel's real mode needs (api.rst, 4.6). They
// must not lie in a memory slot or a device window.
func (v *VM) SetTSSAddr(gpa uint64) error {
	if _, err := ioctl(v.fd, ioSetTSSAddr, uintptr(gpa)); err != nil {
		return fmt.Errorf("KVM_SET_TSS_ADDR: %w", err)
	}
	return nil
}

// SetIdentityMapAddr reserves one more such page (api.rst, 4.41). It comes before the vCPUs.
func (v *VM) SetIdentityMapAddr(gpa uint64) error {
	if _, err := ioctlPtr(v.fd, ioSetIdentityMapAddr, &gpa); err != nil {
		return fmt.Errorf("KVM_SET_IDENTITY_MAP_ADDR: %w", err)
	}
	return nil
}
