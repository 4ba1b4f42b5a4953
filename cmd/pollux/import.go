package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cmd/pollux/diskimage"
	"github.com/pollux-ha/pollux/cmd/pollux/domain"
	"github.com/pollux-ha/pollux/console"
)

// imported is what `guest import` answers with.
type imported struct {
	Guest *console.Guest `json:"guest"`
	Left  []domain.Left  `json:"left_out"`
}

// importer is the command line of "guest import".
type importer struct {
	path    string // of the configuration
	hosts   []string
	bridges map[string]string
	kernel  string
	start   bool
	dryRun  bool
}

func (p *program) guestImportCommand() *cobra.Command {
	var o importer
	cmd := &cobra.Command{
		Use:   "import NAME DESCRIPTION",
		Short: "Make a guest from a libvirt domain XML or an OVA",
		Long: `Make a guest from the description of a virtual machine: a libvirt domain XML (virsh dumpxml), an OVA, or
the OVF of an unpacked one. Its disks are read into raw disks on this host, on which the guest then starts
first; the images stay as they are. Shut the machine down before.

What of the description the guest does not get is listed. What is taken over: memory, CPUs and their
model, disks in files or on block devices, network cards on bridges or networks, direct kernel boot or UEFI,
and on_crash.

  pollux guest import ehr /srv/ehr.xml --bridge default=lan --dry-run`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := p.importGuest(cmd.Context(), args[0], args[1], &o)
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), r, func(w io.Writer) {
				for _, l := range r.Left {
					fmt.Fprintf(w, "left out: %s: %s\n", l.What, l.Why)
				}
				if o.dryRun {
					fmt.Fprint(w, "would be done: ")
				}
				fmt.Fprintln(w, describeGuest(r.Guest))
			})
		},
	}
	f := cmd.Flags()
	configFlag(cmd, &o.path)
	f.StringSliceVar(&o.hosts, "hosts", nil, "hosts that may hold a copy; this one comes first (where the cluster has two: both)")
	f.StringToStringVar(&o.bridges, "bridge", nil, "NETWORK=BRIDGE: what a network of the description is here; otherwise the bridge of that name")
	f.StringVar(&o.kernel, "kernel", "", "boot this kernel, with the description's initrd and command line, where there is no UEFI boot loader on the disk")
	f.BoolVar(&o.start, "start", false, "start it at once")
	f.BoolVar(&o.dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}

// importGuest reads the description and the disks, and makes the guest.
func (p *program) importGuest(ctx context.Context, name, path string, o *importer) (*imported, error) {
	cfg, err := config.Load(o.path)
	if err != nil {
		return nil, err
	}
	d, archive, err := readDomain(path)
	if err != nil {
		return nil, err
	}
	spec, images, err := o.spec(ctx, d, archive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c := p.client()
	if spec.Hosts, err = thisHostFirst(ctx, c, o.hosts, cfg.Name); err != nil {
		return nil, err
	}
	// All that can be refused is, before anything is read.
	g, err := c.Create(ctx, console.CreateRequest{Name: name, Spec: spec, DryRun: true})
	if err != nil || o.dryRun {
		return &imported{Guest: g, Left: d.Left}, err
	}
	made, err := importDisks(ctx, cfg.GuestDir(name), images)
	if err == nil {
		g, err = c.Create(ctx, console.CreateRequest{Name: name, Spec: spec, Start: o.start})
	}
	if err != nil && exitCode(err) != exitUnknown {
		// Where nobody knows whether the guest was made, its disks stay.
		for _, path := range made {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return &imported{Guest: g, Left: d.Left}, err
}

// readDomain reads a description; archive is the OVA that it was in, or empty.
func readDomain(path string) (d *domain.Domain, archive string, err error) {
	if strings.EqualFold(filepath.Ext(path), ".ova") {
		d, err = diskimage.Description(path)
		return d, path, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", fmt.Errorf("read the description: %w", err)
	}
	defer f.Close()
	b, err := domain.Read(f)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w; is it a domain XML, an OVF or, by its name, an OVA?", path, err)
	}
	if strings.EqualFold(filepath.Ext(path), ".ovf") {
		d, err = domain.ParseOVF(b)
	} else {
		d, err = domain.ParseLibvirt(b)
	}
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, err)
	}
	for i := range d.Disks {
		if !filepath.IsAbs(d.Disks[i].Source) {
			d.Disks[i].Source = filepath.Join(filepath.Dir(path), d.Disks[i].Source)
		}
	}
	return d, "", nil
}

