package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The keeper is a machine's first process. It starts what it is told to, buries every process of
// the machine that dies (a data plane outlives its daemon and falls to it), and ends when the
// session does. The conversation is JSON values over its standard input and output.

type keeperOrder struct {
	ID   int      `json:"id"`
	Argv []string `json:"argv"`
	Log  string   `json:"log"` // gets standard output and standard error
}

type keeperWord struct {
	ID     int    `json:"id"`
	PID    int    `json:"pid,omitempty"`    // it was started; the number is the machine's own
	Failed string `json:"failed,omitempty"` // it could not be started
	Ended  string `json:"ended,omitempty"`  // how it ended
}

// Keep is a keeper's life.
func Keep(in io.Reader, out io.Writer) error {
	if os.Getpid() != 1 {
		return errors.New("a machine's keeper is started by the lab, as the first process of its namespaces")
	}
	if err := settle(); err != nil {
		return err
	}
	died := make(chan os.Signal, 16)
	signal.Notify(died, unix.SIGCHLD)

	var mu sync.Mutex // for children and out
	children := make(map[int]int)
	words := json.NewEncoder(out)
	// A session that doesn't listen any more is about to end, and this process with it.
	say := func(w keeperWord) { _ = words.Encode(w) }
	go func() {
		for range died {
			for {
				var status unix.WaitStatus
				pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
				if err != nil || pid <= 0 {
					break
				}
				mu.Lock()
				if id, ok := children[pid]; ok {
					delete(children, pid)
					say(keeperWord{ID: id, Ended: describeStatus(status)})
				}
				mu.Unlock()
			}
		}
	}()

	orders := json.NewDecoder(bufio.NewReader(in))
	for {
		var o keeperOrder
		if err := orders.Decode(&o); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // and the kernel kills the rest of the machine
			}
			return fmt.Errorf("read an order: %w", err)
		}
		mu.Lock() // so that no child is buried before it is known
		pid, err := spawn(o)
		if err != nil {
			say(keeperWord{ID: o.ID, Failed: err.Error()})
		} else {
			children[pid] = o.ID
			say(keeperWord{ID: o.ID, PID: pid})
		}
		mu.Unlock()
	}
}

func spawn(o keeperOrder) (int, error) {
	log, err := os.OpenFile(o.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("open the log: %w", err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	return syscall.ForkExec(o.Argv[0], o.Argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

func describeStatus(s unix.WaitStatus) string {
	switch {
	case s.Exited():
		return fmt.Sprintf("exit status %d", s.ExitStatus())
	case s.Signaled():
		return "signal " + unix.SignalName(s.Signal())
	}
	return fmt.Sprintf("status %#x", uint32(s))
}
