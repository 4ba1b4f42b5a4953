package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/guests/ledger"
)

// Somebody on the pair's networks, without a certificate, with a wrong one, and at last with the primary's
// own: a client of the guest must not notice, and the guest is protected again after each.
func TestStrangers(t *testing.T) {
	if session(t) {
		besiege(t)
	}
}

// siege is a cluster with a stranger on its networks, and a client of its guest.
type siege struct {
	stage    *demo.Stage
	stranger *lab.Machine
	ctx      context.Context

	counted atomic.Int64
	failed  chan error
}

func besiege(t *testing.T) {
	s := &siege{ctx: t.Context(), failed: make(chan error, 1), stage: newStage(t)}
	var err error
	if s.stranger, err = s.stage.Lab.AddMachine("x", 66, lab.Cluster, lab.Replication); err != nil {
		t.Fatal(err)
	}
	conn, err := s.stage.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var client sync.WaitGroup
	client.Go(func() { s.count(conn) })
	defer client.Wait()
	defer conn.Close()

	t.Run("idle connections", s.idle)
	t.Run("certificates", s.certificates)
	t.Run("checkpoint streams", s.streams)
	t.Run("other guests", s.guests)

	for _, name := range []string{"a", "b", "w"} {
		n := s.stage.Node(name)
		if _, err := n.Command(t.Context(), "", "events", "verify", n.Config.EventLog()); err != nil {
			t.Error(err)
		}
	}
	logs, err := filepath.Glob(filepath.Join(s.stage.Lab.Dir, "*", "run", "guests", "*.log"))
	daemons, err2 := filepath.Glob(filepath.Join(s.stage.Lab.Dir, "*", "daemon.log"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(logs, daemons...) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\ngoroutine ") || strings.Contains(string(b), "panic: ") || strings.Contains(string(b), "fatal error: ") {
			t.Errorf("%s tells of a crash", path)
		}
	}
	t.Logf("the client has counted to %d", s.counted.Load())
}

// count counts on one connection: each reply must be one more than the last.
func (s *siege) count(conn net.Conn) {
	r := bufio.NewReader(conn)
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for n := int64(1); ; n++ {
		_, err := io.WriteString(conn, "*2\r\n$4\r\nINCR\r\n$5\r\ncount\r\n")
		var reply string
		if err == nil {
			reply, err = r.ReadString('\n')
		}
		if want := fmt.Sprintf(":%d\r\n", n); err == nil && reply != want {
			err = fmt.Errorf("the reply is %q, want %q", reply, want)
		}
		if err != nil {
			s.failed <- err
			return
		}
		s.counted.Store(n)
		<-pace.C
	}
}

// calm waits until the guest is protected, and its client has had a reply from then on.
func (s *siege) calm(t *testing.T) *console.Guest {
	t.Helper()
	g, err := s.stage.AwaitProtected(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := s.counted.Load()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.counted.Load() <= before+1 {
		select {
		case err := <-s.failed:
			t.Fatalf("the guest's client: %v", err)
		case <-deadline.C:
			t.Fatal("the guest does not answer its client")
		case <-tick.C:
		}
	}
	return g
}

func (s *siege) dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	return s.stranger.Dial(ctx, network, address)
}

// twins are the primary's and the replica's process.
func twins(t *testing.T, g *console.Guest) (primary, replica console.Process) {
	t.Helper()
	for _, p := range g.Processes {
		switch p.Host {
		case g.Primary:
			primary = p
		case g.Replica:
			replica = p
		}
	}
	if primary.Address == "" || replica.Address == "" {
		t.Fatalf("the processes are %+v", g.Processes)
	}
	return primary, replica
}

