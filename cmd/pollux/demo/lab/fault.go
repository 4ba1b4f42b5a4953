package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of a machine.
type Process struct {
	PID  int      // in the session
	Own  int      // in the machine
	Argv []string //
}

// Processes lists the machine's processes, the keeper first.
func (m *Machine) Processes() ([]Process, error) {
	k := m.running()
	if k == nil {
		return nil, nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, dir := range dirs {
		if ns, err := os.Readlink(dir + "/ns/pid"); err != nil || ns != k.pidns {
			continue
		}
		p := Process{}
		p.PID, _ = strconv.Atoi(filepath.Base(dir))
		argv, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(argv) == 0 {
			continue // gone, or only its exit status is left
		}
		p.Argv = strings.Split(strings.TrimSuffix(string(argv), "\x00"), "\x00")
		status, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(status), "\n") {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" {
				p.Own, _ = strconv.Atoi(f[len(f)-1])
			}
		}
		found = append(found, p)
	}
	slices.SortFunc(found, func(x, y Process) int { return x.Own - y.Own })
	return found, nil
}

// Kill kills one process of the machine and returns when it is dead. own is its number there.
func (m *Machine) Kill(ctx context.Context, own int) error {
	processes, err := m.Processes()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(processes, func(p Process) bool { return p.Own == own })
	if i < 0 {
		return fmt.Errorf("machine %s has no process %d", m.Name, own)
	}
	fd, err := unix.PidfdOpen(processes[i].PID, 0)
	if err != nil {
		return fmt.Errorf("kill process %d of machine %s: %w", own, m.Name, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("kill process %d of machine %s: %w", own, m.Name, err)
	}
	for ctx.Err() == nil {
		// A pidfd becomes readable when its process is dead.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for the end of process %d: %w", own, err)
		}
	}
	return fmt.Errorf("process %d of machine %s does not die: %w", own, m.Name, ctx.Err())
}

// Freeze stops every process of the machine where it stands and returns when none runs any more.
func (m *Machine) Freeze(ctx context.Context) error {
	deadline := time.Now().Add(patience)
	for {
		processes, err := m.Processes()
		if err != nil {
			return err
		}
		running := 0
		// The newest first: those that hold guests, which are to stop at once.
		for _, p := range slices.Backward(processes) {
			if !stopped(p.PID) {
				running++
				if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("freeze machine %s: process %d: %w", m.Name, p.Own, err)
				}
			}
		}
		if running == 0 {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("freeze machine %s: %d processes go on", m.Name, running)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// Thaw lets a frozen machine go on.
func (m *Machine) Thaw() error {
	processes, err := m.Processes()
	if err != nil {
		return err
	}
	for _, p := range processes {
		if err := unix.Kill(p.PID, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("thaw machine %s: process %d: %w", m.Name, p.Own, err)
		}
	}
	return nil
}

// stopped says whether all threads of a process are stopped, or it is gone.
func stopped(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/stat", pid))
	if err != nil {
		return false
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// The command's name, in parentheses, may hold anything.
		end := bytes.LastIndexByte(stat, ')')
		if end < 0 || end+2 >= len(stat) {
			continue
		}
		if s := stat[end+2]; s != 'T' && s != 'Z' && s != 'X' {
			return false
		}
	}
	return true
}

// Cut says how a cable is interrupted.
type Cut string

const (
	Silent    Cut = "silent"    // frames stop, and nobody is told
	Unplugged Cut = "unplugged" // the machine sees that its carrier is gone
)

// Cut interrupts the machine's cables to the networks; none named means all.
func (m *Machine) Cut(how Cut, networks ...Network) error {
	return m.eachPort(networks, func(p port) error {
		if how == Silent {
			return p.disconnect()
		}
		return p.setUp(false)
	})
}

// Mend undoes every Cut of these cables; none named means all.
func (m *Machine) Mend(networks ...Network) error {
	return m.eachPort(networks, func(p port) error {
		if err := p.setUp(true); err != nil {
			return err
		}
		return p.connect()
	})
}

func (m *Machine) eachPort(networks []Network, do func(port) error) error {
	for _, p := range m.ports {
		if len(networks) == 0 || slices.Contains(networks, p.network) {
			if err := m.lab.switches(func() error { return do(p) }); err != nil {
				return err
			}
		}
	}
	return nil
}
