// Package boot puts a kernel into a guest's RAM the way a firmware or boot loader would, and says in
// which state the first vCPU enters it. It takes two kinds of kernel:
//
//   - an ELF image with a PVH note (Xen's direct boot ABI, xen/docs/misc/pvh.pandoc): our own ledger
//     guest, and uncompressed Linux kernels;
//   - a Linux bzImage, by the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst).
//
// Both get the same ACPI tables and the same memory map. The package touches nothing but the RAM that
// it is given: no KVM, no files. Kernels and initrds are treated as hostile.
package boot

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// Params says what to boot.
type Params struct {
	Kernel  []byte // ELF with a PVH note, or bzImage
	Initrd  []byte // empty: none
	Cmdline string
	CPUs    int // vCPUs, APIC IDs 0 to CPUs-1
}

// MaxCPUs is the number of vCPUs that the tables have room for.
const MaxCPUs = 64

var (
	// ErrKernel says that the kernel image can't be booted: it is none, damaged, or of a kind that
	// lacks the entry point that Pollux uses.
	ErrKernel = errors.New("kernel image can't be booted")
	// ErrNoRoom says that kernel, initrd or command line do not fit into the guest's memory.
	ErrNoRoom = errors.New("does not fit into the guest's memory")
)

// Entry is the state in which vCPU 0 starts. Registers that it does not name are zero; the other vCPUs
// wait for INIT and SIPI.
type Entry struct {
	Mode               Mode
	RIP, RSP, RSI, RBX uint64
	RFLAGS             uint64
	CR0, CR3, CR4      uint64
	EFER               uint64
	CS, Data           Segment // Data goes into DS, ES, FS, GS and SS
	TR, LDT            Segment
	GDT, IDT           Table
}

// Mode is the CPU mode of an Entry, for logs: the control registers say the same.
type Mode string

const (
	Protected32 Mode = "32-bit protected mode (PVH)"
	Long64      Mode = "64-bit long mode (Linux boot protocol)"
	Real16      Mode = "real mode at the reset vector (firmware)"
)

// Segment is a segment register with its hidden part. The fields are those of struct kvm_segment.
type Segment struct {
	Base     uint64
	Limit    uint32 // in bytes, granularity already applied
	Selector uint16
	Type     uint8
	Present  uint8
	DPL      uint8
	DB       uint8
	S        uint8
	L        uint8
	G        uint8
	Unusable uint8
}

// Table is a descriptor-table register.
type Table struct {
	Base  uint64
	Limit uint16
}

// Load writes the kernel, the initrd, the command line, the ACPI tables and the boot information into
// ram and returns the state of the first vCPU. Errors wrap ErrKernel or ErrNoRoom where the image or
// its size is at fault, and say what the operator can do; ram is then partly written and must not run.
func Load(ram *memory.RAM, p Params) (Entry, error) {
	if p.CPUs < 1 || p.CPUs > MaxCPUs {
		return Entry{}, fmt.Errorf("%d vCPUs: must be between 1 and %d", p.CPUs, MaxCPUs)
	}
	if err := Check(p.Kernel); err != nil {
		return Entry{}, err
	}
	if isELF(p.Kernel) {
		return loadELF(ram, p)
	}
	return loadBzImage(ram, p)
}

// Check says why a kernel image can't be booted on any machine. Its errors wrap ErrKernel.
func Check(kernel []byte) (err error) {
	switch {
	case len(kernel) == 0:
		return fmt.Errorf("%w: the file is empty", ErrKernel)
	case isELF(kernel):
		_, err = parseELF(kernel)
		return err
	case isBzImage(kernel):
		_, err = parseBzImage(kernel)
		return err
	}
	return fmt.Errorf("%w: it is neither an ELF image nor a Linux bzImage; "+
		"give the uncompressed vmlinux or the vmlinuz as the distribution installs it in /boot", ErrKernel)
}

func isELF(k []byte) bool { return bytes.HasPrefix(k, []byte("\x7fELF")) }
