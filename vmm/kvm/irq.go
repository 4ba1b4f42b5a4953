package kvm

import "fmt"

// CreateIRQChip gives the machine two 8259 PICs, an IOAPIC, and each vCPU a LAPIC, with the usual
// routes between them (api.rst, 4.24). It comes before the vCPUs.
func (v *VM) CreateIRQChip() error {
	if _, err := ioctl(v.fd, ioCreateIRQChip, 0); err != nil {
		return fmt.Errorf("KVM_CREATE_IRQCHIP: %w", err)
	}
	return nil
}

// IRQChips is the number of chips of IRQChip: PIC master, PIC slave, IOAPIC.
const IRQChips = 3

// IRQChip is struct kvm_irqchip: chip number, padding, 512 bytes of state.
type IRQChip [520]byte

// IRQChipState reads the state of a chip (api.rst, 4.26).
func (v *VM) IRQChipState(chip int, to *IRQChip) error {
	*to = IRQChip{byte(chip)}
	if _, err := ioctlPtr(v.fd, ioGetIRQChip, to); err != nil {
		return fmt.Errorf("KVM_GET_IRQCHIP %d: %w", chip, err)
	}
	return nil
}

// SetIRQChipState is its counterpart; the chip's number is in its first byte.
func (v *VM) SetIRQChipState(s *IRQChip) error {
	if _, err := ioctlPtr(v.fd, ioSetIRQChip, s); err != nil {
		return fmt.Errorf("KVM_SET_IRQCHIP %d: %w", s[0], err)
	}
	return nil
}

// SetLine sets the level of an input of the IOAPIC/PIC pair (api.rst, 4.25).
func (v *VM) SetLine(gsi int, level bool) error {
	a := [2]uint32{uint32(gsi), 0}
	if level {
		a[1] = 1
	}
	if _, err := ioctlPtr(v.fd, ioIRQLine, &a); err != nil {
		return fmt.Errorf("KVM_IRQ_LINE %d: %w", gsi, err)
	}
	return nil
}

type msi struct {
	addrLow, addrHigh, data, flags, devid uint32
	_                                     [12]byte
}

// SignalMSI delivers a message-signalled interrupt (api.rst, 4.70). When it returns the interrupt
// is in the LAPIC; an irqfd may leave that to a work queue, behind the back of a checkpoint.
func (v *VM) SignalMSI(addr uint64, data uint32) error {
	a := msi{addrLow: uint32(addr), addrHigh: uint32(addr >> 32), data: data}
	if _, err := ioctlPtr(v.fd, ioSignalMSI, &a); err != nil {
		return fmt.Errorf("KVM_SIGNAL_MSI %#x to %#x: %w", data, addr, err)
	}
	return nil
}

type ioEventFD struct {
	datamatch, addr uint64
	len             uint32
	fd              int32
	flags           uint32
	_               [36]byte
}

const ioEventFDDeassign = 1 << 2

// AddIOEvent makes the guest's writes to an MMIO address, whatever their size and value, add one
// to the eventfd fd instead of stopping the vCPU (api.rst, 4.59). Size 0 needs
// CapIOEventFDAnyLength.
func (v *VM) AddIOEvent(addr uint64, fd int) error {
	if _, err := ioctlPtr(v.fd, ioIOEventFD, &ioEventFD{addr: addr, fd: int32(fd)}); err != nil {
		return fmt.Errorf("KVM_IOEVENTFD at %#x: %w", addr, err)
	}
	return nil
}

// RemoveIOEvent takes it back.
func (v *VM) RemoveIOEvent(addr uint64, fd int) error {
	if _, err := ioctlPtr(v.fd, ioIOEventFD, &ioEventFD{addr: addr, fd: int32(fd), flags: ioEventFDDeassign}); err != nil {
		return fmt.Errorf("KVM_IOEVENTFD, taking back %#x: %w", addr, err)
	}
	return nil
}