// idle holds far more connections open than there is room for, on every port, and opens new ones as they are
// closed, while the roles are exchanged twice: that takes new checkpoint streams and Raft's word.
func (s *siege) idle(t *testing.T) {
	primary, replica := twins(t, s.calm(t))
	ports := []string{primary.Address, replica.Address}
	for _, name := range []string{"a", "b", "w"} {
		ports = append(ports, s.stage.Node(name).Config.ClusterAddress, s.stage.Node(name).Config.GossipAddress)
	}
	words := []string{"", "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00", string(noise(300)), "PXCP"}
	over := make(chan struct{})
	var crowd sync.WaitGroup
	defer crowd.Wait()
	defer close(over)
	var opened atomic.Int64
	hold := func(address, word string) {
		for {
			select {
			case <-over:
				return
			default:
			}
			c, err := s.dial("tcp4", address)
			if err != nil {
				continue // its backlog is full of us
			}
			opened.Add(1)
			_, _ = io.WriteString(c, word) // it may be closed already
			closed := make(chan struct{})
			go func() {
				_, _ = io.Copy(io.Discard, c)
				close(closed)
			}()
			select {
			case <-closed:
			case <-over:
			}
			c.Close()
			<-closed
		}
	}
	for _, address := range ports {
		for i := range 150 {
			crowd.Go(func() { hold(address, words[i%len(words)]) })
		}
	}
	for _, name := range []string{"a", "b", "w"} {
		udp, err := s.dial("udp4", s.stage.Node(name).Config.GossipAddress)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			_, _ = udp.Write(noise(10 * i))
		}
		udp.Close()
	}
	for range 2 {
		if err := s.stage.Switchover(s.ctx); err != nil {
			t.Fatal(err)
		}
		s.calm(t)
	}
	if opened.Load() < 1000 {
		t.Errorf("only %d connections were opened", opened.Load())
	}
	t.Logf("%d connections", opened.Load())
}

