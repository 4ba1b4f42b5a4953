package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// report is what the guest's probe says; see tests/lab/probe.
type report struct {
	Line, Boot        string
	Uptime            int64
	CPUs              int
	Backwards, JumpNS int64
	Churned, Wrong    int64
	Blocks            int64
	DiskError         string
}

// caller asks the probe over one connection, a few times a second, and remembers what was wrong.
type caller struct {
	conn net.Conn
	in   *json.Decoder

	mu      sync.Mutex
	n       int
	gap     time.Duration // the longest between two answers, since the last look
	answer  time.Time
	last    report
	trouble error
	changed chan struct{}
}

func call(ctx context.Context, m *Machine, address string) (*caller, error) {
	conn, err := m.Dial(ctx, "tcp4", address)
	if err != nil {
		return nil, err
	}
	c := &caller{conn: conn, in: json.NewDecoder(bufio.NewReader(conn)), answer: time.Now(), changed: make(chan struct{}, 1)}
	go c.talk()
	return c, nil
}

func (c *caller) talk() {
	for ; ; time.Sleep(50 * time.Millisecond) {
		if err := c.ask(); err != nil {
			c.mu.Lock()
			c.trouble = err
			c.mu.Unlock()
			return
		}
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
}

func (c *caller) ask() error {
	line := fmt.Sprintf("question %d", c.n)
	if _, err := fmt.Fprintln(c.conn, line); err != nil {
		return fmt.Errorf("after %d answers: %w", c.n, err)
	}
	var r report
	if err := c.in.Decode(&r); err != nil {
		return fmt.Errorf("after %d answers: %w", c.n, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.last
	c.last = r
	c.n++
	now := time.Now()
	c.gap, c.answer = max(c.gap, now.Sub(c.answer)), now
	switch {
	case r.Line != line:
		return fmt.Errorf("answer %d is to %q", c.n, r.Line)
	case before.Boot != "" && r.Boot != before.Boot:
		return fmt.Errorf("answer %d comes from another start of the guest", c.n)
	case r.Uptime < before.Uptime, r.Churned < before.Churned, r.Blocks < before.Blocks:
		return fmt.Errorf("answer %d: the guest went back from %+v to %+v", c.n, before, r)
	case r.Backwards > 0 || r.Wrong > 0 || r.DiskError != "":
		return fmt.Errorf("answer %d: the guest has seen harm: %+v", c.n, r)
	}
	return nil
}

// more waits for further answers.
func (c *caller) more(ctx context.Context, answers int) error {
	c.mu.Lock()
	want := c.n + answers
	c.mu.Unlock()
	for {
		c.mu.Lock()
		n, trouble, waited := c.n, c.trouble, time.Since(c.answer)
		c.mu.Unlock()
		switch {
		case trouble != nil:
			return trouble
		case n >= want:
			return nil
		}
		select {
		case <-c.changed:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("no answer for %.1f s, after %d: %w", waited.Seconds(), n, ctx.Err())
		}
	}
}

// look returns the longest gap since the last look, and the newest report.
func (c *caller) look() (time.Duration, report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.gap
	c.gap = 0
	return g, c.last
}

// A stock kernel outlives its host: the plug of the primary is pulled while a client talks to the guest, the host comes
// back and is filled, and the guest is switched over to it again.
func TestStockKernelOutlivesItsHost(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d-cpu", cpus), func(t *testing.T) { outlive(t, cpus) })
	}
}

func outlive(t *testing.T, cpus int) {
	Need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	guest, err := parts.Fetch(ctx, parts.Cloud)
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "guest.cpio")
	if err := parts.WriteGuest(ctx, guest, initrd, "./tests/lab/probe"); err != nil {
		t.Fatal(err)
	}
	l := New(t, Options{Data: map[string]string{"vmlinuz": guest.Image, "guest.cpio": initrd}})
	c, err := l.Cluster(ctx)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	step := func(what string) {
		t.Logf("%6.1f s  %s", time.Since(began).Seconds(), what)
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		step(what)
	}
	must("the guest is created", c.Create(ctx, "g", "--kernel", "/data/vmlinuz", "--initrd", "/data/guest.cpio", "--memory", "128M",
		"--cpus", fmt.Sprint(cpus), "--disk", "size=64M", "--net", "bridge=lan", "--cmdline", parts.GuestCmdline))
	must("it is started", c.Start(ctx, "g"))
	ip, err := c.Address(ctx, "g")
	must("it has its address", err)
	var probe *caller
	must("it answers", until(ctx, "the guest answers", 200*time.Millisecond, func() (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		probe, err = call(ctx, l.Client("client"), net.JoinHostPort(ip.String(), "7"))
		return err == nil, err
	}))
	defer probe.conn.Close()
	must("it talks", probe.more(ctx, 10))
	must("it is protected", c.WaitProtected(ctx, "g"))
	must("it talks, protected", probe.more(ctx, 40))
	gap, r := probe.look()
	t.Logf("longest gap %v, report %+v", gap, r)
	if r.CPUs != cpus {
		t.Errorf("the guest has %d CPUs", r.CPUs)
	}

	a, b := l.Host("a"), l.Host("b")
	must("the plug of a is pulled", a.PowerCut())
	must("the guest runs on b", c.WaitPrimary(ctx, "g", b))
	must("it talks on the same connection", probe.more(ctx, 20))
	gap, r = probe.look()
	t.Logf("longest gap %v, report %+v", gap, r)

	must("a is on again", a.PowerOn(ctx))
	must("the guest is protected again", c.WaitProtected(ctx, "g"))
	must("it talks", probe.more(ctx, 20))
	gap, r = probe.look()
	t.Logf("longest gap %v, report %+v", gap, r)
	must("it is switched over", c.Switchover(ctx, "g"))
	must("it talks on the same connection", probe.more(ctx, 20))
	must("it is protected", c.WaitProtected(ctx, "g"))
	gap, r = probe.look()
	t.Logf("longest gap %v, report %+v", gap, r)
	if r.Blocks == 0 || r.Churned == 0 {
		t.Errorf("the guest has done nothing: %+v", r)
	}
}
