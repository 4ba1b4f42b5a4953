package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const sectorBytes = 512

// rawDisk is a disk in a raw file or on a block device, locked as long as it is open.
type rawDisk struct {
	*os.File
	size     int64
	readOnly bool
}

// Size is in bytes. It shadows nothing of os.File.
func (d *rawDisk) Size() int64 { return d.size }

// openDisk opens FILE[,readonly].
func openDisk(s string) (*rawDisk, error) {
	path, option, given := strings.Cut(s, ",")
	if path == "" || given && option != "readonly" {
		return nil, usagef("--disk %s: give FILE or FILE,readonly", s)
	}
	d := &rawDisk{readOnly: given}
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