// turnedAway checks that a TLS client gets nothing at all.
func (s *siege) turnedAway(t *testing.T, address string, c *tls.Config) {
	t.Helper()
	conn, err := s.dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	client := tls.Client(conn, c)
	if client.HandshakeContext(s.ctx) != nil {
		return
	}
	// With TLS 1.3 the server's judgement comes after the client's handshake.
	_, _ = io.WriteString(client, "POST /who HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
	b, err := io.ReadAll(client)
	if len(b) > 0 {
		t.Errorf("%s (%v) answers %q", address, c.NextProtos, b)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s (%v) does not close the connection", address, c.NextProtos)
	}
}

func (s *siege) certificates(t *testing.T) {
	g := s.calm(t)
	primary, replica := twins(t, g)
	other := t.TempDir()
	if _, _, err := pki.Found(other, "a"); err != nil {
		t.Fatal(err)
	}
	foreign, err := pki.Load(other)
	if err != nil {
		t.Fatal(err)
	}
	// It does not mind who the others are.
	gullible := func(c *tls.Config) *tls.Config {
		c.InsecureSkipVerify, c.VerifyConnection = true, nil
		return c
	}
	for _, alpn := range []string{pki.ALPNRaft, pki.ALPNRPC} {
		for _, name := range []string{"a", "b", "w"} {
			address := s.stage.Node(name).Config.ClusterAddress
			s.turnedAway(t, address, gullible(foreign.ClientConfig("", alpn)))
			s.turnedAway(t, address, gullible(&tls.Config{NextProtos: []string{alpn}}))
		}
	}
	for _, p := range []console.Process{primary, replica} {
		s.turnedAway(t, p.Address, gullible(foreign.ClientConfig("", pki.ALPNStream)))
		s.turnedAway(t, p.Address, gullible(&tls.Config{NextProtos: []string{pki.ALPNStream}}))
		// The witness is a member, but sends no checkpoints.
		s.turnedAway(t, p.Address, s.identity(t, "w").ClientConfig(p.Host, pki.ALPNStream))
		// Members don't use the ports for other things either.
		s.turnedAway(t, p.Address, gullible(s.identity(t, "w").ClientConfig(p.Host, pki.ALPNRPC)))
	}
	// Whoever calls one member does not talk to another.
	conn, err := s.dial("tcp4", replica.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = tls.Client(conn, s.identity(t, g.Primary).ClientConfig(g.Primary, pki.ALPNStream)).HandshakeContext(s.ctx)
	if err == nil || !strings.Contains(err.Error(), g.Replica) {
		t.Errorf("%s passes for %s: %v", g.Replica, g.Primary, err)
	}
	// One host does not pass for the other, whatever it says in its stream.
	_, w := s.hello(t, g, g.Replica)
	if w == nil || !strings.Contains(w.Refused, fmt.Sprintf("the certificate says %q", g.Replica)) {
		t.Errorf("the answer to a false name is %+v", w)
	}
	if now := s.calm(t); now.Term != g.Term {
		t.Logf("term %d became %d", g.Term, now.Term)
	}
}

func (s *siege) identity(t *testing.T, name string) *pki.Identity {
	t.Helper()
	id, err := pki.Load(s.stage.Node(name).Config.PKIDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// thief is a checkpoint stream to the replica in the primary's name.
type thief struct {
	net.Conn
	buf    bytes.Buffer
	writer *checkpoint.Writer // into buf
	reader *checkpoint.Reader
}

// hello opens a stream to the replica, with the certificate of a host, and says that it is the primary's. nil:
// the replica has closed it without an answer.
func (s *siege) hello(t *testing.T, g *console.Guest, host string) (*thief, *checkpoint.Welcome) {
	t.Helper()
	_, replica := twins(t, g)
	conn, err := s.dial("tcp4", replica.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	x := &thief{Conn: tls.Client(conn, s.identity(t, host).ClientConfig(g.Replica, pki.ALPNStream))}
	x.writer, x.reader = checkpoint.NewWriter(&x.buf), checkpoint.NewReader(x.Conn, nil, checkpoint.DefaultLimits())
	a := g.Assignment
	hello := &checkpoint.Hello{
		Version: checkpoint.Version, Guest: a.Guest, Term: a.Term, Primary: a.Primary, Replica: a.Replica, Stream: 666,
		RAMPages: uint32(a.Spec.MemoryBytes / checkpoint.PageSize), Resume: true,
		Boot: checkpoint.BootDigest(ledger.Image(), nil, []byte(a.Spec.Cmdline)),
	}
	for _, d := range a.Spec.Disks {
		hello.DiskSizes = append(hello.DiskSizes, d.SizeBytes)
	}
	if err := x.writer.Write(hello); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Write(x.take()); err != nil {
		t.Fatalf("say hello: %v", err)
	}
	for {
		m, err := x.reader.Next()
		if err != nil {
			return x, nil
		}
		if w, ok := m.(*checkpoint.Welcome); ok {
			return x, w
		}
		if _, ok := m.(*checkpoint.HigherTerm); !ok {
			t.Fatalf("the answer to Hello is %+v", m)
		}
	}
}

// take is what the writer has written since.
func (x *thief) take() []byte {
	b := bytes.Clone(x.buf.Bytes())
	x.buf.Reset()
	return b
}

// frame has its checksums put right after a change of its header.
func frame(b []byte, change func(header []byte)) []byte {
	change(b)
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(b[:24], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// streams sends what no primary sends, in the primary's own name: nothing of it is acknowledged, and nothing
// of it outlasts the stream.
func (s *siege) streams(t *testing.T) {
	epoch := func(t *testing.T, x *thief, after checkpoint.Digest, e checkpoint.Epoch) []byte {
		enc := checkpoint.NewEncoder(checkpoint.EncoderConfig{CachePages: 16})
		enc.Reset(after)
		e.Pages, e.Data, e.State = []uint32{1, 2}, noise(2*checkpoint.PageSize), noise(5000)
		if _, err := enc.Encode(x.writer, &e); err != nil {
			t.Fatal(err)
		}
		return x.take()
	}
	heartbeat := func(t *testing.T, x *thief, term pact.Term) []byte {
		if err := x.writer.Write(&checkpoint.Heartbeat{Term: term, Sequence: 1}); err != nil {
			t.Fatal(err)
		}
		return x.take()
	}
	for name, f := range map[string]struct {
		say   string // in the replica's log
		forge func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte
	}{
		"truncated": {"ends inside a frame", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			b := epoch(t, x, w.LastDigest, checkpoint.Epoch{Number: w.LastEpoch + 1, Term: term})
			return b[:len(b)-20]
		}},
		"corrupted": {"frame payload checksum mismatch", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			b := epoch(t, x, w.LastDigest, checkpoint.Epoch{Number: w.LastEpoch + 1, Term: term})
			b[len(b)/2] ^= 1
			return b
		}},
		"replayed": {"frame 1 where 2 was due", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			b := heartbeat(t, x, term)
			return append(b, b...)
		}},
		"beyond all limits": {"frame of 2147483648 bytes", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			return frame(heartbeat(t, x, term), func(h []byte) { binary.LittleEndian.PutUint32(h[8:], 1<<31) })
		}},
		"of another version": {"run the same release on both hosts", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			return frame(heartbeat(t, x, term), func(h []byte) { h[5]++ })
		}},
		"an old epoch again": {"was due", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			return epoch(t, x, w.LastDigest, checkpoint.Epoch{Number: w.LastEpoch, Term: term})
		}},
		"an epoch of another chain": {"does not follow the epoch", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			return epoch(t, x, checkpoint.Digest{1}, checkpoint.Epoch{Number: w.LastEpoch + 1, Term: term})
		}},
		"an epoch whose state is none": {"machine state can't be restored", func(t *testing.T, x *thief, w *checkpoint.Welcome, term pact.Term) []byte {
			return epoch(t, x, w.LastDigest, checkpoint.Epoch{Number: w.LastEpoch + 1, Term: term})
		}},
		"noise": {"no frame starts here", func(*testing.T, *thief, *checkpoint.Welcome, pact.Term) []byte { return noise(100_000) }},
	} {
		t.Run(name, func(t *testing.T) {
			// The primary takes its stream back at once, sometimes before the forgery is there.
			for try := 1; ; try++ {
				g := s.calm(t)
				_, replica := twins(t, g)
				said := s.log(t, replica)
				if x, w := s.hello(t, g, g.Primary); w != nil && w.Refused == "" && w.LastEpoch != 0 {
					_, _ = x.Write(f.forge(t, x, w, g.Term)) // it may be closed in the middle
					x.end(t)
				}
				now := s.calm(t)
				if strings.Contains(s.log(t, replica)[len(said):], f.say) {
					t.Logf("term %d, then %d; primary %s, then %s", g.Term, now.Term, g.Primary, now.Primary)
					return
				}
				if try == 20 {
					t.Fatalf("the replica has not said %q", f.say)
				}
			}
		})
	}
}

