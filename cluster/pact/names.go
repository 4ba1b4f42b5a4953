package pact

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
)

var nameSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// macSyntax is a unicast MAC address: the lowest bit of the first byte is clear.
var macSyntax = regexp.MustCompile(`^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$`)

// serialSyntax is a disk's serial number: VIRTIO 1.2, 5.2.6.1 gives it 20 bytes.
var serialSyntax = regexp.MustCompile(`^[!-~]{0,20}$`)

// ValidGuestName says whether a name can be a guest's. Names become parts of paths.
func ValidGuestName(name string) bool { return nameSyntax.MatchString(name) }

// ValidSerial says whether text can be a disk's serial number; none is one, too.
func ValidSerial(text string) bool { return serialSyntax.MatchString(text) }

func (d Desired) valid() bool { return d == DesiredStopped || d == DesiredRunning }

// Bounds of a spec.
const (
	MaxHosts       = 16
	MaxDisks       = 16
	MaxNets        = 16
	MaxQueues      = 16 // of one device
	MinMTU         = 1280
	MaxMTU         = 65521
	MaxCPUs        = 64
	MaxMemoryBytes = 4 << 40
	MaxDiskBytes   = 64 << 40
	MaxTextBytes   = 4096 // of a path or a command line
	PageBytes      = 4096
	SectorBytes    = 512
)

// check is what the state machine itself relies on.
func (s Spec) check() error {
	if len(s.Hosts) == 0 || len(s.Hosts) > MaxHosts {
		return fmt.Errorf("the spec names %d hosts; between 1 and %d are possible", len(s.Hosts), MaxHosts)
	}
	for i, h := range s.Hosts {
		if !nameSyntax.MatchString(h) {
			return fmt.Errorf("the spec's host %q is no host's name", h)
		}
		if slices.Contains(s.Hosts[:i], h) {
			return fmt.Errorf("the spec names host %q twice", h)
		}
	}
	if len(s.Disks) > MaxDisks || len(s.Nets) > MaxNets {
		return fmt.Errorf("the spec has %d disks and %d network cards; at most %d and %d are possible", len(s.Disks), len(s.Nets), MaxDisks, MaxNets)
	}
	if len(s.Kernel) > MaxTextBytes || len(s.Initrd) > MaxTextBytes || len(s.Cmdline) > MaxTextBytes {
		return fmt.Errorf("kernel, initrd or cmdline is longer than %d bytes", MaxTextBytes)
	}
	if err := s.CPU.check(); err != nil {
		return err
	}
	for _, n := range s.Nets {
		if len(n.MAC) > 64 || len(n.Bridge) > 64 {
			return errors.New("a network card's MAC or bridge is too long")
		}
	}
	return nil
}

func (c CPUSpec) check() error {
	if len(c.Policy) > 64 || len(c.Model) > MaxTextBytes {
		return fmt.Errorf("the CPU's policy or model is longer than 64 or %d bytes", MaxTextBytes)
	}
	return nil
}

// KeepsState says whether the guest has anything on disk that a start from an old copy would lose.
func (s Spec) KeepsState() bool {
	return slices.ContainsFunc(s.AllDisks(), func(d DiskSpec) bool { return !d.ReadOnly })
}

// Validate reports everything that keeps a guest of this spec from running, at once. It looks at the
// spec alone, not at any host.
func (s Spec) Validate() error {
	var errs []error
	need := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	if err := s.check(); err != nil {
		errs = append(errs, err)
	}
	need(s.Kernel != "" || s.Firmware != "", "kernel is empty; give a path or \"builtin:ledger\", or firmware = \"uefi\" to boot from the guest's disk")
	need(s.Kernel == "" || s.Firmware == "", "kernel and firmware are both given; a guest boots from one of them")
	need(s.Firmware == "" || s.Firmware == FirmwareUEFI, "firmware = %q: \"uefi\" is the only one", s.Firmware)
	need(s.Firmware == "" || s.Initrd == "" && s.Cmdline == "", "initrd and cmdline belong to a kernel; firmware reads its own from the disk")
	need(s.OnPanic == "" || s.OnPanic == PanicRestart || s.OnPanic == PanicStop || s.OnPanic == PanicKeep,
		"on_panic = %q: restart, stop or keep", s.OnPanic)
	need(s.MemoryBytes > 0 && s.MemoryBytes%PageBytes == 0 && s.MemoryBytes <= MaxMemoryBytes,
		"memory_bytes = %d: give a multiple of %d, at most %d", s.MemoryBytes, PageBytes, uint64(MaxMemoryBytes))
	need(s.CPUs >= 1 && s.CPUs <= MaxCPUs, "cpus = %d: between 1 and %d", s.CPUs, MaxCPUs)
	for i, d := range s.Disks {
		need(d.SizeBytes > 0 && d.SizeBytes%SectorBytes == 0 && d.SizeBytes <= MaxDiskBytes,
			"disk %d: size_bytes = %d: give a multiple of %d, at most %d", i, d.SizeBytes, SectorBytes, uint64(MaxDiskBytes))
		need(ValidSerial(d.Serial), "disk %d: serial = %q: at most 20 printable ASCII characters", i, d.Serial)
		need(d.Queues >= 0 && d.Queues <= MaxQueues, "disk %d: queues = %d: at most %d", i, d.Queues, MaxQueues)
	}
	for i, n := range s.Nets {
		need(macSyntax.MatchString(n.MAC), "network card %d: mac = %q: give six bytes like 52:54:00:12:34:56, the first one even", i, n.MAC)
		need(n.Bridge != "", "network card %d: bridge is empty", i)
		need(n.Queues >= 0 && n.Queues <= MaxQueues, "network card %d: queues = %d: at most %d pairs", i, n.Queues, MaxQueues)
		need(n.MTU == 0 || n.MTU >= MinMTU && n.MTU <= MaxMTU, "network card %d: mtu = %d: between %d and %d, or none for 1500", i, n.MTU, MinMTU, MaxMTU)
		for j, o := range s.Nets[:i] {
			need(o.MAC != n.MAC, "network cards %d and %d have the same mac %s", j, i, n.MAC)
		}
	}
	return errors.Join(errs...)
}
