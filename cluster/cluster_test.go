package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/console"
)

// limit bounds waits for what must come about.
const limit = 90 * time.Second

type machine struct {
	t      *testing.T
	cfg    *config.Config
	run    func(context.Context, *config.Config) error
	client *console.Client
	cancel context.CancelFunc
	done   chan error
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newMachine(t *testing.T, name string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "px") // short: control sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	port := func() string { return freeAddress(t) }
	ms := func(n int) config.Duration { return config.Duration(time.Duration(n) * time.Millisecond) }
	level := "error"
	if os.Getenv("POLLUX_TEST_LOG") != "" {
		level = "info"
	}
	cfg := config.Config{
		Name: name, StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		ClusterAddress: port(), GossipAddress: port(), ReplicationAddress: "127.0.0.1",
		Timeouts: config.Timeouts{RaftHeartbeat: ms(300), RaftElection: ms(300), RaftLease: ms(250)},
		Log:      config.Log{Level: level},
		Shutdown: config.Shutdown{Guests: config.ShutdownStay},
		Program:  []string{os.Args[0]},
	}.WithDefaults()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return &machine{t: t, cfg: &cfg, run: RunHost, client: console.NewClient(cfg.Socket())}
}

func (m *machine) start() {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.done = cancel, make(chan error, 1)
	go func() { m.done <- m.run(ctx, m.cfg) }()
	m.eventually("the daemon answers", func() bool {
		select {
		case err := <-m.done:
			m.t.Fatalf("%s ended: %v", m.cfg.Name, err)
		default:
		}
		_, err := m.client.Status(m.t.Context())
		return err == nil
	})
	m.t.Cleanup(m.stop)
}

func (m *machine) stop() {
	if m.cancel == nil {
		return
	}
	m.cancel()
	if err := <-m.done; err != nil {
		m.t.Errorf("%s: %v", m.cfg.Name, err)
	}
	m.cancel = nil
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			s, err := m.client.Status(m.t.Context())
			m.t.Fatalf("%s: %s: not within %v; status %+v %v", m.cfg.Name, what, limit, s, err)
		}
		time.Sleep(20 * time.Millisecond) // a poll, not a wait
	}
}

// sees waits until the guest is as wanted, and returns it.
func (m *machine) sees(what string, ok func(*console.Guest) bool) *console.Guest {
	m.t.Helper()
	var g *console.Guest
	m.eventually(what, func() bool {
		var err error
		g, err = m.client.Guest(m.t.Context(), "g")
		return err == nil && ok(g)
	})
	return g
}

func protectedBy(primary, replica string) func(*console.Guest) bool {
	return func(g *console.Guest) bool {
		return g.State == "protected" && g.Primary == primary && g.Replica == replica && len(g.Processes) == 2
	}
}

// process finds the guest's process on a host.
func process(g *console.Guest, host string) console.Process {
	i := slices.IndexFunc(g.Processes, func(p console.Process) bool { return p.Host == host })
	if i < 0 {
		return console.Process{}
	}
	return g.Processes[i]
}

func joinAs(t *testing.T, founder *machine, name, role string, with ...func(*machine)) *machine {
	t.Helper()
	m := newMachine(t, name)
	for _, f := range with {
		f(m)
	}
	tok, err := founder.client.Token(t.Context(), console.TokenRequest{Name: name, Role: role})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Join(t.Context(), m.cfg, tok.Token)
	if err != nil || r.Role != role || r.Issuer != founder.cfg.Name {
		t.Fatalf("join: %+v %v", r, err)
	}
	if role == "witness" {
		m.run = RunWitness
	}
	m.start()
	return m
}

// trio brings up two hosts and a witness.
func trio(t *testing.T) (a, b, w *machine) {
	t.Helper()
	a = newMachine(t, "a")
	if _, err := Init(a.cfg); err != nil {
		t.Fatal(err)
	}
	a.start()
	b, w = joinAs(t, a, "b", "host"), joinAs(t, a, "w", "witness")
	for _, m := range []*machine{a, b, w} {
		m.eventually("three voters, the witness leads", func() bool {
			s, err := m.client.Status(t.Context())
			return err == nil && s.Leader == "w" && s.Quorum.Voters == 3 && s.Quorum.Healthy && s.Quorum.Tolerates == 1 && alive(s) == 3
		})
	}
	// Whatever a failed test leaves behind must not outlive it.
	t.Cleanup(func() {
		for _, m := range []*machine{a, b} {
			killAll(m)
		}
	})
	return a, b, w
}

