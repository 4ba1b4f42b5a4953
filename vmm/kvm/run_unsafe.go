package kvm

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

func runOf(mem []byte) *run { return (*run)(unsafe.Pointer(unsafe.SliceData(mem))) }

// Run enters the guest and returns when something is to be done (api.rst, 4.10). EINTR: a signal or
// SetImmediateExit; EAGAIN: the vCPU has got its start-up message, run it again. It is a plain
// blocking system call, so Go's scheduler lends the processor to others meanwhile.
func (c *VCPU) Run() error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), ioRun, 0); e != 0 {
		return e
	}
	return nil
}

// SetImmediateExit makes Run return EINTR at once, after it has completed the access of the last
// exit (api.rst, struct kvm_run, immediate_exit). Any thread may call it.
func (c *VCPU) SetImmediateExit(on bool) {
	var f uint32
	if on {
		f = immediateExit
	}
	atomic.StoreUint32(&c.run.flags, f)
}

// SyncRegs makes every Run leave the registers in the shared structure (CapSyncRegs).
func (c *VCPU) SyncRegs() { c.run.validRegs = syncAll }

// Synced gives the registers as of the last Run.
func (c *VCPU) Synced() (*Regs, *Sregs, *Events) { return &c.run.regs, &c.run.sregs, &c.run.events }

// Exit is the reason for which Run returned without an error.
func (c *VCPU) Exit() ExitReason { return c.run.exitReason }

// IO is the access of an ExitIO.
func (c *VCPU) IO() IO {
	e := &c.run.exit
	size, count := int(e[1]), int(binary.NativeEndian.Uint32(e[4:]))
	off := binary.NativeEndian.Uint64(e[8:])
	return IO{
		Port: binary.NativeEndian.Uint16(e[2:]), Size: size, Write: e[0] == 1,
		Data: c.mem[off : off+uint64(size*count)],
	}
}

// MMIO is the access of an ExitMMIO.
func (c *VCPU) MMIO() MMIO {
	e := &c.run.exit
	return MMIO{
		Addr: binary.NativeEndian.Uint64(e[0:]), Write: e[20] != 0,
		Data: e[8 : 8+min(binary.NativeEndian.Uint32(e[16:]), 8)],
	}
}

// Detail is the first words of the exit: of ExitFailEntry the hardware's reason, of
// ExitInternalError the sub-error, of ExitSystemEvent the type, of ExitMemoryFault flags, address
// and size.
func (c *VCPU) Detail() (w [3]uint64) {
	for i := range w {
		w[i] = binary.NativeEndian.Uint64(c.run.exit[8*i:])
	}
	return w
}

type signalMask struct {
	len uint32
	set [8]byte
}

// SetSignalMask says which signals are blocked while the vCPU is in Run (api.rst, 4.21).
func (c *VCPU) SetSignalMask(set uint64) error {
	m := signalMask{len: 8}
	binary.NativeEndian.PutUint64(m.set[:], set)
	return get(c, "SET_SIGNAL_MASK", ioSetSignalMask, &m)
}
