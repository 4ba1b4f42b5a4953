package vmm

import (
	"errors"
	"io"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/firmware"
	"github.com/pollux-ha/pollux/vmm/legacy"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/virtio"
)

// Config says what machine to build. Both hosts of a pair build theirs from the same one.
type Config struct {
	MemoryBytes uint64
	CPUs        int

	// Kernel is an ELF image with a PVH entry note, or a bzImage. It is nil for a machine that
	// will be restored.
	Kernel  []byte
	Initrd  []byte
	Cmdline string

	// Firmware boots the machine from its own disks instead of a kernel.
	Firmware *FirmwareConfig

	Disks []DiskConfig
	Nets  []NetConfig

	// Generation is the VM generation ID that a booting guest sees. A restored one keeps its own.
	Generation legacy.GenerationID

	ConsoleIn io.Reader       // what is typed on the guest's console; may be nil
	Output    platform.Output // where all that leaves the guest goes; nil drops it

	// OnPause runs in every pause that RequestPause asked for, on the thread of the vCPU that
	// stopped last, with the device lock held. True lets the guest go on at once, false makes it
	// stay until Resume or Stop. Nil lets it go on.
	OnPause func(*Pause) bool
	// OnPower is told, on a goroutine of its own, that the guest asked for power-off or a reset,
	// or died. The vCPUs stay stopped from then on. May be nil.
	OnPower func(platform.PowerEvent)
	// OnFault is told, on a goroutine of its own, that this host can't run the guest any more. The vCPUs stay
	// stopped from then on, and the guest's state is as it was. Nil: such a fault is a crash of the guest.
	OnFault func(error)
	// OnMemoryFault is told, on a goroutine of its own, of a page of guest RAM that can't be read.
	// The vCPU that met it waits, still taking part in pauses, until Heal or Stop; a device that met it
	// waits with the device lock held, until Heal, GiveUpDamage or Stop. Nil: such a fault is a crash of
	// the guest.
	OnMemoryFault func(MemoryFault)
	// OnDiskError is told of each access to a disk's file that failed, on a goroutine of the disk's. True
	// keeps it from the guest: the request stays in flight, and whoever goes on from this machine's state
	// issues it again. May be nil.
	OnDiskError func(DiskError) (hold bool)

	Log *zap.Logger // nil logs nothing

	// PinCPUs ties each vCPU's thread to a host CPU of its own, where there are enough.
	PinCPUs bool

	// CPU is the processor that the guest sees, so that it can run on both hosts of an unequal pair. A
	// host that can't run it fails New with ErrCPU. Nil shows the guest all that this host has.
	CPU *cpu.Model
}

// BlockFile is what a disk is kept in. Several goroutines use it at a time, but never for ranges that
// overlap unless both read. One that is a virtio.Zeroer can give space back, one that is virtio.Sparse
// knows its holes.
type BlockFile interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Size() int64 // in bytes
}

// DiskConfig is one disk of the guest.
type DiskConfig struct {
	File     BlockFile
	ReadOnly bool
	Serial   string // empty: pollux-<index>
	Queues   int    // request queues; 0: one for each vCPU, at most 4
}

// FirmwareConfig is a machine's UEFI firmware.
type FirmwareConfig struct {
	// File holds the flash memory, platform.FlashSize bytes: the variables and the code that the guest was
	// booted with. It is the disk after Config.Disks, and mirrored as they are.
	File BlockFile
	// Image is the firmware as the host has it, for Boot: new code for each cold boot, variables for the
	// first. Nil boots what File holds.
	Image *firmware.Image
}

// NetConfig is one network interface of the guest.
type NetConfig struct {
	Tap virtio.Tap // tap.Open makes one; the NIC has as many queue pairs as it has queues
	MAC net.HardwareAddr
	MTU int  // what the guest is told; 0: nothing, which means 1,500
	USO bool // segmentation offload for UDP, for which the tap has been opened
}

// MemoryFault is a page of guest RAM that the hardware can't read any more.
type MemoryFault struct {
	Page int    // its page index
	GPA  uint64 // guest-physical address of the access, as precisely as it is known
	VCPU int    // the vCPU that met it and waits for Heal; -1: the VMM itself met it
	// Optional faults were found by the kernel's scrubbing: nobody has used the data yet.
	Optional bool
	Since    time.Time // when the page was found damaged
}

// Errors that callers tell apart.
var (
	ErrStopped     = errors.New("the machine has stopped")
	ErrRunning     = errors.New("the machine is running")
	ErrMemoryFault = errors.New("guest memory can't be read")
	ErrCPU         = errors.New("another CPU model is needed, or another host")
	ErrState       = platform.ErrState
)
