package dataplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/replica/core"
	"github.com/pollux-ha/pollux/replica/mark"
	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap"
	"github.com/pollux-ha/pollux/vmm/tap/taptest"
	"github.com/pollux-ha/pollux/vmm/virtio"
)

const (
	guestBytes = 64 << 20
	diskBytes  = 16 << 20
	// bound is how long a test waits for something before it calls it missing.
	bound = 60 * time.Second
)

// whoHas asks for 10.0.0.2 on behalf of 10.0.0.9: the smallest request that a guest answers.
var whoHas, _ = hex.DecodeString(strings.Repeat("00", platform.FrameHeaderBytes) + "ffffffffffff" + "020000000009" + "0806" + "0001080006040001" +
	"020000000009" + "0a000009" + "000000000000" + "0a000002")

// raft is a pact that commits at once, and two daemons' worth of conversation with processes.
type raft struct {
	t  *testing.T
	mu sync.Mutex

	state *pact.State
	index uint64
	ids   int
	procs map[pact.Party]*member
	moved *sync.Cond // the assignment or a status has changed
	mute  bool       // questions get no answer

	firmware link.FirmwareImage // of both hosts
}

// member is a process as its daemon knows it.
type member struct {
	p      *process
	conn   *link.Conn
	hello  *link.Hello
	status link.Status
	wire   *os.File
	dir    string
	gone   chan struct{} // closed at its end, with code set
	code   int
}

func newRaft(t *testing.T, change ...func(*pact.Spec)) *raft {
	r := &raft{t: t, state: pact.NewState(), procs: map[pact.Party]*member{}}
	r.moved = sync.NewCond(&r.mu)
	spec := &pact.Spec{
		Hosts: []string{"a", "b"}, Kernel: builtinLedger, Cmdline: "ip=10.0.0.2/24", MemoryBytes: guestBytes, CPUs: 1,
		Disks: []pact.DiskSpec{{SizeBytes: diskBytes}}, Nets: []pact.NetSpec{{MAC: "02:00:00:00:00:01", Bridge: "lan"}},
	}
	for _, fn := range change {
		fn(spec)
	}
	r.propose(pact.Command{Kind: pact.Create, Guest: "g", Spec: spec})
	return r
}

// propose commits a command and tells every process.
func (r *raft) propose(c pact.Command) pact.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.commit(c)
}

func (r *raft) commit(c pact.Command) pact.Verdict {
	if c.ID == "" {
		r.ids++
		c.ID = fmt.Sprint("test", r.ids)
	}
	r.index++
	v := r.state.Apply(c, r.index)
	r.t.Logf("%s in term %d by %v: applied %v %s -> term %d %s", c.Kind, c.Term, c.By, v.Applied, v.Reason, v.Assignment.Term, v.Assignment.Mode)
	r.tell()
	return v
}

// tell gives everybody the assignment, and primaries their peer; r.mu is held.
func (r *raft) tell() {
	a, ok := r.state.Guest("g")
	if !ok {
		return
	}
	for party, m := range r.procs {
		if m.conn == nil {
			continue
		}
		_ = m.conn.Send(link.Message{Assignment: &a})
		for other, o := range r.procs {
			if other != party && o.hello != nil {
				_ = m.conn.Send(link.Message{Peer: &link.Peer{Party: other, Address: o.hello.StreamAddress}})
			}
		}
	}
	r.moved.Broadcast()
}

func (r *raft) serve(m *member, conn *link.Conn) {
	for {
		msg, err := conn.Receive()
		if err != nil {
			return
		}
		r.mu.Lock()
		switch {
		case msg.Hello != nil:
			m.hello = msg.Hello
			r.tell()
		case msg.Status != nil:
			m.status = *msg.Status
			r.moved.Broadcast()
		case msg.Proposal != nil && r.mute:
			_ = conn.Send(link.Message{Answer: &link.Answer{ID: msg.Proposal.ID, Unknown: "no quorum"}})
		case msg.Proposal != nil:
			v := r.commit(*msg.Proposal)
			_ = conn.Send(link.Message{Answer: &link.Answer{ID: msg.Proposal.ID, Verdict: &v}})
		}
		r.mu.Unlock()
	}
}