// image is where a disk of the guest comes from.
type image struct {
	source string
	number int // in an OVA
	format diskimage.Format
	size   uint64 // that the guest's disk has
}

// spec makes a guest's spec out of a description, and says where its disks come from.
func (o *importer) spec(ctx context.Context, d *domain.Domain, archive string) (pact.Spec, []image, error) {
	s := pact.Spec{MemoryBytes: d.MemoryBytes, CPUs: d.CPUs, Kernel: d.Kernel, Initrd: d.Initrd, Cmdline: d.Cmdline, OnPanic: pact.PanicPolicy(d.OnPanic), CPU: pact.CPUSpec{Policy: d.CPU}}
	if o.kernel != "" {
		s.Kernel = o.kernel
	}
	if s.Kernel == "" {
		s.Firmware = pact.FirmwareUEFI
	}
	var images []image
	for i, k := range d.Disks {
		from := image{source: k.Source, number: i}
		var err error
		if from.format, err = diskimage.ParseFormat(k.Format); err != nil {
			return s, nil, fmt.Errorf("disk %d: %w", i, err)
		}
		size := k.SizeBytes
		if archive != "" {
			from.source = archive
		} else {
			found, err := diskimage.Look(ctx, k.Source, from.format)
			if err != nil {
				return s, nil, fmt.Errorf("disk %d: %w", i, err)
			}
			size = found.SizeBytes
		}
		from.size = (size + diskimage.SectorBytes - 1) / diskimage.SectorBytes * diskimage.SectorBytes
		s.Disks = append(s.Disks, pact.DiskSpec{SizeBytes: from.size, ReadOnly: k.ReadOnly, Serial: k.Serial})
		images = append(images, from)
	}
	for i, n := range d.Nets {
		bridge, ok := o.bridges[n.Network]
		if !ok {
			bridge = n.Network
		}
		nic, err := makeNet(bridge, n.MAC)
		if err != nil {
			return s, nil, fmt.Errorf("network card %d: %w", i, err)
		}
		nic.Queues = min(n.Queues, pact.MaxQueues)
		s.Nets = append(s.Nets, nic)
	}
	return s, images, nil
}

// thisHostFirst puts this host, where the disks are, before the others.
func thisHostFirst(ctx context.Context, c *console.Client, hosts []string, self string) (_ []string, err error) {
	if len(hosts) == 0 {
		if hosts, err = allHosts(ctx, c); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(hosts, self) {
		return nil, usagef("--hosts %s: this host, %s, must be one of them, since the disks are read here", strings.Join(hosts, ","), self)
	}
	others := slices.DeleteFunc(slices.Clone(hosts), func(h string) bool { return h == self })
	return append([]string{self}, others...), nil
}

// importDisks makes the raw disks, and returns those that it has made, also when it fails.
func importDisks(ctx context.Context, dir string, images []image) (made []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the guest's directory: %w", err)
	}
	for i, from := range images {
		target := filepath.Join(dir, fmt.Sprintf("disk%d.raw", i))
		if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
			return made, fmt.Errorf("%s is there already, perhaps of an earlier guest of this name: move it away", target)
		}
		o := diskimage.Options{Format: from.format, Number: from.number}
		if isTerminal(os.Stderr) {
			o.Progress = os.Stderr
		}
		got, err := diskimage.Import(ctx, from.source, target, o)
		if err != nil {
			return made, fmt.Errorf("disk %d: %w", i, err)
		}
		made = append(made, target)
		if got.SizeBytes != from.size {
			return made, fmt.Errorf("disk %d has %d bytes, and %d after its description", i, got.SizeBytes, from.size)
		}
	}
	return made, nil
}
