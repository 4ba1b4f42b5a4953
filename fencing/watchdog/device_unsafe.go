package watchdog

import (
	"bytes"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From include/uapi/linux/watchdog.h.
const (
	optionSetTimeout = 0x0080 // WDIOF_SETTIMEOUT
	optionMagicClose = 0x0100 // WDIOF_MAGICCLOSE
)

// watchdogInfo is struct watchdog_info.
type watchdogInfo struct {
	Options  uint32
	Firmware uint32
	Identity [32]byte
}

type device struct{ *os.File }

// Open opens a watchdog device, which arms it.
func Open(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	return device{f}, nil
}

func (d device) Info() (Info, error) {
	var i watchdogInfo
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.WDIOC_GETSUPPORT, uintptr(unsafe.Pointer(&i))); e != 0 {
		return Info{}, fmt.Errorf("WDIOC_GETSUPPORT: %w", e)
	}
	identity, _, _ := bytes.Cut(i.Identity[:], []byte{0})
	return Info{Identity: string(identity), MagicClose: i.Options&optionMagicClose != 0, Timeout: i.Options&optionSetTimeout != 0}, nil
}

func (d device) SetTimeout(seconds int) (int, error) {
	n := int32(seconds)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.WDIOC_SETTIMEOUT, uintptr(unsafe.Pointer(&n))); e != 0 {
		return 0, fmt.Errorf("WDIOC_SETTIMEOUT: %w", e)
	}
	return int(n), nil // the driver writes back what it has made of it
}
