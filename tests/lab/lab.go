// Package lab runs Pollux on emulated machines in which ordinary kvm-amd works, so that stock guests can be
// protected, and their hosts lose power, anywhere. README.md says what a lab is and what it costs.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab/netns"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// Variable is set by `make lab-test`. Without it tests of the lab skip themselves: they take minutes.
const Variable = "POLLUX_LAB_TEST"

// ProgramVariable names the program under test where it is not to be built from the working tree.
const ProgramVariable = "POLLUX_LAB_PROGRAM"

// DirVariable names a directory in which tests leave what their labs have said, and the disks, one directory for each
// test. Keep it short: sockets lie in it.
const DirVariable = "POLLUX_LAB_DIR"

// Options say what a lab is to be. The zero value is two hosts a and b.
type Options struct {
	Hosts []HostOptions
	// CPUs and MemoryMiB of each host that has none of its own: 1 and 1024. More CPUs than one make
	// a host slower, not faster.
	CPUs, MemoryMiB int
	// DiskMiB is the size of each host's data disk, /data (4096). It is sparse.
	DiskMiB int
	// Data are files on each host's data disk, by their path under /data. Holes of a file stay holes.
	Data map[string]string
	// Modules are further modules that the hosts load.
	Modules []string
	// Firmware has guests boot through UEFI firmware: the hosts have OVMF, and a KVM that bears it under
	// emulation (parts.CalmKVM).
	Firmware bool
	// Kernel of the hosts: parts.Ordinary or parts.Cloud.
	Kernel string
	// Pollux is the program under test; empty: what POLLUX_LAB_PROGRAM names, or else it is built from the
	// working tree.
	Pollux string
	// Dir keeps consoles, disks and logs; empty: a temporary directory, which goes with the lab.
	Dir string
}

// HostOptions are a host's own.
type HostOptions struct {
	Name                     string
	CPUs, MemoryMiB, DiskMiB int
	Data                     map[string]string // besides Options.Data
}

func (o Options) withDefaults() Options {
	if len(o.Hosts) == 0 {
		o.Hosts = []HostOptions{{Name: "a"}, {Name: "b"}}
	}
	o.CPUs = max(1, o.CPUs)
	for v, d := range map[*int]int{&o.MemoryMiB: 1024, &o.DiskMiB: 4096} {
		if *v == 0 {
			*v = d
		}
	}
	if o.Kernel == "" {
		o.Kernel = DefaultKernel
	}
	return o
}

// DefaultKernel is the hosts' where nothing else is asked for.
const DefaultKernel = parts.Cloud

// Lab is hosts, clients and networks. Everything ends with the process that made it.
type Lab struct {
	// Dir has a directory for each host and machine.
	Dir string

	options  Options
	kernel   *parts.Kernel
	switches *netns.Namespace
	dhcp     *dhcpServer
	logf     func(format string, a ...any)
	fatal    func(a ...any)

	mu       sync.Mutex
	hosts    []*Host
	machines map[string]*Machine
	cluster  *Cluster
	temp     bool
	closed   []func() // what Close does, last one first
}

// New makes a lab for a test, with its hosts switched off. It skips the test where no lab is wanted or
// possible, and ends the lab with the test.
func New(t testing.TB, o Options) *Lab {
	t.Helper()
	Need(t)
	if keep := os.Getenv(DirVariable); keep != "" && o.Dir == "" {
		o.Dir = filepath.Join(keep, strings.ReplaceAll(t.Name(), "/", "-"))
		if err := errors.Join(os.RemoveAll(o.Dir), os.MkdirAll(o.Dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Open(t.Context(), o, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	l.fatal = t.Fatal
	t.Cleanup(func() {
		if t.Failed() || !l.temp {
			l.explain(t.Failed())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Need skips a test where no lab is wanted or possible.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(Variable) == "" {
		t.Skip("needs lab: run make lab-test")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: the lab's networks are network namespaces with taps and bridges")
	}
	if err := parts.Check(); err != nil {
		t.Skip("needs lab: ", err)
	}
}

// Open makes a lab with its hosts switched off. logf hears of what happens.
func Open(ctx context.Context, o Options, logf func(format string, a ...any)) (_ *Lab, err error) {
	l := &Lab{Dir: o.Dir, options: o.withDefaults(), logf: logf, machines: make(map[string]*Machine),
		fatal: func(a ...any) { panic(fmt.Sprint(a...)) }}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.Dir == "" {
		// Short: it holds sockets, whose paths have room for 107 bytes.
		if l.Dir, err = os.MkdirTemp("", "lab."); err != nil {
			return nil, err
		}
		l.temp = true
	}
	if l.Dir, err = filepath.Abs(l.Dir); err != nil {
		return nil, err
	}
	if l.kernel, err = parts.Fetch(ctx, l.options.Kernel); err != nil {
		return nil, err
	}
	if l.options.Pollux == "" {
		if l.options.Pollux, err = program(ctx); err != nil {
			return nil, err
		}
	}
	if l.switches, err = netns.New("switches"); err != nil {
		return nil, err
	}
	l.onClose(l.switches.Close)
	if err := l.switches.Do(makeSwitches); err != nil {
		return nil, err
	}
	if l.dhcp, err = l.serveDHCP(); err != nil {
		return nil, err
	}
	for i, h := range l.options.Hosts {
		if err := l.addHost(ctx, byte(i+1), h); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// program is the one under test.
func program(ctx context.Context) (string, error) {
	if p := os.Getenv(ProgramVariable); p != "" {
		return p, nil
	}
	return parts.Program(ctx, "./cmd/pollux")
}

func (l *Lab) onClose(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = append(l.closed, f)
}

// Host is the host of that name.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.hosts {
		if h.Name == name {
			return h
		}
	}
	l.fatal("the lab has no host ", name)
	return nil
}

// Hosts are all hosts.
func (l *Lab) Hosts() []*Host { return l.hosts }

// PowerOn switches all hosts on that are off, side by side.
func (l *Lab) PowerOn(ctx context.Context) error {
	errs := make([]error, len(l.hosts))
	var all sync.WaitGroup
	for i, h := range l.hosts {
		if !h.On() {
			all.Go(func() { errs[i] = h.PowerOn(ctx) })
		}
	}
	all.Wait()
	return errors.Join(errs...)
}

// Close pulls all plugs and takes the networks down.
func (l *Lab) Close() error {
	for _, h := range l.hosts {
		_ = h.PowerCut() // it may be off
	}
	for {
		l.mu.Lock()
		n := len(l.closed)
		if n == 0 {
			l.mu.Unlock()
			break
		}
		f := l.closed[n-1]
		l.closed = l.closed[:n-1]
		l.mu.Unlock()
		f()
	}
	if l.temp {
		return os.RemoveAll(l.Dir)
	}
	return nil
}

// explain gathers what the hosts' consoles and the cluster's daemons and guests have said: in the lab's directory where
// that is kept, and in the test's log where it has failed.
func (l *Lab) explain(tell bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var b strings.Builder
	for _, h := range l.hosts {
		fmt.Fprintf(&b, "== console of %s\n%s\n", h.Name, end(h.Console(), 4000))
	}
	l.mu.Lock()
	c := l.cluster
	l.mu.Unlock()
	if c != nil {
		c.CopyLogs(ctx, &b)
	}
	if tell {
		l.logf("%s", &b)
	}
	if !l.temp {
		if err := os.WriteFile(filepath.Join(l.Dir, "explained"), []byte(b.String()), 0o644); err != nil {
			l.logf("%v", err)
		}
	}
}

// patience bounds what takes moments unless something is broken.
const patience = 30 * time.Second
