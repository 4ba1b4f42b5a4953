package kvm

import "fmt"

const (
	memLogDirtyPages = 1 // KVM_MEM_LOG_DIRTY_PAGES
	memReadOnly      = 2 // KVM_MEM_READONLY
)

type userspaceMemoryRegion struct {
	slot, flags         uint32
	gpa, size, userAddr uint64
}

// SetMemory makes mem the guest's memory at gpa, or changes the slot's dirty logging when it is
// there already (api.rst, 4.35). mem must stay mapped until the machine is closed.
func (v *VM) SetMemory(slot uint32, gpa uint64, mem []byte, logDirty bool) error {
	r := userspaceMemoryRegion{slot: slot, gpa: gpa, size: uint64(len(mem)), userAddr: addressOf(mem)}
	if logDirty {
		r.flags = memLogDirtyPages
	}
	if _, err := ioctlPtr(v.fd, ioSetUserMemoryRegion, &r); err != nil {
		return fmt.Errorf("KVM_SET_USER_MEMORY_REGION slot %d, %d bytes at %#x, dirty logging %t: %w", slot, len(mem), gpa, logDirty, err)
	}
	return nil
}

// SetReadOnlyMemory makes mem the guest's memory at gpa. What the guest writes there is an MMIO exit
// (api.rst, 4.35; KVM_CAP_READONLY_MEM). mem must stay mapped until the machine is closed.
func (v *VM) SetReadOnlyMemory(slot uint32, gpa uint64, mem []byte) error {
	if v.Extension(CapReadOnlyMem) == 0 {
		return fmt.Errorf("this host's KVM has no read-only memory (KVM_CAP_READONLY_MEM), which firmware needs: it is in every kernel since Linux 3.7")
	}
	r := userspaceMemoryRegion{slot: slot, flags: memReadOnly, gpa: gpa, size: uint64(len(mem)), userAddr: addressOf(mem)}
	if _, err := ioctlPtr(v.fd, ioSetUserMemoryRegion, &r); err != nil {
		return fmt.Errorf("KVM_SET_USER_MEMORY_REGION slot %d, %d read-only bytes at %#x: %w", slot, len(mem), gpa, err)
	}
	return nil
}

type dirtyLog struct {
	slot, _ uint32
	bitmap  uint64
}

type clearDirtyLog struct {
	slot, pages uint32
	first       uint64
	bitmap      uint64
}