// until waits for something about the assignment or the processes.
func (r *raft) until(what string, fn func(a pact.Assignment) bool) pact.Assignment {
	r.t.Helper()
	late := time.AfterFunc(bound, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.moved.Broadcast()
	})
	defer late.Stop()
	end := time.Now().Add(bound)
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		a, _ := r.state.Guest("g")
		if fn(a) {
			return a
		}
		if time.Now().After(end) {
			var seen []string
			for p, m := range r.procs {
				seen = append(seen, fmt.Sprintf("%v: %+v", p, m.status))
			}
			r.t.Fatalf("never: %s\nassignment %+v\n%s", what, a, strings.Join(seen, "\n"))
		}
		r.moved.Wait()
	}
}

func protectedBy(p pact.Party) func(pact.Assignment) bool {
	return func(a pact.Assignment) bool { return a.Mode == pact.Protected && a.Primary == p }
}

// certificates makes a cluster of two hosts and returns their directories.
func certificates(t *testing.T) map[string]string {
	t.Helper()
	base := t.TempDir()
	dirs := map[string]string{"a": filepath.Join(base, "a"), "b": filepath.Join(base, "b")}
	c, _, err := pki.Found(dirs["a"], "a")
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dirs["a"])
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := pki.NewIssuer(dirs["a"], id, c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s := tls.Server(conn, id.MuxConfig(true, pki.ALPNRaft))
		if s.Handshake() == nil {
			_ = issuer.Serve(s)
		}
		s.Close()
	}()
	token, _, err := issuer.Issue("b", pki.RoleHost, l.Addr().String(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pki.Join(context.Background(), dirs["b"], "b", token.String()); err != nil {
		t.Fatal(err)
	}
	return dirs
}

// launch starts a process on a host's directory.
func (r *raft) launch(party pact.Party, dir, certs string) *member {
	t := r.t
	t.Helper()
	nic := taptest.New(t, 1)
	m := &member{wire: nic.Far[0], gone: make(chan struct{}), dir: dir}
	a, _ := r.state.Guest("g")
	cfg := link.ProcessConfig{
		Guest: "g", Party: party, Spec: a.Spec, Disks: []string{filepath.Join(dir, "disk0.raw")}, Journal: filepath.Join(dir, "journal"),
		Taps: []string{"tap0"}, ControlSocket: filepath.Join(dir, fmt.Sprintf("%d.sock", party.Incarnation)), StreamListen: "127.0.0.1:0",
		PKI: certs, EventLog: filepath.Join(dir, "events.jsonl"), ConsoleLog: filepath.Join(dir, "console.log"),
		JournalBytes: 8 << 20,
		// The machine under test has two cores for both hosts, and shares them: what matters here is
		// what happens, not how soon.
		Timeouts: link.ProcessTimeouts{Silence: 2 * time.Second, Heartbeat: 20 * time.Millisecond},
	}.WithDefaults()
	for i := range a.Spec.Disks[1:] {
		cfg.Disks = append(cfg.Disks, filepath.Join(dir, fmt.Sprintf("disk%d.raw", i+1)))
	}
	if a.Spec.Firmware != "" {
		cfg.Disks, cfg.Firmware = append(cfg.Disks, filepath.Join(dir, "vars.raw")), r.firmware
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	log := zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)).Named(party.Host)
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	m.p, err = start(ctx, cfg, log, func(string, string, tap.Options) (virtio.Tap, error) { return nic, nil })
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		defer close(m.gone)
		m.code = m.p.wait(ctx)
	}()
	conn, err := net.Dial("unix", cfg.ControlSocket)
	if err != nil {
		t.Fatal(err)
	}
	m.conn = link.NewConn(conn)
	r.mu.Lock()
	r.procs[party] = m
	r.mu.Unlock()
	go r.serve(m, m.conn)
	t.Cleanup(func() {
		cancel()
		<-m.gone
		r.mu.Lock()
		m.conn.Close()
		r.mu.Unlock()
		m.wire.Close()
	})
	return m
}

