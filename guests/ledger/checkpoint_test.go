package ledger_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm"
)

// capturing is a guest whose pauses capture it.
type capturing struct {
	*guest
	capture *vmm.Capture
	done    chan error
	stay    bool // the guest stands still after the next capture
}

func bootCapturing(t *testing.T, disk string) *capturing {
	t.Helper()
	c := &capturing{capture: vmm.NewCapture(4096), done: make(chan error, 1)}
	c.guest = build(t, disk, "", func(p *vmm.Pause) bool {
		stay := c.stay // its last use before the receiver goes on
		c.done <- p.Capture(c.capture)
		return !stay
	})
	if err := c.machine.Boot(); err != nil {
		t.Fatal(err)
	}
	if err := c.machine.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	if err := c.machine.Start(); err != nil {
		t.Fatal(err)
	}
	c.console.wait(t, "ledger: ready")
	return c
}

// checkpoint returns the pages written since the last one.
func (c *capturing) checkpoint(t *testing.T, stay bool) []uint32 {
	t.Helper()
	c.stay = stay
	c.machine.RequestPause()
	select {
	case err := <-c.done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("no pause")
	}
	return c.capture.Pages
}

// A request writes few pages: each costs time in every checkpoint.
func TestRequestsDirtyFewPages(t *testing.T) {
	needKVM(t)
	network(t)
	c := bootCapturing(t, emptyDisk(t, 16<<20))
	conn, err := net.DialTimeout("tcp4", guestAddress+":6379", patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(conn)
	for _, q := range []struct {
		ask, want string
		most      int
	}{
		{"SET a 1", "+OK", 12},
		{"INCR a", "", 12},
		{"STRLEN a", "", 9},
		{"PING", "+PONG", 9},
	} {
		var counts []int
		for range 9 {
			c.checkpoint(t, false)
			fmt.Fprintf(conn, "%s\r\n", q.ask)
			line, err := r.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, q.want) {
				t.Fatalf("%s: %q, %v", q.ask, line, err)
			}
			counts = append(counts, len(c.checkpoint(t, false)))
		}
		slices.Sort(counts)
		t.Logf("%s: %d pages (median of %v)", q.ask, counts[len(counts)/2], counts)
		if m := counts[len(counts)/2]; m > q.most {
			t.Errorf("%s writes %d pages, at most %d were promised", q.ask, m, q.most)
		}
	}
}

// Stopped at any moment under load and carried over into a new machine, the guest goes on: the same
// connections, no reset, no acknowledged write lost.
func TestCarriedOver(t *testing.T) {
	needKVM(t)
	network(t)
	disk := emptyDisk(t, 16<<20)
	old := bootCapturing(t, disk)
	dialed := make([]net.Conn, 8)
	for i := range dialed {
		c, err := net.DialTimeout("tcp4", guestAddress+":6379", patience) // on this thread: it is in the namespace
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		dialed[i] = c
	}
	result := make(chan error, len(dialed))
	quit := make(chan struct{})
	progress := make(chan int, 1024)
	for i, c := range dialed {
		go func() { result <- count(c, fmt.Sprintf("n%d", i), quit, progress) }()
	}
	served := func(n int) {
		t.Helper()
		deadline := time.After(patience)
		for range n {
			select {
			case <-progress:
			case err := <-result:
				t.Fatalf("a client has stopped: %v", err)
			case <-deadline:
				t.Fatal("the clients get no replies")
			}
		}
	}
	served(200)
	for round := range 3 {
		old.checkpoint(t, true)
		ram := slices.Clone(old.machine.RAM().Bytes())
		state := slices.Clone(old.capture.State)
		old.stop()
		next := &capturing{capture: vmm.NewCapture(4096), done: make(chan error, 1)}
		next.guest = build(t, disk, "", func(p *vmm.Pause) bool {
			stay := next.stay
			next.done <- p.Capture(next.capture)
			return !stay
		})
		copy(next.machine.RAM().Bytes(), ram)
		if err := next.machine.LoadState(state); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := next.machine.SetDirtyLogging(true); err != nil {
			t.Fatal(err)
		}
		if err := next.machine.Start(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		old = next
		served(200)
	}
	close(quit)
	for range dialed {
		for done := false; !done; {
			select {
			case <-progress:
			case err := <-result:
				if err != nil {
					t.Error(err)
				}
				done = true
			case <-time.After(patience):
				t.Fatal("a client hangs")
			}
		}
	}
}

// count increments a key until quit and checks that no increment is lost or done twice.
func count(c net.Conn, key string, quit <-chan struct{}, progress chan<- int) error {
	r := bufio.NewReader(c)
	for n := 1; ; n++ {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprintf(c, "INCR %s\r\n", key); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if got := strings.TrimSpace(line); got != ":"+strconv.Itoa(n) {
			return errors.New(key + ": " + got + " instead of " + strconv.Itoa(n))
		}
		select {
		case <-quit:
			return nil
		case progress <- n:
		}
	}
}
