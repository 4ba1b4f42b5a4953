package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/blockfile"
)

const sectorBytes = 512

// rawDisk is a disk in a raw file or on a block device, locked as long as it is open.
type rawDisk struct {
	*os.File
	size     int64
	readOnly bool
	serial   string
	queues   int
}

// Size is in bytes. It shadows nothing of os.File.
func (d *rawDisk) Size() int64 { return d.size }

// Sync makes what was written durable.
func (d *rawDisk) Sync() error { return blockfile.Sync(d.File) }

// Zero makes a range read as zeros without writing it.
func (d *rawDisk) Zero(offset, n int64, unmap bool) error {
	return blockfile.Zero(d.File, offset, n, unmap)
}

// openDisk opens FILE[,readonly][,serial=TEXT][,queues=N].
func openDisk(s string) (*rawDisk, error) {
	path, rest, given := strings.Cut(s, ",")
	if path == "" {
		return nil, usagef("--disk %s: give FILE, with options after a comma", s)
	}
	d := &rawDisk{}
	if given {
		o, err := options(rest, "readonly", "serial", "queues")
		if err == nil {
			d.serial, d.queues, err = identity(o)
		}
		if err != nil {
			return nil, usagef("--disk %s: %w", s, err)
		}
		_, d.readOnly = o["readonly"]
	}
	flags, lock := os.O_RDWR, unix.LOCK_EX
	if d.readOnly {
		flags, lock = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(path, flags, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("disk %s does not exist: make one with \"truncate -s 1G %s\"", path, path)
	case err != nil:
		return nil, fmt.Errorf("disk: %w", err)
	}
	d.File = f
	if err := d.check(lock); err != nil {
		f.Close()
		return nil, fmt.Errorf("disk %s: %w", path, err)
	}
	return d, nil
}

func (d *rawDisk) check(lock int) error {
	st, err := d.Stat()
	if err != nil {
		return err
	}
	if m := st.Mode(); !m.IsRegular() && (m&fs.ModeDevice == 0 || m&fs.ModeCharDevice != 0) {
		return errors.New("neither a regular file nor a block device")
	}
	if d.size, err = d.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("find its size: %w", err)
	}
	if d.size < sectorBytes {
		return fmt.Errorf("%d bytes are too small, a disk has at least one sector of %d", d.size, sectorBytes)
	}
	if d.size%sectorBytes != 0 {
		return fmt.Errorf("%d bytes are not a multiple of %d; is it a raw image? (qemu-img convert -O raw makes one)", d.size, sectorBytes)
	}
	if err := unix.Flock(int(d.Fd()), lock|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return errors.New("in use by another guest or program, which holds its lock")
	} else if err != nil {
		return fmt.Errorf("lock it: %w", err)
	}
	return nil
}
