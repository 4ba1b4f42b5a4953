package kvm

import "fmt"

// memLogDirtyPages is KVM_MEM_LOG_DIRTY_PAGES.
const memLogDirtyPages = 1

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

type dirtyLog struct {
	slot, _ uint32
	bitmap  uint64
}

type clearDirtyLog struct {
	slot, pages uint32
	first       uint64
	bitmap      uint64
}