func alive(s *console.ClusterStatus) int {
	n := 0
	for _, m := range s.Members {
		if m.State == "alive" {
			n++
		}
	}
	return n
}

// killAll ends the processes that m's daemon has started.
func killAll(m *machine) {
	files, _ := filepath.Glob(filepath.Join(m.cfg.ProcessDir(), "*.json"))
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		for _, f := range files {
			if strings.Contains(string(b), f) {
				var pid int
				for _, c := range e.Name() {
					pid = pid*10 + int(c-'0')
				}
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

func spec() pact.Spec {
	return pact.Spec{Hosts: []string{"a", "b"}, Kernel: "builtin:ledger", MemoryBytes: 1 << 20, CPUs: 1, Disks: []pact.DiskSpec{{SizeBytes: 4096}}}
}

func isCode(err error, c console.Code) bool { return errors.Is(err, &console.Error{Code: c}) }

func TestALifeOfAGuest(t *testing.T) {
	a, b, w := trio(t)
	ctx := t.Context()

	if _, err := b.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec()}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec()}); !isCode(err, console.CodeExists) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := w.client.Start(ctx, "g", console.StartRequest{Operator: "op"}); err != nil {
		t.Fatal(err)
	}
	g := a.sees("protected", protectedBy("a", "b"))

	// The daemon of the primary's host goes and comes back: the guest does not notice.
	pid := process(g, "a").PID
	a.stop()
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the guest went with its daemon: %v", err)
	}
	a.start()
	g = a.sees("the guest as it was", protectedBy("a", "b"))
	if process(g, "a").PID != pid {
		t.Errorf("another process: %d, was %d", process(g, "a").PID, pid)
	}

	// The primary's process dies: the twin takes over, and the host gives it a new replica.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	g = b.sees("b has taken over and is protected by a", protectedBy("b", "a"))
	if g.CurrentDisk != "b" {
		t.Errorf("the current disk is %s's", g.CurrentDisk)
	}

	// The replica's process dies: the guest goes on, and gets another.
	if err := syscall.Kill(process(g, "a").PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	before := g.Term
	b.sees("protected again", func(g *console.Guest) bool { return protectedBy("b", "a")(g) && g.Term > before })

	// Roles are exchanged, from either side.
	if _, err := b.client.Switchover(ctx, "g", console.SwitchoverRequest{}); err != nil {
		t.Fatal(err)
	}
	a.sees("switched over", protectedBy("a", "b"))

	// It stops, and does not come back.
	if _, err := a.client.Delete(ctx, "g", console.DeleteRequest{Confirm: "g"}); !isCode(err, console.CodeRefused) {
		t.Errorf("deleted while it ran: %v", err)
	}
	if g, err := b.client.Stop(ctx, "g", console.StopRequest{}); err != nil || g.Mode != pact.Stopped {
		t.Fatalf("%+v %v", g, err)
	}
	a.sees("no processes", func(g *console.Guest) bool { return g.State == "stopped" && len(g.Processes) == 0 })

	// From its own disk it starts again.
	if _, err := a.client.Start(ctx, "g", console.StartRequest{}); err != nil {
		t.Fatal(err)
	}
	g = a.sees("protected", func(g *console.Guest) bool { return g.State == "protected" })
	// Both processes die at once; the primary's is replaced from its disk.
	for _, p := range g.Processes {
		if err := syscall.Kill(p.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range g.Processes {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	before = g.Term
	b.sees("started anew", func(g *console.Guest) bool { return g.State == "protected" && g.Term > before })

	if _, err := a.client.Stop(ctx, "g", console.StopRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.Delete(ctx, "g", console.DeleteRequest{}); !isCode(err, console.CodeNeedsConfirmation) {
		t.Errorf("deleted without confirmation: %v", err)
	}
	if _, err := a.client.Delete(ctx, "g", console.DeleteRequest{Confirm: "g"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client.Guest(ctx, "g"); !isCode(err, console.CodeNoSuchGuest) {
		t.Errorf("a deleted guest: %v", err)
	}
	for _, m := range []*machine{a, b} {
		m.eventually("the disks are put aside", func() bool {
			_, err := os.Stat(m.cfg.GuestDir("g"))
			return os.IsNotExist(err)
		})
	}
	events, err := a.client.Events(ctx, 1000, "g")
	if err != nil || len(events) < 10 {
		t.Errorf("%d events, %v", len(events), err)
	}
}

func TestAHostIsLost(t *testing.T) {
	a, b, w := trio(t)
	ctx := t.Context()
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Start: true}); err != nil {
		t.Fatal(err)
	}
	g := b.sees("protected", protectedBy("a", "b"))

	// a is gone with all that it has: daemon and guest.
	a.stop()
	if err := syscall.Kill(process(g, "a").PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.sees("b runs it alone", func(g *console.Guest) bool { return g.Mode == pact.Solo && g.Primary == "b" && g.CurrentDisk == "b" })
	s, err := w.client.Status(ctx)
	if err != nil || s.Quorum.Tolerates != 0 || len(s.Alarms) == 0 {
		t.Errorf("status without a: %+v %v", s, err)
	}
	// It comes back, never with its old copy.
	a.start()
	b.sees("protected by a", protectedBy("b", "a"))

	// Without a majority nothing can be changed, and that is said.
	a.stop()
	w.stop()
	b.eventually("b is alone", func() bool {
		_, err := b.client.Stop(ctx, "g", console.StopRequest{Wait: console.Wait{WaitSeconds: -1}})
		return isCode(err, console.CodeNoQuorum)
	})
	w.start()
	a.start()
	b.sees("still there", func(g *console.Guest) bool { return g.Primary == "b" })
}

func TestAGuestThatDoesNotListen(t *testing.T) {
	a, b, _ := trio(t)
	ctx := t.Context()
	s := spec()
	s.Cmdline = "deaf"
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: s, Start: true}); err != nil {
		t.Fatal(err)
	}
	b.sees("protected", protectedBy("a", "b"))
	if _, err := b.client.Stop(ctx, "g", console.StopRequest{TimeoutSeconds: 0.1}); err != nil {
		t.Fatal(err)
	}
	a.sees("stopped for good", func(g *console.Guest) bool { return g.State == "stopped" && len(g.Processes) == 0 })
}

// loseBoth has b lose its copy of the guest while a, which goes on alone, is cut off for good.
func loseBoth(t *testing.T, g *console.Guest, a, b *machine) {
	t.Helper()
	if err := syscall.Kill(process(g, "b").PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	a.stop()
	for _, p := range g.Processes {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	b.sees("b's word", func(g *console.Guest) bool { return len(g.Assignment.Gone) == 1 })
}

func TestAnOrderToAcceptALoss(t *testing.T) {
	a, b, _ := trio(t)
	ctx := t.Context()
	if _, err := a.client.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Start: true}); err != nil {
		t.Fatal(err)
	}
	g := b.sees("protected", protectedBy("a", "b"))
	loseBoth(t, g, a, b)
	order := console.StartRequest{Host: "b", AcceptLoss: "whatever a has", Operator: "op"}
	if _, err := b.client.Start(ctx, "g", order); !isCode(err, console.CodeRefused) || !strings.Contains(err.Error(), "a is off") {
		t.Errorf("without a word on a: %v", err)
	}
	order.HostsOff = []string{"a"}
	if _, err := b.client.Start(ctx, "g", order); !isCode(err, console.CodeNeedsConfirmation) {
		t.Errorf("unconfirmed: %v", err)
	}
	order.Confirm = "g"
	if _, err := b.client.Start(ctx, "g", order); err != nil {
		t.Fatal(err)
	}
	b.sees("b runs it from its own disk", func(g *console.Guest) bool { return g.Mode == pact.Solo && g.Primary == "b" && g.CurrentDisk == "b" })
	a.start()
	b.sees("a is the replica now", protectedBy("b", "a"))
}
