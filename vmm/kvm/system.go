package kvm

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Path is KVM's device.
const Path = "/dev/kvm"

// APIVersion is the only one that KVM has had since Linux 2.6.22 (api.rst, 4.1).
const APIVersion = 12

// System is an open /dev/kvm.
type System struct{ fd int }

// Open opens /dev/kvm. Its errors tell an operator what to do.
func Open() (*System, error) {
	fd, err := unix.Open(Path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return &System{fd}, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("open %s: %w: switch on virtualization (VT-x or AMD-V) in the firmware and load the module kvm_intel or kvm_amd; "+
			"in a virtual machine, nested virtualization has to be on", Path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open %s: %w: run as root, or add the user to the group kvm (usermod -aG kvm USER) and log in again", Path, err)
	}
	return nil, fmt.Errorf("open %s: %w", Path, err)
}

// Close closes /dev/kvm; machines made from it live on.
func (s *System) Close() error { return unix.Close(s.fd) }

// APIVersion asks for KVM's API version (api.rst, 4.1).
func (s *System) APIVersion() (int, error) { return ioctl(s.fd, ioGetAPIVersion, 0) }

// Extension asks whether KVM has a capability: 0 says no, other values are the capability's own
// (api.rst, 4.4).
func (s *System) Extension(c Cap) int { return extension(s.fd, c) }

func extension(fd int, c Cap) int {
	n, err := ioctl(fd, ioCheckExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return n
}

// runSize is the size of the structure that a vCPU shares with us (api.rst, 4.5).
func (s *System) runSize() (int, error) {
	n, err := ioctl(s.fd, ioGetVCPUMmapSize, 0)
	if err != nil {
		return 0, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	if n < runMinSize {
		return 0, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %d bytes, less than struct kvm_run", n)
	}
	return n, nil
}

// HasSyncRegs says whether vCPUs can leave all their registers in the shared structure.
func (s *System) HasSyncRegs() bool { return s.Extension(CapSyncRegs)&syncAll == syncAll }
