package kvm

// ExitReason says why KVM_RUN returned (include/uapi/linux/kvm.h, KVM_EXIT_*).
type ExitReason uint32

const (
	ExitUnknown       ExitReason = 0
	ExitIO            ExitReason = 2
	ExitHLT           ExitReason = 5
	ExitMMIO          ExitReason = 6
	ExitIRQWindow     ExitReason = 7
	ExitShutdown      ExitReason = 8
	ExitFailEntry     ExitReason = 9
	ExitIntr          ExitReason = 10
	ExitInternalError ExitReason = 17
	ExitSystemEvent   ExitReason = 24
	ExitMemoryFault   ExitReason = 39
)

// Types of ExitSystemEvent.
const (
	SystemShutdown = 1
	SystemReset    = 2
	SystemCrash    = 3
)

// run is struct kvm_run up to the end of the synchronized registers.
type run struct {
	// flags are request_interrupt_window, immediate_exit and padding, written as one word so that
	// another thread can do it atomically.
	flags      uint32
	_          uint32
	exitReason ExitReason
	_          [4]byte
	cr8        uint64
	apicBase   uint64
	exit       [256]byte
	validRegs  uint64
	dirtyRegs  uint64
	regs       Regs
	sregs      Sregs
	events     Events
}

const (
	runMinSize    = 304 + 2048 // sizeof(struct kvm_run)
	immediateExit = 1 << 8     // the second byte
	syncAll       = 7          // KVM_SYNC_X86_REGS | SREGS | EVENTS
)

// IO is a port access that waits for us: Data holds Count items of Size bytes, one after the other,
// and is where a read puts its result.
type IO struct {
	Port  uint16
	Size  int
	Write bool
	Data  []byte
}

// MMIO is a memory access that waits for us; a read puts its result into Data.
type MMIO struct {
	Addr  uint64
	Write bool
	Data  []byte
}
