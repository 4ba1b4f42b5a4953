package dataplane

import (
	"errors"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/firmware"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// The disk of the pact is the flash memory of the machine.
const _ = uint(pact.FirmwareBytes-platform.FlashSize) + uint(platform.FlashSize-pact.FirmwareBytes)

// firmwareConfig is the firmware of the guest whose flash memory is kept in disk. The code that a guest was
// booted with lies there, beside its variables, and is mirrored: hosts may have different versions of the
// package, and a guest that is running goes on with the one that it has. A cold boot takes this host's. Where
// this host has none, a disk that holds some already will do; without either the host is of no use to the guest.
func firmwareConfig(where link.FirmwareImage, disk vmm.BlockFile) (*vmm.FirmwareConfig, error) {
	image, err := firmware.ReadImage(where.Code, where.Vars)
	if errors.Is(err, firmware.ErrMissing) && firmware.Holds(disk) {
		image, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &vmm.FirmwareConfig{File: disk, Image: image}, nil
}