// ask sends the guest a request on both hosts' wires, as a bridge would, and says who answered.
func (r *raft) ask(members ...*member) *member {
	r.t.Helper()
	buf := make([]byte, 2000)
	var asked time.Time
	for end := time.Now().Add(bound); time.Now().Before(end); {
		if time.Since(asked) > 200*time.Millisecond { // clients ask again
			asked = time.Now()
			for _, m := range members {
				if _, err := m.wire.Write(whoHas); err != nil && !errors.Is(err, unix.EAGAIN) {
					r.t.Fatal(err)
				}
			}
		}
		for _, m := range members {
			if err := m.wire.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
				r.t.Fatal(err)
			}
			n, err := m.wire.Read(buf)
			f, asked := buf[platform.FrameHeaderBytes:], whoHas[platform.FrameHeaderBytes:]
			if err == nil && n >= platform.FrameHeaderBytes+42 && f[12] == 8 && f[13] == 6 && f[21] == 2 && bytes.Equal(f[:6], asked[6:12]) {
				return m
			}
		}
	}
	r.t.Fatal("the guest does not answer")
	return nil
}

// drain takes what is on the wire already.
func (m *member) drain() {
	raw, err := m.wire.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		buf := make([]byte, 2000)
		for {
			if _, err := unix.Read(int(fd), buf); err != nil {
				return
			}
		}
	})
}

func needsKVM(t *testing.T) {
	t.Helper()
	if err := kvm.Check(); err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
}

// pairUp boots the guest on a and protects it with b.
func pairUp(t *testing.T, change ...func(*pact.Spec)) (r *raft, a, b *member, certs map[string]string) {
	needsKVM(t)
	certs = certificates(t)
	r = newRaft(t, change...)
	a, b = r.launch(partyA, t.TempDir(), certs["a"]), r.launch(partyB, t.TempDir(), certs["b"])
	if v := r.propose(pact.Command{Kind: pact.Start, Guest: "g", By: partyA}); !v.Applied {
		t.Fatal(v.Reason)
	}
	if r.ask(a) != a {
		t.Fatal("somebody else answered")
	}
	r.until("protected", protectedBy(partyA))
	return r, a, b, certs
}

var partyA, partyB = pact.Party{Host: "a", Incarnation: 0xa1}, pact.Party{Host: "b", Incarnation: 0xb1}

// kill ends a process without a word to anybody: its stream and its conversation with the daemon break.
func (r *raft) kill(m *member) {
	r.mu.Lock()
	delete(r.procs, m.p.cfg.Party)
	r.mu.Unlock()
	m.conn.Close()
	if e := m.p.currentEngine(); e != nil {
		e.Close()
	}
	m.p.end(link.ExitFailed, "killed by the test")
	m.exited(r.t, link.ExitFailed)
}

// exited waits for the process's end.
func (m *member) exited(t *testing.T, want int) {
	t.Helper()
	select {
	case <-m.gone:
	case <-time.After(bound):
		t.Fatalf("%v does not exit", m.p.cfg.Party)
	}
	if m.code != want {
		t.Errorf("%v exits with %d, want %d", m.p.cfg.Party, m.code, want)
	}
}

