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
		if f, err := Open(name); err == nil {
			f.Close()
			t.Errorf("%q was opened", name)
		}
	}
}

func TestOpen(t *testing.T) {
	name := fmt.Sprintf("plxt%d", os.Getpid()%1000000)
	f, err := Open(name)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		t.Skip("needs /dev/net/tun and CAP_NET_ADMIN: ", err)
	case err != nil:
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Open(name); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := Open("lo"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("opened the loopback: %v", err)
	}
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
