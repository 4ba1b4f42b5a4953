package consensus

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

// limit bounds every wait for something that must come about; its length decides no verdict.
const limit = 20 * time.Second

// network lets tests cut the links between machines.
type network struct {
	mu    sync.Mutex
	names map[string]string // address -> name
	cut   map[[2]string]bool
	conns map[[2]string]map[net.Conn]struct{}
}

func newNetwork() *network {
	return &network{names: map[string]string{}, cut: map[[2]string]bool{}, conns: map[[2]string]map[net.Conn]struct{}{}}
}

func link(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (w *network) dialer(from string) wire.DialFunc {
	return func(ctx context.Context, address string) (net.Conn, error) {
		w.mu.Lock()
		l := link(from, w.names[address])
		cut := w.cut[l]
		w.mu.Unlock()
		if cut {
			return nil, errors.New("the link is cut")
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.cut[l] {
			c.Close()
			return nil, errors.New("the link is cut")
		}
		if w.conns[l] == nil {
			w.conns[l] = map[net.Conn]struct{}{}
		}
		w.conns[l][c] = struct{}{}
		return c, nil
	}
}

func (w *network) set(a, b string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := link(a, b)
	w.cut[l] = cut
	if cut {
		for c := range w.conns[l] {
			c.Close()
		}
		delete(w.conns, l)
	}
}

// isolate cuts a machine off from all others, or joins it again.
func (w *network) isolate(name string, cut bool) {
	for _, o := range []string{"a", "b", "w"} {
		if o != name {
			w.set(name, o, cut)
		}
	}
}

// machine is one member in this process.
type machine struct {
	t       testing.TB
	name    string
	dir     string
	net     *network
	id      *pki.Identity
	issuer  *pki.Issuer
	cluster *pki.Cluster
	address string
	port    *wire.Port
	server  *wire.Server
	client  *wire.Client
	node    *Node

	mu      sync.Mutex
	applied map[string]pact.Assignment
	signal  chan struct{}
	onApply func(pact.Assignment)
}

func timeouts() config.Timeouts {
	d := func(ms int) config.Duration { return config.Duration(time.Duration(ms) * time.Millisecond) }
	return config.Timeouts{RaftHeartbeat: d(250), RaftElection: d(250), RaftLease: d(200), Propose: d(2000)}
}

func founder(t testing.TB, w *network, name string) *machine {
	t.Helper()
	m := &machine{t: t, name: name, dir: t.TempDir(), net: w, address: freePort(t)}
	c, _, err := pki.Found(m.pki(), name)
	if err != nil {
		t.Fatal(err)
	}
	m.cluster = c
	m.start()
	return m
}

func (m *machine) pki() string { return filepath.Join(m.dir, "pki") }

// joins lets a new machine join through m.
func (m *machine) joins(name string, role pki.Role) *machine {
	m.t.Helper()
	o := &machine{t: m.t, name: name, dir: m.t.TempDir(), net: m.net, address: freePort(m.t)}
	tok, _, err := m.issuer.Issue(name, role, m.address, time.Minute)
	if err != nil {
		m.t.Fatal(err)
	}
	if o.cluster, _, err = pki.Join(m.t.Context(), o.pki(), name, tok.String()); err != nil {
		m.t.Fatal(err)
	}
	o.start()
	return o
}

func freePort(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start brings the machine up, with what is in its directory.
func (m *machine) start() {
	m.t.Helper()
	var err error
	check := func() {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	m.id, err = pki.Load(m.pki())
	check()
	m.cluster, err = pki.LoadCluster(m.pki())
	check()
	m.issuer, err = pki.NewIssuer(m.pki(), m.id, m.cluster)
	if errors.Is(err, pki.ErrNoIssuer) {
		m.issuer, err = nil, nil
	}
	check()
	log := testLog().Named(m.name)
	m.net.mu.Lock()
	m.net.names[m.address] = m.name
	m.net.mu.Unlock()
	var node atomic.Pointer[Node] // callers come before it is open
	m.port, err = wire.Listen(m.address, m.id, m.issuer, func(p pki.Peer) error {
		if n := node.Load(); n != nil {
			return n.Allowed(p)
		}
		return nil
	}, log)
	check()
	m.port.DialVia = m.net.dialer(m.name)
	m.client = wire.NewClient(m.id)
	m.client.DialVia = m.net.dialer(m.name)
	if m.issuer != nil {
		m.issuer.Seeds = func() []pki.Seed { return []pki.Seed{{Name: m.name, ClusterAddress: m.address}} }
	}
	m.applied, m.signal = map[string]pact.Assignment{}, make(chan struct{}, 1)
	m.node, err = Open(Options{
		Identity: m.id, Port: m.port, Client: m.client, Dir: filepath.Join(m.dir, "raft"), Timeouts: timeouts(),
		Self:  Member{Name: m.name, Role: m.cluster.Role, ClusterAddress: m.address, GossipAddress: "127.0.0.1:1"},
		Found: m.cluster.Founder, Seeds: m.cluster.Seeds, Log: log,
		Founded: func() error { m.cluster.Founder = false; return m.cluster.Store(m.pki()) },
		Changed: func(a pact.Assignment, exists bool) {
			m.mu.Lock()
			if exists {
				m.applied[a.Guest] = a
			} else {
				delete(m.applied, a.Guest)
			}
			hook := m.onApply
			m.mu.Unlock()
			if hook != nil {
				hook(a)
			}
			poke(m.signal)
		},
	})
	check()
	node.Store(m.node)
	m.server = m.port.Serve(m.node.Handlers())
	m.t.Cleanup(m.stop)
}

// stop ends the machine's daemon; its directory stays.
func (m *machine) stop() {
	if m.node == nil {
		return
	}
	if err := m.node.Close(); err != nil {
		m.t.Errorf("close %s: %v", m.name, err)
	}
	if err := m.server.Close(); err != nil {
		m.t.Errorf("close %s: %v", m.name, err)
	}
	m.client.Close()
	m.port.Close()
	m.node = nil
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(5 * time.Millisecond) // a poll, not a wait
	}
}

// waits until this machine has applied an assignment of the guest g that is so.
func (m *machine) sees(what string, ok func(pact.Assignment) bool) {
	m.t.Helper()
	deadline := time.After(limit)
	for {
		m.mu.Lock()
		a := m.applied["g"]
		m.mu.Unlock()
		if ok(a) {
			return
		}
		select {
		case <-m.signal:
		case <-deadline:
			m.t.Fatalf("%s does not see %s; it sees %+v", m.name, what, a)
		}
	}
}

// trio is two hosts and a witness, all voters, with the leadership on the witness.
func trio(t testing.TB) (w *network, a, b, wit *machine) {
	t.Helper()
	w = newNetwork()
	a = founder(t, w, "a")
	b = a.joins("b", pki.RoleHost)
	wit = a.joins("w", pki.RoleWitness)
	ready(t, wit, a, b, wit)
	return w, a, b, wit
}

// ready waits until leader leads and all machines know it, and vote.
func ready(t testing.TB, leader *machine, all ...*machine) {
	t.Helper()
	for _, m := range all {
		eventually(t, m.name+" knows that "+leader.name+" leads three voters", func() bool {
			s := m.node.Status()
			voters := 0
			for _, v := range s.Voters {
				if v.Voter {
					voters++
				}
			}
			return s.Leader == leader.name && voters == 3 && m.node.Current()
		})
	}
}

func (m *machine) propose(c pact.Command) (pact.Verdict, error) {
	c.Guest = "g"
	return m.node.Propose(m.t.Context(), c)
}

func (m *machine) must(c pact.Command) pact.Verdict {
	m.t.Helper()
	var v pact.Verdict
	var err error
	eventually(m.t, string(c.Kind)+" through "+m.name, func() bool {
		v, err = m.propose(c)
		return err == nil
	})
	if !v.Applied {
		m.t.Fatalf("%s refused: %s", c.Kind, v.Reason)
	}
	return v
}

// testLog tells what happens where POLLUX_TEST_LOG is set.
func testLog() *zap.Logger {
	if os.Getenv("POLLUX_TEST_LOG") == "" {
		return zap.NewNop()
	}
	l, err := zap.NewDevelopment()
	if err != nil {
		return zap.NewNop()
	}
	return l
}
