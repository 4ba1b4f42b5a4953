package vmm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kickSignal gets a vCPU's thread out of the guest. It is blocked on those threads, so no handler
// ever runs for it.
const kickSignal = unix.SIGUSR2

// Codes of a SIGBUS (include/uapi/asm-generic/siginfo.h).
const (
	busAdrErr = 2 // BUS_ADRERR: nothing there
	busAR     = 4 // BUS_MCEERR_AR: the access needed the data, action required
	busAO     = 5 // BUS_MCEERR_AO: found by scrubbing, action optional
)

func sigset(signals ...unix.Signal) (s unix.Sigset_t) {
	for _, n := range signals {
		s.Val[(n-1)/64] |= 1 << ((n - 1) % 64)
	}
	return s
}

var (
	vcpuSignals = sigset(unix.SIGBUS, kickSignal)
	busSignal   = sigset(unix.SIGBUS)
)

// blockVCPUSignals keeps the two signals of a vCPU pending on this thread, which belongs to its
// goroutine for good, and returns the mask for KVM_RUN: all but these two, which also keeps Go's
// preemption signals from ending it.
func blockVCPUSignals() (runMask uint64, err error) {
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &vcpuSignals, nil); err != nil {
		return 0, fmt.Errorf("block signals on a vCPU's thread: %w", err)
	}
	return ^vcpuSignals.Val[0], nil
}

// siginfo is the start of siginfo_t on x86-64.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	addr               uint64
	_                  [104]byte
}

// takeSignal takes one pending signal of set off this thread, if there is one.
func takeSignal(set *unix.Sigset_t, info *siginfo) bool {
	var zero unix.Timespec
	for {
		_, _, e := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(set)),
			uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&zero)), 8, 0, 0)
		if e != unix.EINTR {
			return e == 0
		}
	}
}

// offsetIn says where in b the address lies.
func offsetIn(b []byte, addr uint64) (int, bool) {
	base := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	if addr < base || addr-base >= uint64(len(b)) {
		return 0, false
	}
	return int(addr - base), true
}

// bytesOf is the memory of a structure that is carried as the kernel lays it out.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
