package kvm

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// VCPU is one virtual CPU. Run belongs to one thread; the other calls wait until the vCPU is out of
// the guest, so they too come from that thread or while it is known to be stopped.
type VCPU struct {
	fd, id int
	mem    []byte // the kvm_run page and what follows it
	run    *run
}

// CreateVCPU makes vCPU number id, which is also its APIC ID (api.rst, 4.7).
func (v *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := ioctl(v.fd, ioCreateVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VCPU %d: %w", id, err)
	}
	unix.CloseOnExec(fd)
	mem, err := unix.Mmap(fd, 0, v.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map the kvm_run structure of vCPU %d: %w", id, err)
	}
	return &VCPU{fd: fd, id: id, mem: mem, run: runOf(mem)}, nil
}

// Close gives the vCPU back.
func (c *VCPU) Close() error {
	err := unix.Munmap(c.mem)
	c.mem, c.run = nil, nil
	return errors.Join(err, unix.Close(c.fd))
}

// ID is its number.
func (c *VCPU) ID() int { return c.id }
