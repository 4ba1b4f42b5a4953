package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// guest is an agent as it looks from the channel.
type guest struct {
	mu     sync.Mutex
	socket *Socket
	in     []byte
	absent bool
	stale  string // what is left over of an earlier client's question
	answer func(line string) string
	asked  []string
}

func newGuest(t *testing.T) (*guest, string) {
	t.Helper()
	g := &guest{}
	path := filepath.Join(t.TempDir(), "agent.qga")
	s, err := Listen(path, g.input)
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.socket = s
	g.mu.Unlock()
	t.Cleanup(func() { s.Close() })
	return g, path
}

var errAbsent = errors.New("nobody listens")

// input takes a few bytes at a time, as a busy guest does.
func (g *guest) input(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.absent {
		return 0, errAbsent
	}
	n := min(len(p), 7)
	g.in = append(g.in, p[:n]...)
	for {
		line, rest, ok := bytes.Cut(g.in, []byte("\n"))
		if !ok {
			return n, nil
		}
		g.in = rest
		g.obey(string(line))
	}
}

func (g *guest) obey(line string) {
	// The sentinel ends what an earlier client left unfinished.
	_, after, delimited := strings.Cut(line, "\xff")
	if delimited {
		line = after
	}
	var q struct {
		Execute   string
		Arguments struct{ ID int64 }
	}
	if err := json.Unmarshal([]byte(line), &q); err != nil {
		g.socket.Output([]byte(`{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n"))
		return
	}
	if q.Execute == "guest-sync-delimited" && delimited {
		g.socket.Output(fmt.Appendf([]byte(g.stale), "\xff{\"return\": %d}\n", q.Arguments.ID))
		return
	}
	g.asked = append(g.asked, q.Execute)
	if g.answer != nil {
		g.socket.Output([]byte(g.answer(q.Execute)))
	}
}

func TestAgentAnswers(t *testing.T) {
	g, path := newGuest(t)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	g.stale = `{"return": 12}` + "\n" + strings.Repeat("x", 10000) + "\xff" + `{"return": 99}` + "\n"
	g.answer = func(string) string { return `{"return": {"id": "debian"}}` + "\n" }
	for range 3 { // one client after the other
		got, err := Do(context.Background(), path, "info")
		if err != nil || string(got) != `{"id": "debian"}` {
			t.Fatalf("%s, %v", got, err)
		}
	}
	g.answer = func(string) string { return `{"error": {"class": "GenericError", "desc": "not allowed"}}` + "\n" }
	if _, err := Do(context.Background(), path, "freeze"); !errors.Is(err, ErrAgent) || !strings.Contains(err.Error(), "not allowed") {
		t.Errorf("a refusal: %v", err)
	}
	g.answer = func(string) string {
		return `{"error": {"class": "GenericError", "desc": "\u001b[2J\u009b2J\nall is well"}}` + "\n"
	}
	if _, err := Do(context.Background(), path, "ping"); err == nil || strings.ContainsAny(err.Error(), "\x1b\u009b\n") {
		t.Errorf("a terminal would obey the guest: %q", err)
	}
	g.answer = func(string) string { return "{]\n" }
	if _, err := Do(context.Background(), path, "ping"); !errors.Is(err, ErrAgent) {
		t.Errorf("nonsense: %v", err)
	}
	g.answer = func(string) string { return strings.Repeat("x", 2*answerLimit) }
	if _, err := Do(context.Background(), path, "ping"); err == nil {
		t.Error("an answer without end")
	}
	g.mu.Lock()
	if want := "guest-get-osinfo"; g.asked[0] != want {
		t.Errorf("asked %v", g.asked)
	}
	g.mu.Unlock()
	if _, err := Do(context.Background(), path, "exec"); !errors.Is(err, ErrCommand) {
		t.Errorf("a command that there is not: %v", err)
	}
}

func TestNoAgent(t *testing.T) {
	g, path := newGuest(t)
	g.absent = true
	if _, err := Do(context.Background(), path, "ping"); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	g.mu.Lock()
	g.absent = false
	g.mu.Unlock()
	// The guest shuts down without an answer, and its channel goes with it.
	g.answer = func(string) string {
		go g.socket.Close()
		return ""
	}
	if got, err := Do(context.Background(), path, "shutdown"); err != nil || string(got) != "{}" {
		t.Errorf("%s, %v", got, err)
	}
}

// TestDeafClient: one that does not read is given up, and does not keep the agent's output waiting.
func TestDeafClient(t *testing.T) {
	g, path := newGuest(t)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	connected := func() bool {
		g.socket.mu.Lock()
		defer g.socket.mu.Unlock()
		return g.socket.conn != nil
	}
	for !connected() {
		if _, err := conn.Write([]byte("{}\n")); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		g.socket.Output(make([]byte, outputLimit/2))
	}
	if connected() {
		t.Error("it is still served")
	}
	g.answer = func(string) string { return `{"return": {}}` + "\n" }
	if _, err := Do(context.Background(), path, "ping"); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// FuzzAnswer: whatever the guest says, the client ends with an answer or an error.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"return": {}}`))
	f.Add([]byte("\xff\xff{\"error\": {}}"))
	f.Add([]byte(`{"error": null, "return": [1]}`))
	f.Fuzz(func(t *testing.T, said []byte) {
		answer, err := receive(bufio.NewReader(bytes.NewReader(append(said, '\n'))))
		if err == nil && len(answer) > len(said) {
			t.Errorf("%d bytes out of %d", len(answer), len(said))
		}
	})
}