// TestTakeover: the primary's process is gone from one moment to the next; its guest goes on on the twin.
func TestTakeover(t *testing.T) {
	r, a, b, certs := pairUp(t)
	for range 20 {
		if r.ask(a, b) != a {
			t.Fatal("b answered while a is the primary")
		}
	}
	r.kill(a)
	got := r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
	if r.ask(b) != b {
		t.Fatal("somebody else answered")
	}
	r.until("b has marked its disk", func(x pact.Assignment) bool { return x.CurrentDisk.Host == "b" && x.CurrentDisk.Term >= got.Term })
	if m, err := mark.Read(filepath.Join(b.dir, "disk0.raw")); err != nil || m.State != mark.Current || m.Term != got.Term || m.Epoch != got.Base {
		t.Errorf("b's disk is marked %+v, %v", m, err)
	}
	// A new process on a becomes the next replica.
	next := pact.Party{Host: "a", Incarnation: 0xa2}
	a2 := r.launch(next, a.dir, certs["a"])
	r.until("protected again", func(x pact.Assignment) bool {
		return x.Mode == pact.Protected && x.Primary == partyB && x.Replica == next
	})
	if r.ask(a2, b) != b {
		t.Fatal("a2 answered while b is the primary")
	}
	for _, m := range []*member{a2, b} {
		if _, err := audit.Verify(filepath.Join(m.dir, "events.jsonl")); err != nil {
			t.Error(err)
		}
	}
}

// TestSwitchoverAndBack: roles are exchanged twice, protection never ends, nothing is copied again.
func TestSwitchoverAndBack(t *testing.T) {
	r, a, b, _ := pairUp(t)
	from, to := a, b
	for i, want := range []pact.Party{partyB, partyA, partyB} {
		before := r.until("marked", func(x pact.Assignment) bool { return x.CurrentDisk.Host == x.Primary.Host })
		// An order is refused while the stream of the new roles is not there yet: it is given again.
		got := r.until(fmt.Sprintf("switchover %d", i), func(x pact.Assignment) bool {
			if x.Primary != want {
				_ = from.conn.Send(link.Message{Order: &link.Order{Kind: link.OrderSwitchover}})
			}
			return protectedBy(want)(x)
		})
		if got.Term != before.Term+1 {
			t.Errorf("switchover %d: from term %d to %d: it was not protected all the time", i, before.Term, got.Term)
		}
		// What the old primary was entitled to say may still be on its wire.
		r.until("the old primary has become the replica", func(pact.Assignment) bool {
			return from.status.Role == link.RoleReplica && from.status.Term == got.Term
		})
		from.drain()
		for range 5 {
			if r.ask(a, b) != to {
				t.Fatalf("switchover %d: the old primary answered", i)
			}
		}
		from, to = to, from
	}
	end := r.until("quiet", func(pact.Assignment) bool { return true })
	if end.Mode != pact.Protected {
		t.Errorf("%+v", end)
	}
}

// TestLoserExits: a primary that is cut off from its twin and from Raft holds its output; when it
// learns of the higher term it ends with the code that makes it the next replica.
func TestLoserExits(t *testing.T) {
	r, a, b, _ := pairUp(t)
	// a's daemon is away, its stream breaks: it can't ask anybody.
	r.mu.Lock()
	conn := a.conn
	a.conn = nil
	r.mu.Unlock()
	conn.Close()
	b.p.streams.close()
	b.p.side.Step(core.Silent{})
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
	a.drain() // what a was entitled to say before
	if r.ask(a, b) != b {
		t.Fatal("a answered after b had taken over")
	}
	// Its daemon is back.
	c, err := net.Dial("unix", a.p.cfg.ControlSocket)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	again := link.NewConn(c)
	a.conn = again
	r.mu.Unlock()
	go r.serve(a, again)
	a.exited(t, link.ExitReplaced)
}

// TestStop: a stop is an entry first; the replica does not take it for a fault.
func TestStop(t *testing.T) {
	r, a, b, _ := pairUp(t)
	r.mu.Lock()
	_ = a.conn.Send(link.Message{Order: &link.Order{Kind: link.OrderKill}})
	r.mu.Unlock()
	r.until("stopped", func(x pact.Assignment) bool { return x.Mode == pact.Stopped })
	a.exited(t, link.ExitDone)
	b.exited(t, link.ExitDiscarded)
}
