package pact

import "slices"

// FirmwareBytes is the size of the disk that holds a guest's firmware and its variables: the flash memory of
// OVMF's build with 4 MiB.
const FirmwareBytes = 4 << 20

// AllDisks are the disks that are mirrored: Disks, and after them the firmware's, where the guest has some.
func (s Spec) AllDisks() []DiskSpec {
	if s.Firmware == "" {
		return s.Disks
	}
	return append(slices.Clip(s.Disks), DiskSpec{SizeBytes: FirmwareBytes})
}
