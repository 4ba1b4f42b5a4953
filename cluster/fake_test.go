package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// TestMain lets the test's binary be a data-plane process too: the daemon starts it as one.
func TestMain(m *testing.M) {
	if n := len(os.Args); n >= 3 && os.Args[n-3] == "dataplane" && os.Args[n-2] == "--config" {
		os.Exit(fakeDataPlane(os.Args[n-1]))
	}
	os.Exit(m.Run())
}

// fake behaves as a data-plane process does towards its daemon and its twin. Its guest does nothing, and
// its checkpoint stream is a TCP connection on which nothing is said.
type fake struct {
	cfg  link.ProcessConfig
	exit chan int

	mu     sync.Mutex
	conn   *link.Conn
	a      pact.Assignment
	peer   link.Peer
	stream net.Conn // to the twin, either way
	lost   bool     // there was one
	asked  map[string]pact.Command
}

func fakeDataPlane(path string) int {
	cfg, err := link.ReadProcessConfig(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return link.ExitUsage
	}
	f := &fake{cfg: cfg, exit: make(chan int, 1), asked: map[string]pact.Command{}}
	streams, err := net.Listen("tcp", cfg.StreamListen)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return link.ExitFailed
	}
	control, err := net.Listen("unix", cfg.ControlSocket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return link.ExitFailed
	}
	go f.accept(streams)
	go f.again()
	go func() {
		for {
			c, err := control.Accept()
			if err != nil {
				return
			}
			go f.serve(link.NewConn(c), streams.Addr().String())
		}
	}()
	code := <-f.exit
	fmt.Fprintln(os.Stderr, "exit", code)
	return code
}

func (f *fake) end(code int) {
	select {
	case f.exit <- code:
	default:
	}
}

func (f *fake) serve(c *link.Conn, address string) {
	f.mu.Lock()
	f.conn = c
	_ = c.Send(link.Message{Hello: &link.Hello{Guest: f.cfg.Guest, Party: f.cfg.Party, PID: os.Getpid(), StreamAddress: address}})
	f.mu.Unlock()
	f.status()
	for {
		m, err := c.Receive()
		if err != nil {
			return
		}
		f.take(m)
		f.status()
	}
}

func (f *fake) status() {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := link.Status{Guest: f.cfg.Guest, Party: f.cfg.Party, Role: link.RoleWaiting, Term: f.a.Term, Mode: string(f.a.Mode)}
	switch f.cfg.Party {
	case f.a.Primary:
		s.Role = link.RolePrimary
	case f.a.Replica:
		s.Role = link.RoleReplica
	}
	if f.conn != nil {
		_ = f.conn.Send(link.Message{Status: &s})
	}
}

// propose; mu is held.
func (f *fake) propose(c pact.Command) {
	for _, o := range f.asked {
		if o.Kind == c.Kind && o.Term == f.a.Term {
			return
		}
	}
	var id [8]byte
	rand.Read(id[:])
	c.Guest, c.By, c.Term, c.ID = f.cfg.Guest, f.cfg.Party, f.a.Term, hex.EncodeToString(id[:])
	f.asked[c.ID] = c
	if f.conn != nil {
		_ = f.conn.Send(link.Message{Proposal: &c})
	}
}

// again puts open questions again.
func (f *fake) again() {
	for range time.Tick(100 * time.Millisecond) {
		f.mu.Lock()
		for _, c := range f.asked {
			if f.conn != nil {
				_ = f.conn.Send(link.Message{Proposal: &c})
			}
		}
		f.act()
		f.mu.Unlock()
	}
}

func (f *fake) take(m link.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case m.Assignment != nil:
		f.assigned(*m.Assignment)
	case m.Answer != nil && m.Answer.Verdict != nil:
		delete(f.asked, m.Answer.ID)
	case m.Peer != nil:
		f.peer = *m.Peer
	case m.Order != nil:
		primary := f.a.Runs() && f.a.Primary == f.cfg.Party
		switch {
		case m.Order.Kind == link.OrderAbandon:
			f.end(link.ExitDone)
		case m.Order.Kind == link.OrderPowerButton && primary && f.cfg.Spec.Cmdline != "deaf", m.Order.Kind == link.OrderKill && primary && f.cfg.Spec.Cmdline != "deaf":
			f.propose(pact.Command{Kind: pact.Stop})
		case m.Order.Kind == link.OrderSwitchover && primary:
			f.propose(pact.Command{Kind: pact.Switchover, Epoch: 50})
		}
	}
	f.act()
}

func (f *fake) assigned(a pact.Assignment) {
	if a.Term < f.a.Term {
		return
	}
	was := f.a
	f.a = a
	for id, c := range f.asked {
		if c.Term < a.Term {
			delete(f.asked, id)
		}
	}
	self := f.cfg.Party
	switch {
	case a.Mode == pact.Stopped && was.Runs():
		f.end(link.ExitDone)
	case was.Runs() && was.Primary == self && a.Runs() && a.Primary != self && a.Replica != self:
		f.end(link.ExitReplaced)
	case was.Mode == pact.Protected && was.Replica == self && a.Primary != self && a.Replica != self:
		f.end(link.ExitDiscarded)
	}
}

// act does what the assignment lets it do; mu is held.
func (f *fake) act() {
	self := f.cfg.Party
	f.mourn()
	if !f.a.Runs() || f.a.Primary != self || f.a.IsGone(self) {
		return
	}
	if f.a.CurrentDisk.Host != self.Host || f.a.CurrentDisk.Term < f.a.Tenure {
		for _, d := range f.cfg.Disks {
			mark := fmt.Sprintf(`{"format":1,"guest":%q,"state":"current","term":%d,"epoch":1}`, f.cfg.Guest, f.a.Term)
			// At once or not at all: tests kill it at any time.
			for path, b := range map[string][]byte{d: make([]byte, 4096), d + ".mark": []byte(mark)} {
				if os.WriteFile(path+".new", b, 0o600) == nil {
					_ = os.Rename(path+".new", path)
				}
			}
		}
		f.propose(pact.Command{Kind: pact.Mark})
		return
	}
	if f.stream == nil && !f.peer.Party.IsZero() {
		c, err := net.DialTimeout("tcp", f.peer.Address, time.Second)
		if err != nil {
			return
		}
		f.stream, f.lost = c, false
		go f.watch(c)
	}
	if f.stream != nil && f.a.Mode == pact.Solo && !f.peer.Party.IsZero() {
		f.propose(pact.Command{Kind: pact.Protect, Other: f.peer.Party, Epoch: 40})
	}
}

func (f *fake) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.stream, f.lost = c, false
		f.mu.Unlock()
		go f.watch(c)
	}
}

// watch sees the end of the stream, and asks Raft.
func (f *fake) watch(c net.Conn) {
	_, _ = c.Read(make([]byte, 1))
	c.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stream != c {
		return
	}
	f.stream, f.lost = nil, true
	f.mourn()
}

// mourn asks Raft where the stream of a protected pair is gone, also where it ended before the word of the
// protection had come; mu is held.
func (f *fake) mourn() {
	switch {
	case !f.lost || f.a.Mode != pact.Protected:
	case f.a.Primary == f.cfg.Party:
		f.propose(pact.Command{Kind: pact.GoSolo})
	case f.a.Replica == f.cfg.Party:
		f.propose(pact.Command{Kind: pact.Promote, Epoch: 60})
	}
}
