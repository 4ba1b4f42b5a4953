package vmm

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Registrations come and go with each NIC that runs out of buffers, for as long as the guest lives: more often
// than there are tokens.
func TestTokensAreUsedOnce(t *testing.T) {
	l, err := newIOLoop(new(sync.Mutex))
	if err != nil {
		t.Fatal(err)
	}
	defer l.free()
	add := func() *registration {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		r, err := l.add(fd, func() {})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	old := []*registration{add(), add()}
	l.last = 0 // all tokens have been used
	for range 3 {
		add()
	}
	for _, r := range old {
		if l.registered[r.token] != r {
			t.Errorf("token %d belongs to another file", r.token)
		}
	}
	if len(l.registered) != 6 {
		t.Errorf("%d registrations, want 6", len(l.registered))
	}
}
