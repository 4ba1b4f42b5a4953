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

// headerBytes is what stands before each frame: struct virtio_net_hdr_v1.
const headerBytes = 12

// MaxQueues is how many queues a tap can have here. The kernel's limit is 256.
const MaxQueues = 16

// Offload is work on frames that one side of a tap leaves to the other (the kernel's
// include/uapi/linux/if_tun.h, TUN_F_*).
type Offload uint32

const (
	Checksum Offload = 1 << iota // frames whose checksum is not complete
	TSO4                         // TCP over IPv4 that is still to be segmented; it needs Checksum, as all below do
	TSO6                         // the same over IPv6
	ECN                          // the same with the CWR flag
	UFO                          // UDP that is still to be fragmented
	USO4                         // UDP over IPv4 that is still to be segmented: Linux 6.2
	USO6                         // the same over IPv6
)

// Everywhere is what the taps of all kernels can do that Pollux runs on (Linux 5.7 and later).
const Everywhere = Checksum | TSO4 | TSO6 | ECN | UFO

// Options say how a tap is opened. Both hosts of a guest open theirs in the same way.
type Options struct {
	// Queues is the number of queues, 0 for one. An interface has them all or one: that is decided
	// when it is made.
	Queues int
	// USO asks for segmentation of UDP too, and is an error where the kernel has none.
	USO bool
}

// Tap is an open tap interface. Its methods are not safe for concurrent use.
type Tap struct {
	name     string
	files    []*os.File
	attached int // queues that take part
	offloads Offload
}

// Open opens the tap interface of that name and makes it if there is none (the Linux kernel's
// Documentation/networking/tuntap.rst). Each read and write of a queue is one Ethernet frame after a
// struct virtio_net_hdr_v1, whose two last bytes mean nothing. All queues take part, and no frame that
// is read has anything left to be done.
//
// The files are non-blocking and, so that frames cost no wake-up of the Go runtime, not known to its
// poller: whoever reads them polls for itself.
func Open(name string, o Options) (*Tap, error) {
	queues := max(o.Queues, 1)
	if queues > MaxQueues {
		return nil, fmt.Errorf("tap %q: %d queues: at most %d are possible", name, queues, MaxQueues)
	}
	// The kernel would choose a name of its own for an empty one and for a pattern like tap%d.
	request, err := unix.NewIfreq(name)
	if err != nil || name == "" || strings.ContainsAny(name, "%/:\x00 \t\n") {
		return nil, fmt.Errorf("tap %q: a name has 1 to %d bytes, and no blank, slash, colon or percent sign", name, unix.IFNAMSIZ-1)
	}
	t := &Tap{name: name}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	for i := 0; i < queues && err == nil; i++ {
		err = t.attach(request, flags)
		if queues == 1 && errors.Is(err, unix.EINVAL) {
			err = t.attach(request, flags|unix.IFF_MULTI_QUEUE) // one queue of an interface that can have more
		}
		if errors.Is(err, unix.EINVAL) {
			what := "is no tap"
			if queues > 1 {
				what = "is no tap that can have several queues: make it with multi_queue, or give its network card one queue"
			}
			err = fmt.Errorf("%w: an interface of that name exists and %s", err, what)
		}
	}
	if err == nil {
		err = t.prepare(o)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tap %q: %w", name, err), t.Close())
	}
	return t, nil
}

// attach opens one more queue.
func (t *Tap) attach(request *unix.Ifreq, flags uint16) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("open %s: %w: it takes root or CAP_NET_ADMIN", device, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("open %s: %w: load the kernel module tun", device, err)
	case err != nil:
		return fmt.Errorf("open %s: %w", device, err)
	}
	request.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w: it takes CAP_NET_ADMIN, or a tap that belongs to this user", err)
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.E2BIG):
			return fmt.Errorf("%w: another process has it open; a tap serves one machine", err)
		}
		return err
	}
	// os.NewFile registers descriptors that are non-blocking already, so it comes first.
	f := os.NewFile(uintptr(fd), "tap "+t.name)
	if err := unix.SetNonblock(fd, true); err != nil {
		f.Close()
		return fmt.Errorf("make it non-blocking: %w", err)
	}
	t.files = append(t.files, f)
	t.attached++
	return nil
}

// prepare sets the header's size and finds out now, and not at a takeover, what the kernel can't do.
func (t *Tap) prepare(o Options) error {
	err := t.control(0, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, headerBytes) })
	if err != nil {
		return fmt.Errorf("set the size of frame headers: %w", err)
	}
	if o.USO {
		if err := t.SetOffloads(Everywhere | USO4 | USO6); err != nil {
			return fmt.Errorf("this host's kernel has no segmentation offload for UDP (it takes Linux 6.2): create the guest's network card without uso, "+
				"or use a newer kernel on every host of the guest: %w", err)
		}
	} else if err := t.SetOffloads(Everywhere); err != nil {
		return fmt.Errorf("%w: this host's kernel is older than Pollux needs", err)
	}
	return t.SetOffloads(0)
}

func (t *Tap) control(queue int, fn func(fd int) error) error {
	raw, err := t.files[queue].SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = fn(int(fd)) })
	return errors.Join(err, failed)
}

// Files are the queues. They are the tap's: its Close closes them.
func (t *Tap) Files() []*os.File { return t.files }

// SetOffloads says which work may be left undone in frames that are read from now on. What waits in the
// queues already was made for what was said before. Frames that are written may always need any of it.
func (t *Tap) SetOffloads(o Offload) error {
	if o == t.offloads {
		return nil
	}
	if err := t.control(0, func(fd int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(o)) }); err != nil {
		return fmt.Errorf("set the offloads %#x of the tap %q: %w", uint32(o), t.name, err)
	}
	t.offloads = o
	return nil
}

// SetQueues makes the first n queues, of which there is at least one, take part: frames arrive in no
// other. What waits in one that leaves is lost.
func (t *Tap) SetQueues(n int) error {
	if n < 1 || n > len(t.files) {
		return fmt.Errorf("use %d queues of the tap %q: it has %d", n, t.name, len(t.files))
	}
	for t.attached != n {
		queue, flags := t.attached, uint16(unix.IFF_ATTACH_QUEUE)
		if t.attached > n {
			queue, flags = t.attached-1, unix.IFF_DETACH_QUEUE
		}
		request, err := unix.NewIfreq(t.name)
		if err != nil {
			return fmt.Errorf("tap %q: %w", t.name, err)
		}
		request.SetUint16(flags)
		if err := t.control(queue, func(fd int) error { return unix.IoctlIfreq(fd, unix.TUNSETQUEUE, request) }); err != nil {
			return fmt.Errorf("use %d queues of the tap %q: %w", n, t.name, err)
		}
		if t.attached > n {
			t.attached--
		} else {
			t.attached++
		}
	}
	return nil
}

// Close closes the tap. An interface that is not persistent goes away with it.
func (t *Tap) Close() error {
	var err error
	for _, f := range t.files {
		err = errors.Join(err, f.Close())
	}
	return err
}
