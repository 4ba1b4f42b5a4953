package ledger_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap"
)

type diskFile struct{ *os.File }

func (d diskFile) Size() int64 {
	st, err := d.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

// passing lets out all that the guest says.
type passing struct {
	console *watcher
	machine *vmm.Machine // set before the guest runs
}

func (o *passing) Transmit(nic int, frame []byte) {
	_ = o.machine.Emit(nic, frame) // a frame that the tap does not take is lost, as on any network
}
func (o *passing) Console(p []byte)                   { o.console.Write(p) }
func (o *passing) Agent([]byte)                       {}
func (o *passing) DiskWritten(int, int64, []byte)     {}
func (o *passing) DiskZeroed(int, int64, int64, bool) {}

type guest struct {
	machine *vmm.Machine
	console *watcher
	power   chan platform.PowerEvent
	stop    func()
}

// boot starts Ledger on a machine of its own and waits until it serves.
func boot(t *testing.T, disk, options string) *guest {
	t.Helper()
	g := build(t, disk, options, nil)
	if err := g.machine.Boot(); err != nil {
		t.Fatal(err)
	}
	if err := g.machine.Start(); err != nil {
		t.Fatal(err)
	}
	g.console.wait(t, "ledger: ready")
	return g
}

// build makes the machine without starting anything.
func build(t *testing.T, disk, options string, onPause func(*vmm.Pause) bool) *guest {
	t.Helper()
	g := &guest{console: newWatcher(), power: make(chan platform.PowerEvent, 1)}
	nic, err := tap.Open(tapName, tap.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out := &passing{console: g.console}
	config := vmm.Config{
		MemoryBytes: 64 << 20,
		CPUs:        1,
		Kernel:      ledger.Image(),
		Cmdline:     "ip=" + guestAddress + "/24 gw=" + hostAddress + " " + options,
		Nets:        []vmm.NetConfig{{Tap: nic, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 5}}},
		Output:      out,
		OnPause:     onPause,
		OnPower: func(e platform.PowerEvent) {
			select {
			case g.power <- e:
			default:
			}
		},
	}
	var file *os.File
	if disk != "" {
		if file, err = os.OpenFile(disk, os.O_RDWR, 0); err != nil {
			t.Fatal(err)
		}
		config.Disks = []vmm.DiskConfig{{File: diskFile{file}}}
	}
	if g.machine, err = vmm.New(config); err != nil {
		t.Fatal(err)
	}
	out.machine = g.machine
	g.stop = sync.OnceFunc(func() {
		if err := g.machine.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		if err := g.machine.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		nic.Close()
		if file != nil {
			file.Close()
		}
	})
	t.Cleanup(g.stop)
	return g
}

// talk sends inline requests over one connection and returns one line of reply for each.
func talk(t *testing.T, requests ...string) (replies []string) {
	t.Helper()
	c, err := net.DialTimeout("tcp4", guestAddress+":6379", patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	r := bufio.NewReader(c)
	for _, q := range requests {
		if _, err := fmt.Fprintf(c, "%s\r\n", q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		line, err := r.ReadString('\n')
		if err == nil && strings.HasPrefix(line, "$") && line != "$-1\r\n" {
			line, err = r.ReadString('\n')
		}
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		replies = append(replies, strings.TrimRight(line, "\r\n"))
	}
	return replies
}

func expectReplies(t *testing.T, pairs ...string) {
	t.Helper()
	var ask []string
	for i := 0; i < len(pairs); i += 2 {
		ask = append(ask, pairs[i])
	}
	for i, got := range talk(t, ask...) {
		if got != pairs[2*i+1] {
			t.Errorf("%s: %q, want %q", ask[i], got, pairs[2*i+1])
		}
	}
}

func needKVM(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	f.Close()
}

func TestMachine(t *testing.T) {
	needKVM(t)
	network(t)
	disk := emptyDisk(t, 16<<20)
	g := boot(t, disk, "")
	expectReplies(t, "PING", "+PONG", "SET a hello", "+OK", "GET a", "hello", "GET b", "$-1", "INCR n", ":1")
	g.stop()

	g = boot(t, disk, "") // a cold start after a power cut
	expectReplies(t, "GET a", "hello", "INCR n", ":2", "DBSIZE", ":2")

	// Bulk both ways, and the timer: LEDGER.TIME goes on.
	value := strings.Repeat("0123456789abcdef", 4096)
	expectReplies(t, "INCR n", ":3")
	c, err := net.DialTimeout("tcp4", guestAddress+":6379", patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n%s\r\n*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n", len(value), value)
	want := fmt.Sprintf("+OK\r\n$%d\r\n%s\r\n", len(value), value)
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		k, err := c.Read(got[n:])
		if n += k; err != nil {
			t.Fatalf("%d of %d bytes of a bulk reply: %v", n, len(got), err)
		}
	}
	if string(got) != want {
		t.Error("64 KiB came back changed")
	}

	expectReplies(t, "LEDGER.POWEROFF", "+OK")
	select {
	case e := <-g.power:
		if e != platform.PowerOff {
			t.Errorf("LEDGER.POWEROFF: %v", e)
		}
	case <-time.After(patience):
		t.Error("LEDGER.POWEROFF did nothing")
	}
}

func TestMachineBenchmark(t *testing.T) {
	needKVM(t)
	needTools(t, "redis-benchmark", "redis-cli")
	network(t)
	boot(t, emptyDisk(t, 64<<20), "")
	benchmark(t, "set,get,incr", "-n", "20000", "-c", "50", "-P", "1")
	benchmark(t, "get", "-n", "1000", "-c", "20", "-d", "20000")
}

func TestMachineWithoutDisk(t *testing.T) {
	needKVM(t)
	network(t)
	g := boot(t, "", "")
	if !strings.Contains(g.console.String(), "no disk") {
		t.Errorf("the console does not tell that there is no disk: %q", g.console)
	}
	expectReplies(t, "PING", "+PONG", "SET a 1", "-ERR there is no usable journal disk: writes are refused")
	g.stop()
	boot(t, "", "volatile=1")
	expectReplies(t, "SET a 1", "+OK", "GET a", "1")
}
