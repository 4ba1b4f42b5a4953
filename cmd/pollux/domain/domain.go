// Package domain reads how other hypervisors describe a virtual machine (libvirt's domain XML, the OVF of
// an OVA) and says what of it Pollux takes over and what it leaves out. Descriptions come from strangers:
// nothing in here opens a file or follows a reference.
package domain

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Domain is what Pollux takes from a description.
type Domain struct {
	Name        string
	MemoryBytes uint64
	CPUs        int
	// CPU is a model's name as `pollux guest create --cpu` takes it; empty: the default.
	CPU string
	// Firmware says that the machine boots from its disk through UEFI. Otherwise Kernel is set, or the
	// description asks for a BIOS, which Left says.
	Firmware                bool
	Kernel, Initrd, Cmdline string
	Disks                   []Disk
	Nets                    []Net
	OnPanic                 string // restart, stop, keep, or empty

	// Left is what is in the description and not in the guest, in its order.
	Left []Left
}

// Disk is one disk, in the order in which the guest sees them.
type Disk struct {
	Source   string // a path, or the name of a file in the archive
	Format   string // as the description has it, in qemu's names; empty: not said
	ReadOnly bool
	Serial   string
	// SizeBytes is what the description says of its size; 0: nothing.
	SizeBytes uint64
}

// Net is one network card.
type Net struct {
	MAC     string // empty: not said
	Network string // the bridge, network or connection that it hangs on
	Queues  int    // 0: not said
}

// Left is one thing that was left out.
type Left struct {
	What string `json:"what"` // the element, with what tells it from others of its kind
	Why  string `json:"why"`
}

// ErrDescription says that a description can't be understood.
var ErrDescription = errors.New("the description of the machine can't be used")

const (
	maxCPUs    = 1 << 16 // what can be a count at all; the guest's own limit is lower
	maxDevices = 256
)

// maxBytes bounds a description.
const maxBytes = 4 << 20

// Read reads a description, up to its bound.
func Read(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the description: %w", err)
	}
	if len(b) > maxBytes {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrDescription, maxBytes)
	}
	return b, nil
}

func (d *Domain) leave(what, why string, a ...any) {
	d.Left = append(d.Left, Left{What: what, Why: fmt.Sprintf(why, a...)})
}

// check looks at what every description must have.
func (d *Domain) check() error {
	switch {
	case d.MemoryBytes == 0:
		return fmt.Errorf("%w: it gives the machine no memory", ErrDescription)
	case d.CPUs < 1 || d.CPUs > maxCPUs:
		return fmt.Errorf("%w: it gives the machine %d CPUs", ErrDescription, d.CPUs)
	case len(d.Disks) > maxDevices || len(d.Nets) > maxDevices:
		return fmt.Errorf("%w: it has %d disks and %d network cards", ErrDescription, len(d.Disks), len(d.Nets))
	}
	return nil
}

// quantity multiplies a number by its unit.
func quantity(n, unit uint64) (uint64, error) {
	if unit != 0 && n > (1<<62)/unit {
		return 0, fmt.Errorf("%w: %d x %d bytes are more than any machine has", ErrDescription, n, unit)
	}
	return n * unit, nil
}

func oneOf(s string, of ...string) bool {
	for _, o := range of {
		if strings.EqualFold(s, o) {
			return true
		}
	}
	return false
}
