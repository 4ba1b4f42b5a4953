package scenario

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// program is a client's program that runs beside the test and tells of its progress.
type program struct {
	s    *stage
	name string
	mark string // a line with this in it is one step forward
	cmd  *exec.Cmd
	over chan struct{}
	err  error // valid once over is closed

	mu      sync.Mutex
	steps   int
	tail    bytes.Buffer // lines that are no steps
	changed chan struct{}
}

// start starts a program of the client's. Lines of its output with mark in them are counted.
func (s *stage) start(mark string, argv ...string) *program {
	s.Helper()
	p := &program{s: s, name: argv[0], mark: mark, over: make(chan struct{}), changed: make(chan struct{})}
	p.cmd = s.client.Command(s.Context(), argv...)
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	go func() {
		for in := bufio.NewScanner(r); in.Scan(); {
			p.hear(in.Text())
		}
	}()
	go func() {
		p.err = p.cmd.Wait()
		w.Close()
		close(p.over)
	}()
	return p
}

func (p *program) hear(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.Contains(line, p.mark) {
		p.steps++
	} else if p.tail.Len() < 1<<20 {
		fmt.Fprintln(&p.tail, line)
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// said is the end of what it said besides its steps.
func (p *program) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.tail.String()
	return text[max(0, len(text)-2000):]
}

// until waits until it has made so many steps.
func (p *program) until(steps int) {
	p.s.Helper()
	limit := time.After(patience)
	for {
		p.mu.Lock()
		n, changed := p.steps, p.changed
		p.mu.Unlock()
		if n >= steps {
			p.s.step("%s is at %d", p.name, n)
			return
		}
		select {
		case <-changed:
		case <-p.over:
			p.s.Fatalf("%s has ended after %d steps: %v\n%s", p.name, n, p.err, p.said())
		case <-limit:
			p.s.Fatalf("%s makes no progress: %d, %d wanted\n%s", p.name, n, steps, p.said())
		}
	}
}

// end waits until it has ended, well, and returns how many steps it made.
func (p *program) end() int {
	p.s.Helper()
	limit, told := time.After(3*patience), 0
	for over := false; !over; {
		p.mu.Lock()
		n, changed := p.steps, p.changed
		p.mu.Unlock()
		if n/100 > told/100 {
			p.s.step("%s is at %d", p.name, n)
			told = n
		}
		select {
		case <-changed:
		case <-p.over:
			over = true
		case <-limit:
			p.s.Fatalf("%s does not end, after %d steps\n%s", p.name, n, p.said())
		}
	}
	if p.err != nil {
		p.s.Fatalf("%s: %v\n%s", p.name, p.err, p.said())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.steps
}
