// Package emulator runs lab machines: QEMU under software emulation, with an AMD processor whose virtualization
// works, a kernel, an initial RAM disk with the agent in it, and the control channel to that.
package emulator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/lab/control"
)

// Spec is a machine.
type Spec struct {
	Name      string
	Kernel    string // image
	Initrd    string
	CPUs      int // two are slower than one, and the clock becomes another: the TSC is then not trusted
	MemoryMiB int
	Disks     []Disk
	Cards     []Card
	Console   string // file that the serial console is added to
}

// Disk is a disk. The machine's end is the emulator's: what was not flushed may be lost, as on a real power cut.
type Disk struct {
	File, Format string
	Serial       string
	ReadOnly     bool
}

// Card is a network card on a tap, or in a network of the emulator's own where Tap is nil.
type Card struct {
	Tap *os.File
	MAC string
}

// Cmdline is the machine's kernel command line. With SVM guests QEMU 7.2 now and then leaves a CPU halted although an
// interrupt is pending in its LAPIC, and the machine would sleep for ever: with nohz=off highres=off a tick that
// comes again by itself wakes it.
const Cmdline = "console=ttyS0 panic=-1 mitigations=off quiet transparent_hugepage=always nohz=off highres=off rdinit=/init"

// BootLimit is how long a machine may take from power-on to the agent's first word. It takes 5 to 10 s on a
// machine that has nothing else to do.
const BootLimit = 90 * time.Second

// ErrHung says that a machine's start came to nothing within BootLimit.
var ErrHung = errors.New("the emulated machine hangs in its start")

// Machine is a machine that has power.
type Machine struct {
	Name string
	// Booted is how long its start took.
	Booted time.Duration

	cmd  *exec.Cmd
	conn *control.Conn
	wire net.Conn
	gone chan struct{} // closed when the emulator has ended and all commands have been told

	mu   sync.Mutex
	next uint64
	jobs map[uint64]*Process // nil: the machine is gone
}

// starter is a thread that lives as long as this program: the kernel kills a child when the thread has ended
// that made it.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start switches a machine on and waits until its agent is ready. ctx bounds the start, not the machine's life.
func Start(ctx context.Context, s Spec) (*Machine, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	wire, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	m := &Machine{Name: s.Name, wire: wire, conn: control.NewConn(wire), gone: make(chan struct{}), jobs: make(map[uint64]*Process)}
	m.cmd = exec.Command("qemu-system-x86_64", s.arguments()...)
	m.cmd.ExtraFiles = []*os.File{theirs}
	for _, c := range s.Cards {
		if c.Tap != nil {
			m.cmd.ExtraFiles = append(m.cmd.ExtraFiles, c.Tap)
		}
	}
	var complaints strings.Builder
	m.cmd.Stderr = &complaints
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	began := time.Now()
	failed := make(chan error, 1)
	starter() <- func() { failed <- m.cmd.Start() }
	if err := <-failed; err != nil {
		wire.Close()
		return nil, fmt.Errorf("start the emulator of %s: %w", s.Name, err)
	}
	// While it is open here too, the channel would outlive an emulator that is killed below, and listen with it.
	theirs.Close()
	ready := make(chan error, 1)
	go m.listen(ready)
	select {
	case err = <-ready:
	case <-time.After(BootLimit):
		err = fmt.Errorf("%w (%s)", ErrHung, BootLimit)
	case <-ctx.Done():
		err = ctx.Err()
	}
	m.Booted = time.Since(began)
	if err != nil {
		m.PowerCut()
		return nil, fmt.Errorf("start %s: %w %s", s.Name, err, complaints.String())
	}
	return m, nil
}

func (s Spec) arguments() []string {
	args := []string{
		"-name", s.Name, "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "EPYC,+svm,+npt",
		"-m", strconv.Itoa(s.MemoryMiB), "-smp", strconv.Itoa(max(1, s.CPUs)),
		"-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-kernel", s.Kernel, "-initrd", s.Initrd, "-append", Cmdline,
		"-chardev", "file,id=console,path=" + s.Console + ",append=on", "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=control,fd=3",
		"-device", "virtserialport,chardev=control,name=" + control.PortName,
		"-device", "virtio-rng-pci",
	}
	for i, d := range s.Disks {
		readonly := "off"
		if d.ReadOnly {
			readonly = "on"
		}
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,file=%s,format=%s,cache=writeback,readonly=%s", i, d.File, d.Format, readonly),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%s", i, d.Serial))
	}
	fd := 4
	for i, c := range s.Cards {
		backend := fmt.Sprintf("user,id=net%d", i)
		if c.Tap != nil {
			backend = fmt.Sprintf("tap,id=net%d,fd=%d", i, fd)
			fd++
		}
		args = append(args, "-netdev", backend, "-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=%s,romfile=", i, c.MAC))
	}
	return args
}

// listen serves the control channel until the emulator's end.
func (m *Machine) listen(ready chan<- error) {
	first := true
	for {
		msg, err := m.conn.Receive()
		if err != nil {
			break
		}
		if msg.Kind == control.Ready {
			first = false
			if msg.Error != "" {
				ready <- errors.New(msg.Error)
			} else {
				ready <- nil
			}
			continue
		}
		m.mu.Lock()
		p := m.jobs[msg.ID]
		m.mu.Unlock()
		if p == nil {
			continue
		}
		switch msg.Kind {
		case control.Output:
			p.out.Put(msg.Data)
		case control.Complain:
			p.errs.Put(msg.Data)
		case control.Exit:
			p.end(msg.Code, msg.Error)
			m.mu.Lock()
			delete(m.jobs, msg.ID)
			m.mu.Unlock()
		}
	}
	m.wire.Close()
	// The agent is gone; so is everything else, save for an emulator that was not asked to end.
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	if first {
		ready <- fmt.Errorf("the emulator has ended: %s", m.cmd.ProcessState)
	}
	m.mu.Lock()
	jobs := m.jobs
	m.jobs = nil
	m.mu.Unlock()
	for _, p := range jobs {
		p.end(-1, ErrPower.Error())
	}
	close(m.gone)
}

// PowerCut pulls the plug. It returns when the emulator is gone.
func (m *Machine) PowerCut() {
	_ = m.cmd.Process.Kill()
	<-m.gone
}

// PowerOff lets the machine write everything to its disks and switch itself off.
func (m *Machine) PowerOff(ctx context.Context) error {
	if err := m.send(&control.Message{Kind: control.Start, Command: &control.Command{Argv: []string{control.PowerOff}}}); err != nil {
		return err
	}
	select {
	case <-m.gone:
		return nil
	case <-ctx.Done():
		m.PowerCut()
		return fmt.Errorf("%s did not switch itself off: %w", m.Name, ctx.Err())
	}
}

// Freeze stops the machine as if it hung; Thaw lets it go on. Its clock goes on meanwhile.
func (m *Machine) Freeze() error { return m.cmd.Process.Signal(unix.SIGSTOP) }

// Thaw is described at Freeze.
func (m *Machine) Thaw() error { return m.cmd.Process.Signal(unix.SIGCONT) }

// Gone is closed when the machine has no power any more.
func (m *Machine) Gone() <-chan struct{} { return m.gone }

// PID is the emulator's.
func (m *Machine) PID() int { return m.cmd.Process.Pid }

func (m *Machine) send(msg *control.Message) error {
	if err := m.conn.Send(msg); err != nil {
		return fmt.Errorf("%s: %w: %w", m.Name, ErrPower, err)
	}
	return nil
}
