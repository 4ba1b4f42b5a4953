package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab/netns"
)

// Machine is a machine that is not emulated: a network namespace of this one, on all networks. Clients and the
// witness are such.
type Machine struct {
	Name   string
	Number byte // last byte of its addresses
	Dir    string
	// Root is the directory tree in which Command runs programs, a Debian one perhaps; empty: this machine's own.
	Root string

	lab *Lab
	ns  *netns.Namespace
}

// Client is the machine of that name; the first call makes it.
func (l *Lab) Client(name string) *Machine {
	m, err := l.addMachine(name)
	if err != nil {
		l.fatal(err)
	}
	return m
}

func (l *Lab) addMachine(name string) (*Machine, error) {
	l.mu.Lock()
	m, ok := l.machines[name]
	number := byte(firstMachine + len(l.machines))
	l.mu.Unlock()
	if ok {
		return m, nil
	}
	m = &Machine{Name: name, Number: number, Dir: filepath.Join(l.Dir, name), lab: l}
	if err := os.Mkdir(m.Dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if m.ns, err = netns.New(name); err != nil {
		return nil, err
	}
	l.onClose(m.ns.Close)
	for _, n := range Networks {
		if err := l.switches.Do(func() error { return addCable(m.cable(n), n, m.ns, number) }); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	l.machines[name] = m
	l.mu.Unlock()
	return m, nil
}

func (m *Machine) cable(n Network) string { return fmt.Sprintf("machine%d-%d", m.Number, n.index()) }

// Address is the machine's on a network.
func (m *Machine) Address(n Network) net.IP { return n.Address(m.Number) }

// Command is a program to be run on the machine, in its Root. It and all that it has started end with ctx, and with
// the lab's process.
func (m *Machine) Command(ctx context.Context, argv ...string) *exec.Cmd {
	// A process namespace ends as a whole; the shell mounts what a program expects where it has a root of its own.
	enter := `mount -t proc proc "$0/proc" && exec "$@"`
	root := "/"
	words := argv
	if m.Root != "" {
		root = m.Root
		enter = `mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t sysfs sysfs "$0/sys" && exec "$@"`
		words = append([]string{"chroot", m.Root}, argv...)
	}
	args := append([]string{fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), m.ns.FD),
		"unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", enter, root}, words...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Dial opens a connection from the machine's network.
func (m *Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return m.ns.Dial(ctx, network, address)
}

// Do runs f on a thread in the machine's network. f must not wait: whatever else is done there waits for it.
func (m *Machine) Do(f func() error) error { return m.ns.Do(f) }

// Cut makes the machine's cable to a network carry nothing until Mend.
func (m *Machine) Cut(n Network) error {
	return m.lab.switches.Do(func() error { return setMaster(m.cable(n), n, false) })
}

// Mend ends what Cut began.
func (m *Machine) Mend(n Network) error {
	return m.lab.switches.Do(func() error { return setMaster(m.cable(n), n, true) })
}
