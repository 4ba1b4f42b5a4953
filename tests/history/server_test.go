package history

import (
	"bufio"
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// server is a small Redis that can be told to misbehave in one way. All commands run one after the
// other under its lock, so that without a fault every history is linearizable.
type server struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	data    map[string]string
	before  map[string]string // each key's value before its last change
	calls   map[string]int    // by command
	misdeed misdeed
}

// misdeed says what to do wrong, and at which of the command's calls.
type misdeed struct {
	command string
	at      int
	what    string // "lose", "stale", "corrupt", "twice", "reset", "reset-after", "error", "forget"
}

func newServer(t *testing.T, m misdeed) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{listener: l, data: map[string]string{}, before: map[string]string{}, calls: map[string]int{}, misdeed: m}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				defer c.Close()
				s.serve(c)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		s.wg.Wait()
	})
	return s
}

func (s *server) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.listener.Addr().String())
}

func (s *server) serve(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		q, err := readReply(r, 0) // a request is an array of bulk strings, like a reply
		if err != nil {
			return
		}
		var args []string
		for _, i := range q.Items {
			args = append(args, i.Text)
		}
		answer, ok := s.execute(args)
		if !ok {
			c.(*net.TCPConn).SetLinger(0) // a reset, not an orderly end
			return
		}
		if _, err := c.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func (s *server) execute(args []string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	command, key := strings.ToUpper(args[0]), args[1]
	s.calls[command]++
	wrong := ""
	if s.misdeed.command == command && s.calls[command] == s.misdeed.at {
		wrong = s.misdeed.what
	}
	bulk := func(v string, ok bool) string {
		if !ok {
			return "$-1\r\n"
		}
		return "$" + strconv.Itoa(len(v)) + "\r\n" + v + "\r\n"
	}
	old, had := s.data[key]
	switch wrong {
	case "reset":
		return "", false
	case "error":
		return "-ERR out of sorts\r\n", true
	case "corrupt":
		return bulk("nobody wrote this", true), true
	case "stale":
		v, ok := s.before[key]
		return bulk(v, ok), true
	}
	value, answer := old, ""
	switch command {
	case "GET":
		return bulk(old, had), true
	case "SET":
		value, answer = args[2], "+OK\r\n"
	case "INCR":
		n, _ := strconv.Atoi(old)
		value, answer = strconv.Itoa(n+1), ":"+strconv.Itoa(n+1)+"\r\n"
		if wrong == "twice" {
			value = strconv.Itoa(n + 2)
		}
	case "APPEND":
		value = old + args[2]
		answer = ":" + strconv.Itoa(len(value)) + "\r\n"
		if wrong == "twice" {
			value += args[2]
		}
	}
	if wrong == "lose" {
		return answer, true
	}
	if had {
		s.before[key] = old
	}
	s.data[key] = value
	if wrong == "forget" { // the whole state falls back, as a takeover from an old epoch would
		for k, v := range s.before {
			s.data[k] = v
		}
	}
	if wrong == "reset-after" {
		return "", false
	}
	return answer, true
}
