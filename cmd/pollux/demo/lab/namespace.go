package lab

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

// namespace is a network namespace, held by a thread that never leaves it. Everything that has to
// happen inside is done by that thread: sockets that it opens and processes that it starts belong there.
type namespace struct {
	name string
	fd   int // for moving interfaces into it
	work chan func()
	over chan struct{}
}

// newNamespace makes a network namespace with its loopback up and without IPv6.
func newNamespace(name string) (*namespace, error) {
	n := &namespace{name: name, work: make(chan func()), over: make(chan struct{})}
	ready := make(chan error)
	go n.live(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("network namespace of %s: %w", name, err)
	}
	return n, nil
}

func (n *namespace) live(ready chan<- error) {
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
		n.fd = fd
		return prepareNetwork()
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
			unix.Close(n.fd)
			return
		}
	}
}

// prepareNetwork sets up the calling thread's network namespace.
func prepareNetwork() error {
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

// do runs f on the namespace's thread.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	select {
	case n.work <- func() { done <- f() }:
		return <-done
	case <-n.over:
		return fmt.Errorf("network namespace of %s is gone", n.name)
	}
}

// start starts a process inside. It is killed when the session ends.
func (n *namespace) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	return n.do(cmd.Start)
}

// run runs a program inside and returns its standard output; its standard error is in the error.
func (n *namespace) run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := n.start(cmd); err != nil {
		return "", fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// dial opens a TCP connection from inside. Keep-alive is off: a connection's end is to be the doing
// of its peer alone.
func (n *namespace) dial(ctx context.Context, address string) (net.Conn, error) {
	return n.dialNetwork(ctx, "tcp4", address)
}

func (n *namespace) dialNetwork(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	var c net.Conn
	err := n.do(func() (err error) {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// close lets go of the namespace. It vanishes once its processes and interfaces have.
func (n *namespace) close() { close(n.over) }
