package firmware

import (
	"bytes"
	"errors"
	"fmt"
	"os"
)

// Where Debian's package ovmf has its build with 4 MiB of flash memory, without secure boot's key
// enrolment and without system management mode.
const (
	DefaultCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	DefaultVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// ErrMissing says that there is no firmware to boot.
var ErrMissing = errors.New("UEFI firmware is missing")

// Image is firmware as its package has it.
type Image struct {
	Code []byte // CodeSize bytes
	Vars []byte // VarsSize bytes: what a new guest's variables are
}

// ReadImage reads the two files. Empty names stand for Debian's.
func ReadImage(code, vars string) (*Image, error) {
	if code == "" {
		code = DefaultCode
	}
	if vars == "" {
		vars = DefaultVars
	}
	i := &Image{}
	for _, f := range []struct {
		path string
		size int
		to   *[]byte
	}{{code, CodeSize, &i.Code}, {vars, VarsSize, &i.Vars}} {
		b, err := os.ReadFile(f.path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w: install the package ovmf on this host, or say in its configuration where the firmware is", ErrMissing, err)
		}
		if len(b) != f.size {
			return nil, fmt.Errorf("%s has %d bytes where %d are needed: give OVMF's build with 4 MiB of flash memory (OVMF_CODE_4M.fd and OVMF_VARS_4M.fd)",
				f.path, len(b), f.size)
		}
		*f.to = b
	}
	if !isVolume(i.Vars) {
		return nil, fmt.Errorf("%s holds no firmware variables", vars)
	}
	return i, nil
}

// isVolume says whether b begins with a firmware volume (UEFI Platform Initialization 1.7, volume 3, 3.2.1).
func isVolume(b []byte) bool { return bytes.HasPrefix(b[0x28:], []byte("_FVH")) }

const volumeHeader = 0x38 // bytes of a volume that isVolume looks at, and a few more

// Holds says whether a file of flash memory has firmware and variables to boot with.
func Holds(f BlockFile) bool {
	var start [volumeHeader]byte
	for _, at := range []int64{0, VarsSize} {
		if _, err := f.ReadAt(start[:], at); err != nil || !isVolume(start[:]) {
			return false
		}
	}
	return true
}

// Prepare makes the file ready for a cold boot: its code is that of the image, and where it has no variables yet
// they are the image's. Without an image the file's own code boots, where it has some: an operator may have
// removed the package from a host that holds a guest's copy.
func (f *Flash) Prepare(i *Image) error {
	if _, err := f.file.ReadAt(f.array, 0); err != nil {
		return fmt.Errorf("read the firmware and its variables: %w", err)
	}
	code, vars := f.array[VarsSize:], f.array[:VarsSize]
	if i == nil {
		if !Holds(f.file) {
			return fmt.Errorf("%w: the guest has not booted yet, and this host has none to give it: install the package ovmf", ErrMissing)
		}
		return nil
	}
	if !bytes.Equal(code, i.Code) {
		copy(code, i.Code)
		f.store(VarsSize, code)
	}
	if len(bytes.Trim(vars, "\x00")) == 0 {
		copy(vars, i.Vars)
		f.store(0, vars)
	}
	if f.status&statusProgramError != 0 {
		return errors.New("the guest's firmware and variables can't be written")
	}
	f.settle()
	return nil
}
