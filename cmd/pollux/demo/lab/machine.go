package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab/netns"
)

// Machine is a host or the witness.
type Machine struct {
	Name string
	// Number is the last byte of its addresses.
	Number byte
	// Dir holds its configuration, its state and its logs.
	Dir string

	lab   *Lab
	ns    *netns.Namespace
	ports []port

	mu     sync.Mutex
	keeper *keeperHandle // nil: the power is off
}

// keeperHandle is the session's side of a running keeper.
type keeperHandle struct {
	cmd   *exec.Cmd
	pidns string // identifies the machine's processes
	in    io.WriteCloser
	out   io.Closer
	dead  chan struct{}

	mu    sync.Mutex
	send  *json.Encoder
	next  int
	tasks map[int]*Task
}

// Task is a program that runs on a machine.
type Task struct {
	started chan error
	over    chan struct{}
	ended   string // valid once over is closed
}

// Over is closed when the program has ended.
func (t *Task) Over() <-chan struct{} { return t.over }

// Ended says how it ended.
func (t *Task) Ended() string {
	<-t.over
	return t.ended
}

// PowerOn starts the machine: a keeper and nothing else. Cables stay as they are.
func (m *Machine) PowerOn() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keeper != nil {
		return fmt.Errorf("machine %s is on already", m.Name)
	}
	cmd := exec.Command(Program, KeeperCommand...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true}
	log, err := os.OpenFile(filepath.Join(m.Dir, "keeper.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	defer log.Close()
	cmd.Stderr = log
	inR, inW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		inW.Close()
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	cmd.Stdin, cmd.Stdout = inR, outW
	err = m.ns.Start(cmd)
	inR.Close()
	outW.Close()
	if err != nil {
		inW.Close()
		outR.Close()
		return fmt.Errorf("start machine %s: %w%s", m.Name, err, namespaceHint(err))
	}
	k := &keeperHandle{cmd: cmd, in: inW, out: outR, send: json.NewEncoder(inW), tasks: make(map[int]*Task), dead: make(chan struct{})}
	if k.pidns, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid)); err != nil {
		_, _ = cmd.Process.Kill(), cmd.Wait() // it is of no use; the reason is in err
		inW.Close()
		outR.Close()
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	m.keeper = k
	go k.listen(outR)
	return nil
}

// listen takes the keeper's words until it is dead.
func (k *keeperHandle) listen(out io.Reader) {
	words := json.NewDecoder(out)
	for {
		var w keeperWord
		if err := words.Decode(&w); err != nil {
			break
		}
		k.mu.Lock()
		t := k.tasks[w.ID]
		switch {
		case t == nil:
		case w.Failed != "":
			t.started <- errors.New(w.Failed)
			delete(k.tasks, w.ID)
		case w.Ended != "":
			t.ended = w.Ended
			close(t.over)
			delete(k.tasks, w.ID)
		default:
			t.started <- nil
		}
		k.mu.Unlock()
	}
	_ = k.cmd.Wait() // it was killed, or ended with its session; returns once every process of the machine is gone
	k.in.Close()
	k.out.Close()
	k.mu.Lock()
	for id, t := range k.tasks {
		t.ended = "the machine lost its power"
		select {
		case t.started <- errors.New(t.ended):
		default:
		}
		close(t.over)
		delete(k.tasks, id)
	}
	k.tasks = nil
	k.mu.Unlock()
	close(k.dead)
}

// Run starts a program on the machine. log, a file in the machine's directory, gets its output.
func (m *Machine) Run(log string, argv ...string) (*Task, error) {
	k := m.running()
	if k == nil {
		return nil, fmt.Errorf("machine %s is off", m.Name)
	}
	t := &Task{started: make(chan error, 1), over: make(chan struct{})}
	k.mu.Lock()
	if k.tasks == nil {
		k.mu.Unlock()
		return nil, fmt.Errorf("machine %s is off", m.Name)
	}
	k.next++
	id := k.next
	k.tasks[id] = t
	err := k.send.Encode(keeperOrder{ID: id, Argv: argv, Log: filepath.Join(m.Dir, log)})
	k.mu.Unlock()
	if err == nil {
		err = <-t.started
	}
	if err != nil {
		return nil, fmt.Errorf("run %s on machine %s: %w", argv[0], m.Name, err)
	}
	return t, nil
}

func (m *Machine) running() *keeperHandle {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keeper
}

// On says whether the machine has power.
func (m *Machine) On() bool { return m.running() != nil }

// PowerOff kills everything on the machine at once and returns when it is all gone.
func (m *Machine) PowerOff() error {
	m.mu.Lock()
	k := m.keeper
	m.keeper = nil
	m.mu.Unlock()
	if k == nil {
		return fmt.Errorf("machine %s is off already", m.Name)
	}
	if err := k.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("power machine %s off: %w", m.Name, err)
	}
	<-k.dead
	return nil
}

// Dial opens a connection from the machine's network.
func (m *Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return m.ns.Dial(ctx, network, address)
}

// Exec runs a program in the machine's network, but as a process of the session, to its end; it
// returns the standard output. It is for an operator's commands.
func (m *Machine) Exec(ctx context.Context, stdin, name string, args ...string) (string, error) {
	return m.ns.Run(ctx, stdin, name, args...)
}
