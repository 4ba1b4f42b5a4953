package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/firmware"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// firmwareOptions are those of "vm run" about firmware.
type firmwareOptions struct {
	kind, vars, image string
}

// flashFile is the file that holds a guest's flash memory, locked as long as it is open.
type flashFile struct{ *os.File }

// Size is that of the flash memory, in bytes.
func (flashFile) Size() int64 { return platform.FlashSize }

// openFirmware reads the firmware and opens the file of its variables.
func (o vmOptions) openFirmware(config *vmm.Config) (*flashFile, error) {
	switch {
	case o.firmware.kind != pact.FirmwareUEFI:
		return nil, usagef("--firmware %s: %s is the only one", o.firmware.kind, pact.FirmwareUEFI)
	case o.kernel != "" || o.initrd != "" || o.cmdline != "":
		return nil, usagef("--kernel, --initrd and --cmdline do not go with --firmware: it reads its own from the disk")
	}
	code, vars, two := strings.Cut(o.firmware.image, ",")
	if o.firmware.image != "" && (!two || code == "" || vars == "") {
		return nil, usagef("--firmware-image %s: give CODE.fd,VARS.fd", o.firmware.image)
	}
	image, err := firmware.ReadImage(code, vars)
	if err != nil {
		return nil, err
	}
	f, err := openFlash(o.firmware.vars)
	if err != nil {
		return nil, fmt.Errorf("firmware variables: %w", err)
	}
	config.Firmware = &vmm.FirmwareConfig{File: f, Image: image}
	return f, nil
}

// openFlash opens a file of flash memory and makes it where it is missing. A file of variables alone, as
// other machines keep it, grows to hold the firmware as well. Without a path the file has no name.
func openFlash(path string) (*flashFile, error) {
	var f *os.File
	var err error
	if path == "" {
		fd, err := unix.MemfdCreate("pollux-firmware", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("make a file in memory: %w", err)
		}
		f = os.NewFile(uintptr(fd), "firmware")
	} else if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := growFlash(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Name(), err), f.Close())
	}
	return &flashFile{f}, nil
}

func growFlash(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return errors.New("in use by another guest or program, which holds its lock")
	} else if err != nil {
		return fmt.Errorf("lock it: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	switch st.Size() {
	case platform.FlashSize:
		return nil
	case 0, firmware.VarsSize:
		return f.Truncate(platform.FlashSize)
	}
	return fmt.Errorf("%d bytes: a file of variables has %d, one of all flash memory %d", st.Size(), firmware.VarsSize, platform.FlashSize)
}
