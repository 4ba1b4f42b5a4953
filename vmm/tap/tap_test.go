package tap

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"", "a-name-that-is-too-long", "nul\x00", "tap%d", "a b", "../x"} {
		if f, err := Open(name, Options{}); err == nil {
			f.Close()
			t.Errorf("%q was opened", name)
		}
	}
}

// open opens a tap that this test alone knows.
func open(t *testing.T, o Options) (*Tap, string) {
	t.Helper()
	name := fmt.Sprintf("plxt%d", os.Getpid()%1000000)
	p, err := Open(name, o)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		t.Skip("needs /dev/net/tun and CAP_NET_ADMIN: ", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, name
}

// empty says whether a queue has no frame and is there to be read.
func empty(t *testing.T, f *os.File) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if _, err := unix.Read(int(fd), make([]byte, 2000)); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EIO) {
			t.Errorf("read from a tap that has nothing: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpen(t *testing.T) {
	p, name := open(t, Options{})
	if _, err := Open(name, Options{}); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := Open(name, Options{Queues: 2}); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "multi_queue") {
		t.Errorf("a tap of one queue opened with two: %v", err)
	}
	if _, err := Open("lo", Options{}); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "no tap") {
		t.Errorf("opened the loopback: %v", err)
	}
	if _, err := Open(name, Options{Queues: MaxQueues + 1}); err == nil {
		t.Error("opened with too many queues")
	}
	empty(t, p.Files()[0])
	for _, o := range []Offload{Everywhere, 0, Checksum | TSO4} {
		if err := p.SetOffloads(o); err != nil {
			t.Errorf("offloads %#x: %v", o, err)
		}
	}
	if err := p.SetOffloads(TSO4); err == nil || p.SetOffloads(Checksum|TSO4) != nil {
		t.Errorf("segments without checksums: %v", err)
	}
	if p.SetQueues(1) != nil || p.SetQueues(0) == nil || p.SetQueues(2) == nil {
		t.Error("a number of queues that is not there, or the one that is")
	}
}

func TestQueues(t *testing.T) {
	p, name := open(t, Options{Queues: 3})
	if len(p.Files()) != 3 {
		t.Fatalf("%d queues", len(p.Files()))
	}
	for _, n := range []int{1, 3, 2, 2, 3} {
		if err := p.SetQueues(n); err != nil {
			t.Fatalf("%d queues: %v", n, err)
		}
		for _, f := range p.Files()[:n] {
			empty(t, f)
		}
	}
	if err := p.SetQueues(1); err != nil {
		t.Fatal(err)
	}
	// One queue of an interface that has several.
	again, err := Open(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestUSO(t *testing.T) {
	p, _ := open(t, Options{})
	var have bool
	if err := p.SetOffloads(Everywhere | USO4 | USO6); err == nil {
		have = true
	}
	p.Close()
	p.files = nil
	p, err := Open(p.name, Options{USO: true})
	if (err == nil) != have {
		t.Fatalf("opened with USO: %v; the kernel has it: %v", err, have)
	}
	if err == nil {
		p.Close()
	} else if !strings.Contains(err.Error(), "Linux 6.2") {
		t.Errorf("the error does not say what is missing: %v", err)
	}
}
