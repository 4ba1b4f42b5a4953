package emulator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/pollux-ha/pollux/tests/lab/control"
)

// ErrPower says that a command's machine is gone.
var ErrPower = errors.New("the machine has no power")

// ExitError says that a command ended with another code than 0.
type ExitError struct {
	Argv   []string
	Code   int // 128 and more: killed by a signal
	Stderr string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", strings.Join(e.Argv, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Command is a program to be run in the machine.
type Command struct {
	Argv   []string
	Dir    string
	Env    []string // added to what programs there have: PATH and HOME
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Process is a program that runs in the machine.
type Process struct {
	m         *Machine
	id        uint64
	argv      []string
	out, errs *control.Queue
	drained   sync.WaitGroup
	over      chan struct{}
	code      int
	failure   string
}

// Start starts a program.
func (m *Machine) Start(c Command) (*Process, error) {
	p := &Process{m: m, argv: c.Argv, out: control.NewQueue(), errs: control.NewQueue(), over: make(chan struct{})}
	m.mu.Lock()
	if m.jobs == nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("%s on %s: %w", c.Argv[0], m.Name, ErrPower)
	}
	m.next++
	p.id = m.next
	m.jobs[p.id] = p
	m.mu.Unlock()
	for q, w := range map[*control.Queue]io.Writer{p.out: c.Stdout, p.errs: c.Stderr} {
		if w == nil {
			w = io.Discard
		}
		p.drained.Go(func() { _ = q.Drain(w) })
	}
	if err := m.send(&control.Message{ID: p.id, Kind: control.Start, Command: &control.Command{Argv: c.Argv, Dir: c.Dir, Env: c.Env}}); err != nil {
		return nil, err
	}
	go p.feed(c.Stdin)
	return p, nil
}

// feed sends the program's standard input.
func (p *Process) feed(in io.Reader) {
	b := make([]byte, control.ChunkBytes)
	for in != nil {
		n, err := in.Read(b)
		if n > 0 && p.m.send(&control.Message{ID: p.id, Kind: control.Input, Data: b[:n]}) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	_ = p.m.send(&control.Message{ID: p.id, Kind: control.Input})
}

func (p *Process) end(code int, failure string) {
	p.code, p.failure = code, failure
	p.out.Close()
	p.errs.Close()
	close(p.over)
}

// Kill kills the program and what it has started in its process group.
func (p *Process) Kill() { _ = p.m.send(&control.Message{ID: p.id, Kind: control.Kill}) }

// Over is closed when the program has ended.
func (p *Process) Over() <-chan struct{} { return p.over }

// Wait waits for the program's end, and kills it where ctx ends first. The error is an *ExitError without
// Stderr, or wraps ErrPower, ctx's error, or says why the program could not be run.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.over:
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("%s on %s: %w", strings.Join(p.argv, " "), p.m.Name, ctx.Err())
	}
	p.drained.Wait()
	switch {
	case p.failure == ErrPower.Error():
		return fmt.Errorf("%s on %s: %w", strings.Join(p.argv, " "), p.m.Name, ErrPower)
	case p.failure != "":
		return fmt.Errorf("%s on %s: %s", strings.Join(p.argv, " "), p.m.Name, p.failure)
	case p.code != 0:
		return &ExitError{Argv: p.argv, Code: p.code}
	}
	return nil
}

// Run runs a program to its end.
func (m *Machine) Run(ctx context.Context, c Command) error {
	p, err := m.Start(c)
	if err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Exec runs a program to its end and returns its standard output.
func (m *Machine) Exec(ctx context.Context, stdin io.Reader, argv ...string) (string, error) {
	var out, errs bytes.Buffer
	err := m.Run(ctx, Command{Argv: argv, Stdin: stdin, Stdout: &out, Stderr: &errs})
	var exit *ExitError
	if errors.As(err, &exit) {
		exit.Stderr = errs.String()
	}
	return out.String(), err
}

// Put copies a file of this machine into the emulated one, with its permissions.
func (m *Machine) Put(ctx context.Context, remote, local string) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = m.Exec(ctx, f, control.Put, remote, fmt.Sprintf("%o", info.Mode().Perm()))
	return err
}

// Get copies a file of the emulated machine to this one.
func (m *Machine) Get(ctx context.Context, remote, local string) error {
	f, err := os.Create(local)
	if err != nil {
		return err
	}
	return errors.Join(m.Run(ctx, Command{Argv: []string{control.Get, remote}, Stdout: f}), f.Close())
}
