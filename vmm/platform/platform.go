// Package platform says what a device model may ask of the machine that it sits in, and what
// the machine asks of a device. Devices depend on this package, never on the machine or on KVM,
// so that each can be tested and fuzzed alone.
package platform

import (
	"sync"

	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// The machine's fixed addresses, all guest-physical. RAM ends below memory.LowLimit and goes on
// at memory.HighBase.
const (
	PCIMemoryBase = 0x8000_0000 // a guest may put BARs anywhere in [PCIMemoryBase, PCIMemoryEnd) but into the ECAM
	PCIMemoryEnd  = 0xFC00_0000
	PCIWindowBase = 0xC000_0000 // without firmware BARs lie in [PCIWindowBase, PCIWindowEnd)
	PCIWindowEnd  = 0xE000_0000
	ECAMBase      = 0xE000_0000 // PCI Express configuration space, 256 buses of 1 MiB; firmware may move it
	ECAMSize      = 0x1000_0000
	IOAPICBase    = 0xFEC0_0000
	LAPICBase     = 0xFEE0_0000
	TSSBase       = 0xFEFF_D000 // KVM_SET_TSS_ADDR, three pages
	IdentityMap   = 0xFEFF_C000 // KVM_SET_IDENTITY_MAP_ADDR, one page
	FlashBase     = 0xFFC0_0000 // firmware's flash memory: variables, then code up to the reset vector
	FlashSize     = 0x0040_0000

	PMBase     = 0x600 // ACPI PM1a event (4 bytes), then PM1a control at +4 (2 bytes), PM timer at +8 (4 bytes), GPE0 at +0x20
	SerialBase = 0x3f8 // COM1, ISA IRQ 4
	SCIIRQ     = 9
	SerialIRQ  = 4

	PanicPort = 0x505 // pvpanic, ACPI device QEMU0001

	// GenerationPage is the page of RAM that begins with the VM generation ID. No firmware and no memory map
	// gives the end of the first MiB away as usable.
	GenerationPage = 0xF_F000
)

// Platform is the machine as a device sees it. All methods but Lock are called with the device
// lock held, and every callback that a device registers is run with it held: one lock serializes
// all device models, so that a checkpoint that holds it sees each of them at rest.
type Platform interface {
	// Lock is the device lock. A device's own goroutine (a disk worker) takes it before it touches
	// device state, guest memory or a queue.
	sync.Locker

	RAM() *memory.RAM
	Ports() *bus.Space
	MMIO() *bus.Space

	// Notify arranges for fn to run when the guest writes (any value, 2 or 4 bytes) to the MMIO
	// address; the guest's vCPU does not wait for it (ioeventfd).
	Notify(addr uint64, fn func()) (Registration, error)
	// Poll runs fn when fd is readable, level-triggered, on the machine's I/O thread.
	Poll(fd int, fn func()) (Registration, error)
	// NewMSI makes an interrupt message source (irqfd), without a route yet.
	NewMSI() (MSI, error)
	// SetIRQ sets the level of an input of the IOAPIC / PIC pair (ISA IRQ or GSI number).
	SetIRQ(gsi int, level bool)

	// Output takes what leaves the guest.
	Output() Output
	// PowerEvent reports that the guest asked for power-off or a reset, or that it has died. It
	// returns at once; the vCPUs stop at their next exit. The first event counts until the machine
	// has been reset.
	PowerEvent(PowerEvent)
}

// Frames are what passes between a NIC and the network: an Ethernet frame, perhaps one that is still to be
// cut into segments or lacks its checksum, after a header that says so: struct virtio_net_hdr of virtio
// 1.2, section 5.1.6, with the number of the queue pair in place of num_buffers. A header of zeros is that
// of a plain frame.
const (
	FrameHeaderBytes = 12
	// MaxFrameBytes bounds a frame with its header: 64 KiB to be segmented and some for what is around it.
	MaxFrameBytes = 65550 + 64
)

// Output receives all that the outside world or the disk may see of the guest. Implementations
// hold it (output commit), mirror it, or let it through. Called with the device lock held.
type Output interface {
	// Transmit takes a whole Ethernet frame that the guest sent on NIC number nic, after a header of
	// FrameHeaderBytes. It must copy the frame before it returns.
	Transmit(nic int, frame []byte)
	// Console takes bytes that the guest wrote to its console. It must copy them.
	Console(p []byte)
	// Agent takes bytes that the guest's agent wrote to its channel. It must copy them.
	Agent(p []byte)
	// DiskWritten says that data was written at the byte offset of disk number disk, in the order
	// in which the writes happened, before the guest can see the completion. The callee owns data.
	DiskWritten(disk int, offset int64, data []byte)
	// DiskZeroed says the same of n bytes, more than none, that have become zero, as one of the writes. With
	// unmap their space was given back.
	DiskZeroed(disk int, offset, n int64, unmap bool)
}

// Registration can be taken back. Close is called with the device lock held and returns once
// the callback can't run any more.
type Registration interface{ Close() error }

// MSI is a message-signalled interrupt.
type MSI interface {
	// Route sets the message. addr and data are what the guest wrote into the MSI-X table.
	Route(addr uint64, data uint32) error
	// Trigger sends it.
	Trigger()
	Close() error
}

// PowerEvent is what a guest asks of its platform, or what became of the guest.
type PowerEvent int

// The values are part of a machine's saved state: new ones are added at the end.
const (
	PowerOff        PowerEvent = iota + 1 // ACPI S5
	Reset                                 // i8042, ACPI reset register, port 0xcf9
	Crashed                               // triple fault, or an exit that KVM can't go on from
	Panicked                              // the guest's kernel says so itself (pvpanic)
	WatchdogExpired                       // the guest stopped feeding its watchdog
)

// MaxPowerEvent is the highest value that a saved state may hold.
const MaxPowerEvent = WatchdogExpired

func (e PowerEvent) String() string {
	switch e {
	case PowerOff:
		return "power-off"
	case Reset:
		return "reset"
	case Crashed:
		return "crash"
	case Panicked:
		return "panic"
	case WatchdogExpired:
		return "watchdog"
	}
	return "unknown"
}

// Died says whether the event is the end of a guest that did not want it: what follows is the
// operator's policy.
func (e PowerEvent) Died() bool { return e >= Crashed && e <= WatchdogExpired }

// Resetter is a part that a reset of the machine brings back to its power-on state. Every device
// is one. Reset is called with the device lock held, all vCPUs stopped and the device suspended and
// drained: requests in flight are forgotten, for their memory is gone. What lies outside of the guest
// stays: files, taps, registrations with the platform, and whatever an operator has set (a link that
// is down). Reset sends no interrupt; the lines are low after it. Activate follows.
type Resetter interface{ Reset() }

// Stateful is a part of the machine whose state belongs to a checkpoint.
type Stateful interface {
	// StateID names the part, unique in its machine and stable between versions ("virtio-net0").
	StateID() string
	// StateVersion is the version of the encoding that SaveState writes.
	StateVersion() uint16
	// SaveState appends the encoded state to b. It runs in the pause of a checkpoint, with the
	// device lock held and all vCPUs stopped: it must not allocate much, block or fail.
	SaveState(b []byte) []byte
	// RestoreState takes what SaveState wrote in this or an older version. The bytes may come from
	// a hostile or broken peer: bad ones are an error, never a panic. It runs with the device lock
	// held and must be repeatable: a replica loads each checkpoint over the one before. It starts
	// nothing: requests in flight are issued again by Activate.
	RestoreState(version uint16, b []byte) error
}

// Activator is a part that has something to start once a restored machine is about to run: a disk
// issues its requests in flight again. Called with the device lock held.
type Activator interface{ Activate() error }
