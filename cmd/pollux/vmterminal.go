package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Keys that the terminal keeps for itself.
const (
	keyLeave  = 0x1d // Ctrl-]
	keyPrefix = 0x01 // Ctrl-A, then:
	keyExit   = 'x'
)

// outputMax is how much of a guest's console output waits for a slow reader before the guest does, in bytes.
const outputMax = 1 << 20

// terminal is where a guest's console is: a terminal in raw mode, or any two files.
type terminal struct {
	in, out *os.File
	saved   *unix.Termios // nil: in is no terminal
	ended   chan struct{} // closed when the user leaves, or the output is gone
	end     func()
	typed   chan []byte

	mu      sync.Mutex
	changed sync.Cond
	pending []byte
	closing bool
	failed  error
	drained chan struct{}
}

// openTerminal puts a terminal into raw mode and begins to read it.
func openTerminal(in, out *os.File) (*terminal, error) {
	t := &terminal{in: in, out: out, ended: make(chan struct{}), typed: make(chan []byte), drained: make(chan struct{})}
	t.end = sync.OnceFunc(func() { close(t.ended) })
	t.changed.L = &t.mu
	if saved, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err == nil {
		raw := *saved
		// As cfmakeraw(3) does, but the output goes on turning \n into \r\n: guests' own line ends
		// survive that, and our messages look right.
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		if err := unix.IoctlSetTermios(int(in.Fd()), unix.TCSETS, &raw); err != nil {
			return nil, fmt.Errorf("put the terminal into raw mode: %w", err)
		}
		t.saved = saved
		fmt.Fprintln(os.Stderr, "pollux: Ctrl-] or Ctrl-A x ends the guest")
	}
	// A reader that went away must not end us with the terminal still raw.
	signal.Ignore(unix.SIGPIPE)
	go t.read()
	go t.write()
	return t, nil
}

// Close waits until all output is out and gives the terminal back as it was.
func (t *terminal) Close() error {
	t.end()
	t.mu.Lock()
	t.closing = true
	t.changed.Broadcast()
	t.mu.Unlock()
	<-t.drained
	var err error
	if t.failed != nil {
		err = fmt.Errorf("write the guest's console output: %w", t.failed)
	}
	if t.saved != nil {
		err = errors.Join(err, unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, t.saved))
	}
	signal.Reset(unix.SIGPIPE)
	return err
}

// left is closed when the user wants to leave, or nobody can see the output any more.
func (t *terminal) left() <-chan struct{} { return t.ended }

func (t *terminal) read() {
	filter := escapes{raw: t.saved == nil}
	b := make([]byte, 4096)
	for {
		n, err := t.in.Read(b)
		p, leave := filter.take(b[:n])
		if len(p) > 0 {
			select {
			case t.typed <- p:
			case <-t.ended:
				return
			}
		}
		if leave || err != nil && t.saved != nil { // a terminal that hung up
			t.end()
			return
		}
		if err != nil {
			return
		}
	}
}

// escapes finds the user's own keys among what is typed.
type escapes struct {
	raw    bool // not a terminal: nothing is special
	prefix bool // Ctrl-A was typed
}

// take returns a copy of what is for the guest, and whether the user wants to leave.
func (e *escapes) take(p []byte) (forGuest []byte, leave bool) {
	for _, c := range p {
		switch {
		case e.raw:
		case e.prefix:
			e.prefix = false
			if c == keyExit {
				return forGuest, true
			}
			if c != keyPrefix {
				forGuest = append(forGuest, keyPrefix)
			}
		case c == keyLeave:
			return forGuest, true
		case c == keyPrefix:
			e.prefix = true
			continue
		}
		forGuest = append(forGuest, c)
	}
	return forGuest, false
}

// print takes console output. It waits only where a megabyte of it waits already.
func (t *terminal) print(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.pending) >= outputMax && t.failed == nil && !t.closing {
		t.changed.Wait()
	}
	if t.failed == nil {
		t.pending = append(t.pending, p...)
		t.changed.Broadcast()
	}
}

func (t *terminal) write() {
	defer close(t.drained)
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		for len(t.pending) == 0 && !t.closing {
			t.changed.Wait()
		}
		if len(t.pending) == 0 {
			return
		}
		p := t.pending
		t.pending = nil
		t.changed.Broadcast()
		t.mu.Unlock()
		_, err := t.out.Write(p)
		t.mu.Lock()
		if err != nil {
			t.failed, t.pending = err, nil
			t.changed.Broadcast()
			t.end()
			return
		}
	}
}

// input gives what is typed to one machine, until it is closed.
func (t *terminal) input() io.ReadCloser {
	i := &machineInput{t: t, closed: make(chan struct{})}
	i.close = sync.OnceFunc(func() { close(i.closed) })
	return i
}

type machineInput struct {
	t      *terminal
	rest   []byte
	closed chan struct{}
	close  func()
}

func (i *machineInput) Read(p []byte) (int, error) {
	if len(i.rest) == 0 {
		select {
		case i.rest = <-i.t.typed:
		case <-i.closed:
			return 0, io.EOF
		case <-i.t.ended:
			return 0, io.EOF
		}
	}
	n := copy(p, i.rest)
	i.rest = i.rest[n:]
	return n, nil
}

func (i *machineInput) Close() error {
	i.close()
	return nil
}
