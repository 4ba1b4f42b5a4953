package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab/netns"
)

// KeeperCommand are the arguments with which this program runs Keep. The program sets it.
var KeeperCommand []string

// Program is this program's file, for running its commands on machines. It stays the same even if a
// newer build takes its place meanwhile. A test sets it to the program that it tests.
var Program = "/proc/self/exe"

// Lab is the machines and networks of a session.
type Lab struct {
	// Dir holds one directory for each machine.
	Dir string

	clients  *netns.Namespace
	machines []*Machine
}

// New makes the networks, and the clients' place on the LAN. It must run in a session. dir must be
// short: it holds sockets, whose paths have room for 107 bytes.
func New(dir string) (*Lab, error) {
	if !InSession() {
		return nil, errors.New("a lab needs a session of its own (lab.Isolate)")
	}
	if err := settle(); err != nil {
		return nil, err
	}
	if err := netns.Prepare(); err != nil {
		return nil, err
	}
	if err := makeSwitches(); err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir}
	var err error
	if l.clients, err = netns.New("clients"); err != nil {
		return nil, err
	}
	if _, err := plug(LAN, l.clients, 100, false); err != nil {
		return nil, err
	}
	return l, nil
}

// AddMachine gives the lab a machine with cables to these networks. On the LAN it has the bridge br0.
// It is off.
func (l *Lab) AddMachine(name string, number byte, networks ...Network) (*Machine, error) {
	m := &Machine{Name: name, Number: number, Dir: filepath.Join(l.Dir, name), lab: l}
	if err := os.Mkdir(m.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("add machine %s: %w", name, err)
	}
	var err error
	if m.ns, err = netns.New(name); err != nil {
		return nil, err
	}
	for _, n := range networks {
		p, err := plug(n, m.ns, number, n == LAN)
		if err != nil {
			return nil, err
		}
		m.ports = append(m.ports, p)
	}
	l.machines = append(l.machines, m)
	return m, nil
}

// switches runs f where the switches are. That is where every goroutine runs that has not locked
// itself to another namespace's thread.
func (l *Lab) switches(f func() error) error { return f() }

// Dial opens a TCP connection from the clients' place.
func (l *Lab) Dial(ctx context.Context, address string) (net.Conn, error) {
	return l.clients.Dial(ctx, "tcp4", address)
}

// StartClient starts a program at the clients' place. It is killed when the session ends.
func (l *Lab) StartClient(cmd *exec.Cmd) error { return l.clients.Start(cmd) }

// Close powers every machine off and takes the networks down.
func (l *Lab) Close() error {
	var errs []error
	for _, m := range l.machines {
		if m.On() {
			errs = append(errs, m.PowerOff())
		}
		m.ns.Close()
	}
	l.clients.Close()
	return errors.Join(errs...)
}
