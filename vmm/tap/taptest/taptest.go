// Package taptest is a tap without a kernel's network behind it, for tests of NICs.
package taptest

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap"
)

// Tap is one end of a pair of packet sockets for each queue, which behave like a tap: a read and a write
// for each frame, after its header.
type Tap struct {
	files []*os.File
	// Far are the other ends: what the network does.
	Far []*os.File

	// What was asked for last.
	Offloads tap.Offload
	Queues   int
	Err      error // what SetOffloads and SetQueues answer
}

// New makes a tap, which is closed when the test ends.
func New(t testing.TB, queues int) *Tap {
	t.Helper()
	p := &Tap{Queues: queues}
	for range queues {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			// A frame may be longer than what a socket holds by default.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*platform.MaxFrameBytes); err != nil {
				t.Fatal(err)
			}
		}
		p.files = append(p.files, os.NewFile(uintptr(fds[0]), "tap"))
		p.Far = append(p.Far, os.NewFile(uintptr(fds[1]), "wire"))
	}
	t.Cleanup(func() {
		p.Close()
		for _, f := range p.Far {
			f.Close()
		}
	})
	return p
}

// Files are the near ends.
func (p *Tap) Files() []*os.File { return p.files }

// Wire is the descriptor of the first queue's other end, still non-blocking.
func (p *Tap) Wire(t testing.TB) (fd int) {
	raw, err := p.Far[0].SyscallConn()
	if err == nil {
		err = raw.Control(func(f uintptr) { fd = int(f) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// SetOffloads notes what is asked for.
func (p *Tap) SetOffloads(o tap.Offload) error {
	p.Offloads = o
	return p.Err
}

// SetQueues notes what is asked for.
func (p *Tap) SetQueues(n int) error {
	p.Queues = n
	return p.Err
}

// Close closes the near ends.
func (p *Tap) Close() error {
	var err error
	for _, f := range p.files {
		if e := f.Close(); !errors.Is(e, os.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// Frame puts the header of a plain frame before an Ethernet frame.
func Frame(p []byte) []byte {
	return append(make([]byte, platform.FrameHeaderBytes, platform.FrameHeaderBytes+len(p)), p...)
}
