// Package tap opens tap interfaces.
package tap

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const device = "/dev/net/tun"

// Open opens the tap interface of that name and makes it if there is none (the Linux kernel's
// Documentation/networking/tuntap.rst). Each read and write is one Ethernet frame without any header;
// the interface has one queue. The file is non-blocking and, so that frames cost no wake-up of the Go
// runtime, not known to its poller: whoever reads it polls for itself.
func Open(name string) (*os.File, error) {
	// The kernel would choose a name of its own for an empty one and for a pattern like tap%d.
	request, err := unix.NewIfreq(name)
	if err != nil || name == "" || strings.ContainsAny(name, "%/:\x00 \t\n") {
		return nil, fmt.Errorf("tap %q: a name has 1 to %d bytes, and no blank, slash, colon or percent sign", name, unix.IFNAMSIZ-1)
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("open %s for tap %q: %w: it takes root or CAP_NET_ADMIN", device, name, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("open %s for tap %q: %w: load the kernel module tun", device, name, err)
	case err != nil:
		return nil, fmt.Errorf("open %s for tap %q: %w", device, name, err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.EPERM):
			return nil, fmt.Errorf("tap %q: %w: it takes CAP_NET_ADMIN, or a tap that belongs to this user", name, err)
		case errors.Is(err, unix.EBUSY):
			return nil, fmt.Errorf("tap %q: %w: another process has it open; a tap serves one machine", name, err)
		case errors.Is(err, unix.EINVAL):
			return nil, fmt.Errorf("tap %q: %w: an interface of that name exists and is no single-queue tap", name, err)
		}
		return nil, fmt.Errorf("tap %q: %w", name, err)
	}
	// os.NewFile registers descriptors that are non-blocking already, so it comes first.
	f := os.NewFile(uintptr(fd), "tap "+name)
	if err := unix.SetNonblock(fd, true); err != nil {
		f.Close()
		return nil, fmt.Errorf("tap %q: make it non-blocking: %w", name, err)
	}
	return f, nil
}
