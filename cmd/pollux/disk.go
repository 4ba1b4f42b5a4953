package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cmd/pollux/diskimage"
)

// diskCommand is "pollux disk": disks in files, without a cluster.
func (p *program) diskCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "disk",
		Short: "Make, convert and look at disk images",
		Long: `Make, convert and look at disk images on this machine. Pollux keeps a guest's disks as raw files; other
formats (` + strings.Join(diskimage.Formats(), ", ") + `, and ova for reading) come in and go out through qemu-img,
from Debian's qemu-utils.

A disk that a guest runs from is locked, and left alone. An image that names other files of this machine,
such as an overlay of another image, is refused.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.diskImportCommand(), p.diskExportCommand(), p.diskCreateCommand(), p.diskResizeCommand(), p.diskInfoCommand())
	return cmd
}

// diskOptions are flags that several of the commands have.
type diskOptions struct {
	format string
	image  diskimage.Options
}

func (o *diskOptions) force(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.image.Replace, "force", false, "replace a file that exists")
}

// ready reads what the flags say. Progress is told only to a person.
func (o *diskOptions) ready(cmd *cobra.Command) (err error) {
	if o.image.Format, err = diskimage.ParseFormat(o.format); err != nil {
		return usagef("--format: %w", err)
	}
	if isTerminal(os.Stderr) {
		o.image.Progress = cmd.ErrOrStderr()
	}
	return nil
}

// diskJob is a command that answers with a disk.
func (p *program) diskJob(use, short, long string, args int, do func(cmd *cobra.Command, args []string) (diskimage.Info, error)) *cobra.Command {
	return p.withOutput(&cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  cobra.ExactArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			i, err := do(cmd, args)
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), i, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s, %s (%d bytes), %s on this machine\n", i.Path, i.Format, bytesText(i.SizeBytes), i.SizeBytes, bytesText(i.ActualBytes))
			})
		},
	})
}

func (p *program) diskImportCommand() *cobra.Command {
	var o diskOptions
	cmd := p.diskJob("import IMAGE FILE", "Make a raw disk from an image",
		`Make a raw disk from an image of another hypervisor. FILE appears only when it is whole.

The image's format is recognized. Say --format raw for a raw disk whose guest you don't trust: it may have
written something there that looks like another format.`, 2,
		func(cmd *cobra.Command, args []string) (diskimage.Info, error) {
			if err := o.ready(cmd); err != nil {
				return diskimage.Info{}, err
			}
			return diskimage.Import(cmd.Context(), args[0], args[1], o.image)
		})
	cmd.Flags().StringVar(&o.format, "format", "", "the image's format, where it is not to be recognized")
	cmd.Flags().IntVar(&o.image.Number, "number", 0, "which disk of an OVA, counted from 0")
	o.force(cmd)
	return cmd
}

func (p *program) diskExportCommand() *cobra.Command {
	var o diskOptions
	cmd := p.diskJob("export FILE IMAGE", "Write a raw disk as an image of another format", "", 2,
		func(cmd *cobra.Command, args []string) (diskimage.Info, error) {
			if err := o.ready(cmd); err != nil {
				return diskimage.Info{}, err
			}
			if err := diskimage.Export(cmd.Context(), args[0], args[1], o.image); err != nil {
				return diskimage.Info{}, err
			}
			return diskimage.Look(cmd.Context(), args[1], o.image.Format)
		})
	cmd.Flags().StringVar(&o.format, "format", string(diskimage.QCOW2), "the image's format: "+strings.Join(diskimage.Formats(), ", "))
	cmd.Flags().BoolVar(&o.image.Compress, "compress", false, "compress it (qcow2, vmdk)")
	o.force(cmd)
	return cmd
}

// diskSize reads the size that a command was given.
func diskSize(s string) (uint64, error) {
	size, err := parseBytes(s)
	if err != nil {
		return 0, usagef("%s: %w", s, err)
	}
	return size, nil
}

func (p *program) diskCreateCommand() *cobra.Command {
	var o diskOptions
	cmd := p.diskJob("create FILE SIZE", "Make an empty raw disk", "", 2,
		func(_ *cobra.Command, args []string) (diskimage.Info, error) {
			size, err := diskSize(args[1])
			if err != nil {
				return diskimage.Info{}, err
			}
			return diskimage.Create(args[0], size, o.image.Replace)
		})
	o.force(cmd)
	return cmd
}

func (p *program) diskResizeCommand() *cobra.Command {
	var shrink bool
	cmd := p.diskJob("resize FILE SIZE", "Change the size of a raw disk",
		`Change the size of a raw disk that no guest uses. The disks of a guest in a cluster have the size that
the guest was created with, on all of its hosts: this command is for files that are not yet a guest's.`, 2,
		func(_ *cobra.Command, args []string) (diskimage.Info, error) {
			size, err := diskSize(args[1])
			if err != nil {
				return diskimage.Info{}, err
			}
			return diskimage.Resize(args[0], size, shrink)
		})
	cmd.Flags().BoolVar(&shrink, "shrink", false, "allow a smaller size, which cuts off the end of the disk")
	return cmd
}

func (p *program) diskInfoCommand() *cobra.Command {
	var o diskOptions
	cmd := p.diskJob("info IMAGE", "Say what a disk image is", "", 1,
		func(cmd *cobra.Command, args []string) (diskimage.Info, error) {
			if err := o.ready(cmd); err != nil {
				return diskimage.Info{}, err
			}
			return diskimage.Look(cmd.Context(), args[0], o.image.Format)
		})
	cmd.Flags().StringVar(&o.format, "format", "", "the image's format, where it is not to be recognized")
	return cmd
}
