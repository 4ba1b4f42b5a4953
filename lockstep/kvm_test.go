package lockstep

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap/taptest"
)

var (
	guestMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	// whoHas asks for 10.0.0.2 on behalf of 10.0.0.9: the smallest request that a guest answers.
	whoHas, _ = hex.DecodeString(strings.Repeat("00", platform.FrameHeaderBytes) + "ffffffffffff" + "020000000009" + "0806" + "0001080006040001" +
		"020000000009" + "0a000009" + "000000000000" + "0a000002")
)

const ledgerBytes = 64 << 20

// realGuest is our own guest in a real machine, driven by an Engine, with a NIC whose wire is in the
// test's hands and a stream over TCP and TLS.
type realGuest struct {
	e    *Engine
	m    *vmm.Machine
	h    *fakeHost
	r    *fakeReplica
	wire *os.File
	cfg  vmm.Config

	mu      sync.Mutex
	console []byte
}

type diskFile struct{ *os.File }

func (f diskFile) Size() int64 {
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0
	}
	return n
}

func tapPair(t testing.TB) (tap *taptest.Tap, far *os.File) {
	tap = taptest.New(t, 1)
	return tap, tap.Far[0]
}

func newRealGuest(t testing.TB, diskBytes int) *realGuest {
	if err := kvm.Check(); err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	g := &realGuest{h: newFakeHost(t)}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(diskBytes)); err != nil {
		t.Fatal(err)
	}
	g.r = newFakeReplica(t, ledgerBytes/checkpoint.PageSize, &fakeDisk{data: make([]byte, diskBytes)})
	var tap *taptest.Tap
	tap, g.wire = tapPair(t)
	late := &lateOutput{}
	g.cfg = vmm.Config{
		MemoryBytes: ledgerBytes, CPUs: 1, Kernel: ledger.Image(), Cmdline: "ip=10.0.0.2/24", Output: late,
		Disks: []vmm.DiskConfig{{File: diskFile{f}}}, Nets: []vmm.NetConfig{{Tap: tap, MAC: guestMAC}},
		OnPause: func(p *vmm.Pause) bool { return late.e.OnPause(p) },
	}
	if g.m, err = vmm.New(g.cfg); err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{
		Guest: "g", Self: partyA, Machine: g.m, Host: g.h, Dial: g.r.listen(t), Disks: []Disk{diskFile{f}},
		Console: func(p []byte) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.console = append(g.console, p...)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	late.Engine, late.e = e, e
	g.e, g.h.e = e, e
	t.Cleanup(func() {
		e.Close()
		g.r.get(func() {
			if g.r.conn != nil {
				g.r.conn.Close()
			}
		})
		if err := g.m.Close(); err != nil {
			t.Errorf("close the machine: %v", err)
		}
	})
	return g
}

// lateOutput is the machine's output before there is an Engine.
type lateOutput struct {
	*Engine
	e *Engine
}

// listen lets the replica be called over TCP and TLS.
func (r *fakeReplica) listen(t testing.TB) func(context.Context, link.Peer) (net.Conn, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "b"}, DNSNames: []string{"b"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "b"}}
	return func(ctx context.Context, _ link.Peer) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
}

// eventually waits for something that other threads bring about.
func eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !fn() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *realGuest) boot(t testing.TB) {
	t.Helper()
	if err := g.e.Begin(Start{Assignment: g.h.now()}); err != nil {
		t.Fatal(err)
	}
	if err := g.m.Boot(); err != nil {
		t.Fatal(err)
	}
	if err := g.m.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest is ready", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return strings.Contains(string(g.console), "ledger: ready")
	})
}

// ask sends a request and waits for the answer.
func ask(t testing.TB, wire *os.File) {
	t.Helper()
	if _, err := wire.Write(whoHas); err != nil {
		t.Fatal(err)
	}
	if err := wire.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for {
		n, err := wire.Read(buf)
		if err != nil {
			t.Fatalf("wait for the guest's answer: %v", err)
		}
		f, asked := buf[platform.FrameHeaderBytes:], whoHas[platform.FrameHeaderBytes:]
		if n >= platform.FrameHeaderBytes+42 && f[12] == 8 && f[13] == 6 && f[21] == 2 && bytes.Equal(f[:6], asked[6:12]) {
			return
		}
	}
}

func (g *realGuest) status() link.Status {
	var s link.Status
	g.e.Status(&s)
	return s
}

// A real guest is protected while it answers; then its image runs in another machine.
func TestRealGuest(t *testing.T) {
	g := newRealGuest(t, 16<<20)
	g.boot(t)
	ask(t, g.wire)
	g.e.SetPeer(link.Peer{Party: partyB})
	eventually(t, "protected", func() bool {
		ask(t, g.wire)
		return g.status().Mode == "protected"
	})
	for range 50 {
		ask(t, g.wire)
	}
	g.e.Switchover()
	select {
	case <-g.e.Ended():
	case <-time.After(20 * time.Second):
		t.Fatalf("no switchover: %+v", g.status())
	}
	a := g.h.now()
	if a.Primary != partyB || a.Base != g.status().EpochCaptured {
		t.Fatalf("assignment %+v", a)
	}
	// What both sides hold is the same, to the byte.
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	if !bytes.Equal(g.r.ram.Bytes(), g.m.RAM().Bytes()) {
		differ := 0
		for i := range g.m.RAM().Pages() {
			if !bytes.Equal(g.r.ram.Page(i), g.m.RAM().Page(i)) {
				differ++
			}
		}
		t.Errorf("%d pages differ from the replica's after the final epoch", differ)
	}
	tap, far := tapPair(t)
	cfg := g.cfg
	cfg.Kernel, cfg.OnPause, cfg.Output, cfg.Nets = nil, nil, &direct{far: tap.Files()[0]}, []vmm.NetConfig{{Tap: tap, MAC: guestMAC}}
	other, err := vmm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	copy(other.RAM().Bytes(), g.r.ram.Bytes())
	if err := other.LoadState([]byte(g.r.state)); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		ask(t, far)
	}
}

// direct lets everything out.
type direct struct{ far *os.File }

func (d *direct) Transmit(_ int, frame []byte)       { d.far.Write(frame) }
func (d *direct) Console([]byte)                     {}
func (d *direct) Agent([]byte)                       {}
func (d *direct) DiskWritten(int, int64, []byte)     {}
func (d *direct) DiskZeroed(int, int64, int64, bool) {}

// BenchmarkAnswer measures what protection adds to the smallest request's latency (P3): run it with
// -bench . -run NONE and compare solo with protected of the same run.
func BenchmarkAnswer(b *testing.B) {
	for _, mode := range []string{"solo", "protected"} {
		b.Run(mode, func(b *testing.B) {
			g := newRealGuest(b, 1<<20)
			g.boot(b)
			if mode == "protected" {
				g.e.SetPeer(link.Peer{Party: partyB})
				eventually(b, "protected", func() bool { return g.status().Mode == "protected" })
			}
			took := make([]time.Duration, 0, b.N)
			for b.Loop() {
				start := time.Now()
				ask(b, g.wire)
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			for name, s := range g.status().TimingsUs {
				b.Logf("%s %-8s p50 %7.1f p90 %7.1f p99 %8.1f (%d)", mode, name, s.P50, s.P90, s.P99, s.Samples)
			}
		})
	}
}
