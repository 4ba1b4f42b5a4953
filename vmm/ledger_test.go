package vmm

import (
	"bytes"
	"encoding/hex"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap/taptest"
)

// transcript is an output that keeps what the guest says.
type transcript struct {
	mu      sync.Mutex
	console []byte
	frames  [][]byte
}

func (o *transcript) Transmit(_ int, frame []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.frames = append(o.frames, bytes.Clone(frame))
}
func (o *transcript) Console(p []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.console = append(o.console, p...)
}
func (o *transcript) Agent([]byte)                       {}
func (o *transcript) DiskWritten(int, int64, []byte)     {}
func (o *transcript) DiskZeroed(int, int64, int64, bool) {}
func (o *transcript) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.console)
}

// file is a disk in a file.
type file struct{ *os.File }

func (f file) Size() int64 {
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0
	}
	return n
}

func disk(t *testing.T, size int64) file {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return file{f}
}

// answered says whether the guest has answered an ARP request.
func (o *transcript) answered() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range o.frames {
		if f = f[platform.FrameHeaderBytes:]; len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 2 && bytes.Equal(f[:6], askerMAC) {
			return true
		}
	}
	return false
}

var (
	askerMAC = []byte{2, 0, 0, 0, 0, 9}
	guestMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	// whoHas asks for 10.0.0.2 on behalf of 10.0.0.9, after the header that frames have.
	whoHas = func() []byte {
		f, err := hex.DecodeString("ffffffffffff" + "020000000009" + "0806" + "0001080006040001" +
			"020000000009" + "0a000009" + "000000000000" + "0a000002")
		if err != nil {
			panic(err)
		}
		return taptest.Frame(f)
	}()
)

// wire is a NIC's tap and what is at its other end.
func wire(t *testing.T) (tap *taptest.Tap, far *os.File) {
	t.Helper()
	tap = taptest.New(t, 1)
	return tap, tap.Far[0]
}

// A guest with a kernel of its own boots from its ELF image with all devices, answers on its
// network, is captured, and answers again in another machine.
func TestLedgerBootsAndMoves(t *testing.T) {
	requireKVM(t)
	out := &transcript{}
	paused := make(chan error, 1)
	c := NewCapture(1 << 15)
	d := disk(t, 64<<20)
	tap, far := wire(t)
	cfg := Config{MemoryBytes: 64 << 20, Kernel: ledger.Image(), Cmdline: "ip=10.0.0.2/24", Output: out,
		Disks: []DiskConfig{{File: d}}, Nets: []NetConfig{{Tap: tap, MAC: guestMAC}},
		OnPause: func(p *Pause) bool { paused <- p.Capture(c); return false }}
	m := newMachine(t, cfg)
	defer func() { t.Logf("console:\n%s", out.text()) }()
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	if err := m.Boot(); err == nil {
		t.Error("a running machine boots")
	}
	eventually(t, "the guest is ready", func() bool { return strings.Contains(out.text(), "ledger: ready") })
	if _, err := far.Write(whoHas); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest answers", out.answered)
	m.RequestPause()
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	ram, state := bytes.Clone(m.RAM().Bytes()), bytes.Clone(c.State)
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}

	after := &transcript{}
	tap, far = wire(t)
	cfg.Kernel, cfg.Output, cfg.Nets, cfg.OnPause = nil, after, []NetConfig{{Tap: tap, MAC: guestMAC}}, nil
	other := newMachine(t, cfg)
	copy(other.RAM().Bytes(), ram)
	for range 2 {
		if err := other.LoadState(state); err != nil {
			t.Fatal(err)
		}
	}
	heard := make(chan int, 10)
	other.OnReceive(func(_ int, frame []byte) { heard <- len(frame) })
	start(t, other)
	if _, err := far.Write(whoHas); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest answers in its new machine", after.answered)
	if n := <-heard; n != len(whoHas) {
		t.Errorf("the observer heard of %d bytes", n)
	}
	if err := other.Emit(0, whoHas); err != nil {
		t.Error(err)
	}
	if n, err := far.Read(make([]byte, 2000)); err != nil || n != len(whoHas) {
		t.Errorf("the wire carries %d bytes, %v", n, err)
	}
	if err := other.Emit(1, whoHas); err == nil {
		t.Error("a NIC that is not there sends")
	}
}

// A frame that arrives while the guest stands still changes nothing in it, and is answered when it
// goes on. A stopped machine takes none.
func TestFramesInAStay(t *testing.T) {
	requireKVM(t)
	out := &transcript{}
	staying := make(chan struct{})
	tap, far := wire(t)
	m := newMachine(t, Config{MemoryBytes: 64 << 20, Kernel: ledger.Image(), Cmdline: "ip=10.0.0.2/24", Output: out,
		Disks: []DiskConfig{{File: disk(t, 64<<20)}}, Nets: []NetConfig{{Tap: tap, MAC: guestMAC}},
		OnPause: func(*Pause) bool { close(staying); return false }})
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	heard := make(chan int, 10)
	m.OnReceive(func(_ int, frame []byte) { heard <- len(frame) })
	start(t, m)
	eventually(t, "the guest is ready", func() bool { return strings.Contains(out.text(), "ledger: ready") })
	m.RequestPause()
	<-staying
	m.Lock() // until the devices have been suspended
	ram := bytes.Clone(m.RAM().Bytes())
	m.Unlock()
	if _, err := far.Write(whoHas); err != nil {
		t.Fatal(err)
	}
	if n := <-heard; n != len(whoHas) {
		t.Errorf("the observer heard of %d bytes", n)
	}
	m.Lock()
	same := bytes.Equal(ram, m.RAM().Bytes())
	m.Unlock()
	if !same || out.answered() {
		t.Fatal("a frame has reached the guest in a stay")
	}
	m.Resume()
	eventually(t, "the guest answers when it goes on", out.answered)
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Write(whoHas); err != nil {
		t.Fatal(err)
	}
	if n, err := tap.Files()[0].Read(make([]byte, 2000)); err != nil || n != len(whoHas) || len(heard) != 0 {
		t.Errorf("a stopped machine takes frames: %d bytes left in the tap, %v", n, err)
	}
}
