package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// outputLimit is how much of what the agent says waits for a client that does not read, in bytes. One
	// that lets more come together is given up.
	outputLimit = 1 << 20
	inputRetry  = 20 * time.Millisecond // for a busy agent
)

// Socket is the host's end of an agent's channel. It serves one client after the other.
type Socket struct {
	l     net.Listener
	input func(p []byte) (int, error)

	mu      sync.Mutex
	conn    net.Conn // nil: nobody is there
	pending []byte   // what the agent said, for conn
	wake    *sync.Cond
	closed  bool
	wg      sync.WaitGroup
}

// Listen makes the socket at path, for its owner only. input gives bytes to the guest's agent and says how
// many were taken; its error ends the client's connection.
func Listen(path string, input func(p []byte) (int, error)) (*Socket, error) {
	// One that a predecessor left behind: the path is this process's alone.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the stale agent socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("make the socket for the guest's agent: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect the agent socket: %w", err), l.Close())
	}
	s := &Socket{l: l, input: input}
	s.wake = sync.NewCond(&s.mu)
	s.wg.Go(s.serve)
	return s, nil
}

// Output takes what the guest's agent said. It does not wait; what is said to nobody is lost.
func (s *Socket) Output(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return
	}
	if len(s.pending)+len(p) > outputLimit {
		s.drop()
		return
	}
	s.pending = append(s.pending, p...)
	s.wake.Broadcast()
}

// Close ends the socket and whoever is connected.
func (s *Socket) Close() error {
	s.mu.Lock()
	s.closed = true
	s.drop()
	s.mu.Unlock()
	err := s.l.Close()
	s.wg.Wait()
	return err
}

// drop ends the client's connection. s.mu is held.
func (s *Socket) drop() {
	if s.conn != nil {
		s.conn.Close()
		s.conn, s.pending = nil, nil
	}
	s.wake.Broadcast()
}

func (s *Socket) serve() {
	for {
		conn, err := s.l.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			conn.Close()
			return
		}
		s.conn, s.pending = conn, nil
		s.mu.Unlock()
		var writer sync.WaitGroup
		writer.Go(func() { s.write(conn) })
		s.read(conn)
		s.mu.Lock()
		if s.conn == conn {
			s.drop()
		}
		s.mu.Unlock()
		writer.Wait()
	}
}

// read passes on what the client sends, until it or the agent has had enough.
func (s *Socket) read(conn net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			taken, err := s.input(p)
			if err != nil || !s.serves(conn) {
				return
			}
			if p = p[taken:]; taken == 0 {
				time.Sleep(inputRetry)
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *Socket) serves(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn == conn
}

// write passes on what the agent says.
func (s *Socket) write(conn net.Conn) {
	for {
		s.mu.Lock()
		for s.conn == conn && len(s.pending) == 0 {
			s.wake.Wait()
		}
		p := s.pending
		s.pending = nil
		gone := s.conn != conn
		s.mu.Unlock()
		if gone {
			return
		}
		if _, err := conn.Write(p); err != nil {
			s.mu.Lock()
			if s.conn == conn {
				s.drop()
			}
			s.mu.Unlock()
			return
		}
	}
}
