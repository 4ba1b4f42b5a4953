package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers, from include/uapi/linux/kvm.h for x86-64.
const (
	ioGetAPIVersion       = 0xae00
	ioCreateVM            = 0xae01
	ioGetMSRIndexList     = 0xc004ae02
	ioCheckExtension      = 0xae03
	ioGetVCPUMmapSize     = 0xae04
	ioGetSupportedCPUID   = 0xc008ae05
	ioCreateVCPU          = 0xae41
	ioGetDirtyLog         = 0x4010ae42
	ioSetUserMemoryRegion = 0x4020ae46
	ioSetTSSAddr          = 0xae47
	ioSetIdentityMapAddr  = 0x4008ae48
	ioCreateIRQChip       = 0xae60
	ioIRQLine             = 0x4008ae61
	ioGetIRQChip          = 0xc208ae62
	ioSetIRQChip          = 0x8208ae63
	ioIOEventFD           = 0x4040ae79
	ioCreatePIT2          = 0x4040ae77
	ioSetClock            = 0x4030ae7b
	ioGetClock            = 0x8030ae7c
	ioRun                 = 0xae80
	ioGetRegs             = 0x8090ae81
	ioSetRegs             = 0x4090ae82
	ioGetSregs            = 0x8138ae83
	ioSetSregs            = 0x4138ae84
	ioTranslate           = 0xc018ae85
	ioGetMSRs             = 0xc008ae88
	ioSetMSRs             = 0x4008ae89
	ioSetSignalMask       = 0x4004ae8b
	ioGetLAPIC            = 0x8400ae8e
	ioSetLAPIC            = 0x4400ae8f
	ioSetCPUID2           = 0x4008ae90
	ioGetCPUID2           = 0xc008ae91
	ioSetUpMCE            = 0x4008ae9c
	ioGetMPState          = 0x8004ae98
	ioSetMPState          = 0x4004ae99
	ioGetVCPUEvents       = 0x8040ae9f
	ioGetPIT2             = 0x8070ae9f
	ioSetVCPUEvents       = 0x4040aea0
	ioKVMClockCtrl        = 0xaead
	ioSetPIT2             = 0x4070aea0
	ioGetDebugRegs        = 0x8080aea1
	ioSetDebugRegs        = 0x4080aea2
	ioSetTSCKHz           = 0xaea2
	ioGetTSCKHz           = 0xaea3
	ioEnableCap           = 0x4068aea3
	ioGetXSAVE            = 0x9000aea4
	ioSetXSAVE            = 0x5000aea5
	ioSignalMSI           = 0x4020aea5
	ioGetXCRs             = 0x8188aea6
	ioSetXCRs             = 0x4188aea7
	ioClearDirtyLog       = 0xc018aec0
	ioGetSregs2           = 0x8140aecc
	ioSetSregs2           = 0x4140aecd
	ioGetXSAVE2           = 0x9000aecf
	ioSetDeviceAttr       = 0x4018aee1
	ioGetDeviceAttr       = 0x4018aee2
	ioHasDeviceAttr       = 0x4018aee3
)

// ioctl calls with an integer argument. EINTR is tried again: none of the calls that come here
// wait for the guest.
func ioctl(fd int, req, arg uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		switch e {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// ioctlPtr calls with a structure, which the kernel may change.
func ioctlPtr[T any](fd int, req uintptr, arg *T) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
		switch e {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
