package demo

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
)

// load is a redis-benchmark that never stops: 50 clients, one kind of request after the other.
type load struct {
	cmd  *exec.Cmd
	log  string
	over chan struct{}

	mu      sync.Mutex
	stopped bool
	failure error
}

// startLoad starts it at the clients' place.
func startLoad(l *lab.Lab) (*load, error) {
	host, port, err := net.SplitHostPort(guestAddress)
	if err != nil {
		return nil, err
	}
	b := &load{log: filepath.Join(l.Dir, "load.log"), over: make(chan struct{})}
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the load: %w", err)
	}
	defer log.Close()
	// -l begins again after the last kind; -r spreads the keys.
	b.cmd = exec.Command("redis-benchmark", "-h", host, "-p", port, "-t", "set,get,incr", "-n", "20000", "-c", "50", "-r", "1000", "-q", "-l")
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := l.StartClient(b.cmd); err != nil {
		return nil, fmt.Errorf("start the load: %w", err)
	}
	go func() {
		_ = b.cmd.Wait() // how it ended is in its ProcessState
		b.mu.Lock()
		if !b.stopped {
			b.failure = fmt.Errorf("redis-benchmark has ended by itself (%s): %s", b.cmd.ProcessState, b.lastWords())
		}
		b.mu.Unlock()
		close(b.over)
	}()
	return b, nil
}

// lastWords is the end of what redis-benchmark printed.
func (b *load) lastWords() string {
	out, err := os.ReadFile(b.log)
	if err != nil {
		return err.Error()
	}
	out = bytes.TrimSpace(bytes.ReplaceAll(out, []byte("\r"), []byte("\n")))
	lines := strings.Split(string(out), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// failed is why it ended, where it did so by itself.
func (b *load) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failure
}

// stop ends it. It returns what had gone wrong before.
func (b *load) stop() error {
	b.mu.Lock()
	b.stopped = true
	b.mu.Unlock()
	_ = b.cmd.Process.Kill() // it may be over already
	<-b.over
	return b.failed()
}
