package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/lab/control"
)

// server runs commands for the lab.
type server struct {
	conn *control.Conn
	mu   sync.Mutex
	jobs map[uint64]*job
}

// job is a command that runs.
type job struct {
	input *control.Queue
	kill  func()
}

func serve() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	s := &server{conn: control.NewConn(port), jobs: make(map[uint64]*job)}
	ready := &control.Message{Kind: control.Ready}
	if err := setUp(); err != nil {
		ready.Error = err.Error()
	}
	if err := s.conn.Send(ready); err != nil {
		return err
	}
	for {
		m, err := s.conn.Receive()
		if err != nil {
			return err
		}
		s.take(m)
	}
}

// openPort opens the control channel. Reads block: a thread is spent on them.
func openPort() (*os.File, error) {
	name, err := await("virtio-serial port "+control.PortName, func() (string, bool) {
		found, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, f := range found {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == control.PortName {
				return filepath.Base(filepath.Dir(f)), true
			}
		}
		return "", false
	})
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/"+name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/%s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (s *server) take(m *control.Message) {
	s.mu.Lock()
	j := s.jobs[m.ID]
	s.mu.Unlock()
	switch {
	case m.Kind == control.Start && m.Command != nil && len(m.Command.Argv) > 0:
		s.start(m.ID, m.Command)
	case j == nil: // it has ended meanwhile
	case m.Kind == control.Input && len(m.Data) == 0:
		j.input.Close()
	case m.Kind == control.Input:
		j.input.Put(m.Data)
	case m.Kind == control.Kill:
		j.kill()
	}
}

func (s *server) start(id uint64, c *control.Command) {
	j := &job{input: control.NewQueue(), kill: func() {}}
	out := &stream{s.conn, id, control.Output}
	var run func() (int, error)
	switch c.Argv[0] {
	case control.Put:
		run = func() (int, error) { return 0, put(c.Argv[1:], j.input) }
	case control.Get:
		run = func() (int, error) { return 0, get(c.Argv[1:], out) }
	case control.PowerOff:
		powerOff()
	default:
		cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
		cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
		cmd.Stdout, cmd.Stderr = out, &stream{s.conn, id, control.Complain}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		// What it has left behind may hold its output open.
		cmd.WaitDelay = time.Second
		in, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			run = func() (int, error) { return -1, err }
			break
		}
		j.kill = func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
		go func() {
			_ = j.input.Drain(in)
			in.Close()
		}()
		run = func() (int, error) { return exitCode(cmd.Wait(), cmd.ProcessState) }
	}
	s.mu.Lock()
	s.jobs[id] = j
	s.mu.Unlock()
	go func() {
		m := &control.Message{ID: id, Kind: control.Exit}
		var err error
		if m.Code, err = run(); err != nil {
			m.Error = err.Error()
		}
		j.input.Close()
		s.mu.Lock()
		delete(s.jobs, id)
		s.mu.Unlock()
		_ = s.conn.Send(m)
	}()
}

// exitCode is as a shell has it.
func exitCode(err error, state *os.ProcessState) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return state.ExitCode(), nil
	case errors.As(err, &exit):
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			return 128 + int(w.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return -1, err
}

// stream sends what is written to it to the lab.
type stream struct {
	conn *control.Conn
	id   uint64
	kind control.Kind
}

func (s *stream) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		chunk := b[:min(len(b), control.ChunkBytes)]
		if err := s.conn.Send(&control.Message{ID: s.id, Kind: s.kind, Data: chunk}); err != nil {
			return n, err
		}
		n, b = n+len(chunk), b[len(chunk):]
	}
	return n, nil
}

func put(args []string, in *control.Queue) error {
	mode, err := strconv.ParseUint(args[1], 8, 32)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(args[0]), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_TRUNC|os.O_WRONLY, os.FileMode(mode))
	if err != nil {
		return err
	}
	return errors.Join(in.Drain(f), f.Chmod(os.FileMode(mode)), f.Close())
}

func get(args []string, out io.Writer) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, f)
	return err
}
