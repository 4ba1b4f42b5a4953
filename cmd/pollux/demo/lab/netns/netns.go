// Package netns has network namespaces without a name: each is held by a thread of this process, and
// vanishes with it.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held by a thread that never leaves it. Everything that has to
// happen inside is done by that thread: sockets that it opens and processes that it starts belong there.
type Namespace struct {
	Name string
	// FD refers to the namespace, for moving interfaces into it.
	FD   int
	work chan func()
	over chan struct{}
}

// New makes a network namespace with its loopback up and without IPv6.
func New(name string) (*Namespace, error) {
	n := &Namespace{Name: name, work: make(chan func()), over: make(chan struct{})}
	ready := make(chan error)
	go n.live(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("network namespace of %s: %w", name, err)
	}
	return n, nil
}

func (n *Namespace) live(ready chan<- error) {
	// Never unlocked: the runtime ends the thread with the goroutine, so that no other goroutine
	// ever finds itself in this namespace.
	runtime.LockOSThread()
	err := func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		n.FD = fd
		return Prepare()
	}()
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-n.work:
			f()
		case <-n.over:
			unix.Close(n.FD)
			return
		}
	}
}

// Prepare sets up the calling thread's network namespace.
func Prepare() error {
	for _, f := range []string{"ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("switch IPv6 off: %w", err)
		}
	}
	// Where bridges pass their frames to the packet filter, a host's rules could drop them. Most kernels
	// have no such switch.
	for _, f := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		_ = os.WriteFile("/proc/sys/net/bridge/"+f, []byte("0"), 0)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

// Do runs f on the namespace's thread.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	select {
	case n.work <- func() { done <- f() }:
		return <-done
	case <-n.over:
		return fmt.Errorf("network namespace of %s is gone", n.Name)
	}
}

// Start starts a process inside. It is killed when the namespace's holder ends.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	return n.Do(cmd.Start)
}

// Run runs a program inside and returns its standard output; its standard error is in the error.
func (n *Namespace) Run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := n.Start(cmd); err != nil {
		return "", fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Dial opens a connection from inside. Keep-alive is off: a connection's end is to be the doing
// of its peer alone.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// AddBridge makes a bridge, in the calling thread's namespace, that forwards at once (the kernel's
// default is no spanning tree) and keeps quiet itself.
func AddBridge(name string) error {
	off := false
	b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &off}
	if err := netlink.LinkAdd(b); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(b); err != nil {
		return fmt.Errorf("bridge %s up: %w", name, err)
	}
	return nil
}

// Close lets go of the namespace. It vanishes once its processes and interfaces have.
func (n *Namespace) Close() { close(n.over) }