// end waits until the replica has closed the stream. It must not have acknowledged anything.
func (x *thief) end(t *testing.T) {
	t.Helper()
	if err := x.Conn.(*tls.Conn).CloseWrite(); err != nil {
		return
	}
	for {
		m, err := x.reader.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the replica goes on with the stream")
		}
		if err != nil {
			return
		}
		if ack, ok := m.(*checkpoint.Ack); ok {
			t.Fatalf("epoch %d was acknowledged", ack.Epoch)
		}
	}
}

// log is all that a process has written into its log.
func (s *siege) log(t *testing.T, p console.Process) string {
	t.Helper()
	name := fmt.Sprintf("%s-%s.log", "ledger", p.Incarnation)
	b, err := os.ReadFile(filepath.Join(s.stage.Node(p.Host).Config.ProcessDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// guests makes guests that can't run: their operator learns why, and the one that runs goes on.
func (s *siege) guests(t *testing.T) {
	s.calm(t)
	a := s.stage.Node("a")
	kernel := filepath.Join(a.Dir, "kernel")
	if err := os.WriteFile(kernel, noise(50_000), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := a.Config.GuestDir("disk")
	if err := errors.Join(os.MkdirAll(disk, 0o700), os.WriteFile(filepath.Join(disk, "disk0.raw"), make([]byte, 2<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	builtin := []string{"--kernel", "builtin:ledger"}
	for name, tc := range map[string]struct {
		args []string
		say  []string
	}{
		"kernel":  {[]string{"--kernel", kernel}, []string{kernel, "neither an ELF image nor a Linux bzImage"}},
		"missing": {[]string{"--kernel", kernel + "2"}, []string{kernel + "2", "no such file", "every host"}},
		"initrd":  {append(builtin, "--initrd", kernel+"2"), []string{kernel + "2", "no such file", "every host"}},
		"bridge":  {append(builtin, "--net", "bridge=nowhere"), []string{`no bridge "nowhere"`, "[bridges]"}},
		"disk":    {append(builtin, "--disk", "size=1M"), []string{"disk0.raw", "2097152", "1048576", "put a file of that size there"}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := a.Command(s.ctx, "", append([]string{"guest", "create", name, "--hosts", "a,b", "--start"}, tc.args...)...); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(s.ctx, patience)
			defer cancel()
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				g, err := a.Client().Guest(ctx, name)
				if err != nil {
					t.Fatal(err)
				}
				missing := ""
				for _, say := range tc.say {
					if !strings.Contains(g.Detail, say) {
						missing = say
					}
				}
				if missing == "" {
					break
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					t.Fatalf("%q does not say %q", g.Detail, missing)
				}
			}
			if _, err := a.Command(s.ctx, "", "guest", "stop", name, "--force", "--yes"); err != nil {
				t.Error(err)
			}
			if _, err := a.Command(s.ctx, "", "guest", "delete", name, "--yes"); err != nil {
				t.Error(err)
			}
		})
	}
	s.calm(t)
}
