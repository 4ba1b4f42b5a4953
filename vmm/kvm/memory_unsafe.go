package kvm

import (
	"fmt"
	"runtime"
	"unsafe"
)

// DirtyLog fills bitmap, one bit for each page of the slot, rounded up to whole words, with the
// pages that the guest has written since they were last cleared (api.rst, 4.8). With
// CapManualDirtyLog it clears nothing.
func (v *VM) DirtyLog(slot uint32, bitmap []uint64) error {
	l := dirtyLog{slot: slot, bitmap: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(bitmap))))}
	_, err := ioctlPtr(v.fd, ioGetDirtyLog, &l)
	runtime.KeepAlive(bitmap)
	if err != nil {
		return fmt.Errorf("KVM_GET_DIRTY_LOG slot %d: %w", slot, err)
	}
	return nil
}

// ClearDirtyLog forgets and write-protects again the pages that are set in bitmap, whose first bit
// is page first of the slot (api.rst, 4.120). first is a multiple of 64; pages is one too, unless
// they reach the end of the slot.
func (v *VM) ClearDirtyLog(slot uint32, first uint64, pages uint32, bitmap []uint64) error {
	l := clearDirtyLog{slot: slot, pages: pages, first: first,
		bitmap: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(bitmap))))}
	_, err := ioctlPtr(v.fd, ioClearDirtyLog, &l)
	runtime.KeepAlive(bitmap)
	if err != nil {
		return fmt.Errorf("KVM_CLEAR_DIRTY_LOG slot %d, %d pages from %d: %w", slot, pages, first, err)
	}
	return nil
}
