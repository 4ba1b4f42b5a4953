package kvm

// Cap is the number of a KVM capability (include/uapi/linux/kvm.h, KVM_CAP_*).
type Cap int

// Capabilities that Pollux needs or makes use of.
const (
	CapIRQChip            Cap = 0
	CapUserMemory         Cap = 3
	CapSetTSSAddr         Cap = 4
	CapExtCPUID           Cap = 7
	CapNrVCPUs            Cap = 9
	CapNrMemslots         Cap = 10
	CapMPState            Cap = 14
	CapSyncMMU            Cap = 16
	CapPIT2               Cap = 33
	CapPITState2          Cap = 35
	CapIOEventFD          Cap = 36
	CapSetIdentityMapAddr Cap = 37
	CapAdjustClock        Cap = 39
	CapVCPUEvents         Cap = 41
	CapDebugRegs          Cap = 50
	CapXSAVE              Cap = 55
	CapXCRs               Cap = 56
	CapTSCControl         Cap = 60
	CapGetTSCKHz          Cap = 61
	CapMaxVCPUs           Cap = 66
	CapTSCDeadlineTimer   Cap = 72
	CapSyncRegs           Cap = 74
	CapSignalMSI          Cap = 77
	CapReadOnlyMem        Cap = 81
	CapIOEventFDAnyLength Cap = 122
	CapImmediateExit      Cap = 136
	CapManualDirtyLog     Cap = 168
	CapSregs2             Cap = 200
	CapXSAVE2             Cap = 208
)

// DirtyLogManual and DirtyLogInitiallySet are the bits of CapManualDirtyLog.
const (
	DirtyLogManual       = 1 << 0
	DirtyLogInitiallySet = 1 << 1
)

type requirement struct {
	cap  Cap
	name string
	mask int // bits that must be set; 0: any value but 0
	why  string
}

// needed lists what a host must have. All of it is in every kvm-intel and kvm-amd since Linux 5.7.
var needed = []requirement{
	{CapIRQChip, "KVM_CAP_IRQCHIP", 0, "interrupt controllers in the kernel"},
	{CapUserMemory, "KVM_CAP_USER_MEMORY", 0, "guest memory"},
	{CapSetTSSAddr, "KVM_CAP_SET_TSS_ADDR", 0, "real mode on Intel"},
	{CapSetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR", 0, "real mode on Intel"},
	{CapExtCPUID, "KVM_CAP_EXT_CPUID", 0, "CPUID"},
	{CapMPState, "KVM_CAP_MP_STATE", 0, "several vCPUs"},
	{CapSyncMMU, "KVM_CAP_SYNC_MMU", 0, "replacing damaged pages under a running guest"},
	{CapPIT2, "KVM_CAP_PIT2", 0, "timer"},
	{CapPITState2, "KVM_CAP_PIT_STATE2", 0, "timer"},
	{CapIOEventFD, "KVM_CAP_IOEVENTFD", 0, "queue notifications"},
	{CapIOEventFDAnyLength, "KVM_CAP_IOEVENTFD_ANY_LENGTH", 0, "queue notifications"},
	{CapSignalMSI, "KVM_CAP_SIGNAL_MSI", 0, "interrupts of virtio devices"},
	{CapAdjustClock, "KVM_CAP_ADJUST_CLOCK", 0, "guest time across a takeover"},
	{CapGetTSCKHz, "KVM_CAP_GET_TSC_KHZ", 0, "guest time across a takeover"},
	{CapVCPUEvents, "KVM_CAP_VCPU_EVENTS", 0, "saving vCPUs"},
	{CapDebugRegs, "KVM_CAP_DEBUGREGS", 0, "saving vCPUs"},
	{CapXSAVE, "KVM_CAP_XSAVE", 0, "saving vCPUs"},
	{CapXCRs, "KVM_CAP_XCRS", 0, "saving vCPUs"},
	{CapImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", 0, "stopping vCPUs"},
	{CapManualDirtyLog, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", DirtyLogManual | DirtyLogInitiallySet, "dirty page tracking"},
}
