package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// An operator resets a protected guest, on each of its hosts: what it has acknowledged is there after every boot,
// and nobody takes it for a fault.
func TestGuestReset(t *testing.T) {
	if !session(t) {
		return
	}
	stage := newStage(t)
	ask := func(conn net.Conn, words ...string) (string, error) {
		s := fmt.Sprintf("*%d\r\n", len(words))
		for _, w := range words {
			s += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
		}
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return "", err
		}
		if _, err := io.WriteString(conn, s); err != nil {
			return "", err
		}
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		if err == nil && strings.HasPrefix(line, "$") && !strings.HasPrefix(line, "$-1") {
			line, err = r.ReadString('\n')
		}
		return strings.TrimSpace(line), err
	}
	for round, want := range []string{"", "one", "two", "three"} {
		if round == 2 {
			if err := stage.Switchover(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		before, err := stage.AwaitProtected(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if round > 0 {
			out, err := stage.Node(before.Primary).Command(t.Context(), "", "guest", "reset", before.Name, "--yes")
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		// A connection from before the boot ends with it: clients try again.
		value := []string{"one", "two", "three", "four"}[round]
		answer := ""
		for deadline := time.Now().Add(patience); answer != "+OK"; {
			conn, err := stage.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, err := ask(conn, "GET", "key")
			if err == nil {
				if want != "" && got != want && got != value {
					t.Fatalf("round %d: the guest holds %q, want %q", round, got, want)
				}
				answer, err = ask(conn, "SET", "key", value)
			}
			conn.Close()
			if err != nil && time.Now().After(deadline) {
				t.Fatalf("round %d: the guest does not answer: %v", round, err)
			}
		}
		after, err := stage.AwaitProtected(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if after.Term != before.Term {
			t.Logf("round %d: the term rose from %d to %d: a busy machine", round, before.Term, after.Term)
		}
	}
	g, err := stage.Fresh(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	resets, faults := 0, ""
	for _, host := range []string{g.Primary, g.Replica} {
		out, err := stage.Node(host).Command(t.Context(), "", "events")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, line := range strings.Split(out, "\n") {
			switch {
			case strings.Contains(line, "guest-reset"):
				resets++
			case strings.Contains(line, "fault"):
				faults += line + "\n"
			}
		}
	}
	if resets != 3 || faults != "" {
		t.Errorf("%d events of 3 resets; faults:\n%s", resets, faults)
	}
}
