package e2e

import (
	"bytes"
	"net"
	"os/exec"
	"strings"
	"testing"
)

// Debian's redis-benchmark and redis-cli, unmodified, are users of a protected guest.
func TestRedisTools(t *testing.T) {
	if !session(t) {
		return
	}
	stage := newStage(t)
	conn, err := stage.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(conn.RemoteAddr().String())
	conn.Close()
	if err != nil {
		t.Fatal(err)
	}
	use := func(name string, args ...string) string {
		t.Helper()
		if _, err := stage.AwaitProtected(t.Context()); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(name, append([]string{"-h", host, "-p", port}, args...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := stage.Lab.StartClient(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &out)
		}
		return out.String()
	}
	out := use("redis-benchmark", "-t", "set,get,incr", "-n", "100000", "-c", "50", "--csv")
	t.Log("\n" + out)
	for _, want := range []string{`"SET"`, `"GET"`, `"INCR"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no result for %s", want)
		}
	}
	if s := strings.ToLower(out); strings.Contains(s, "error") || strings.Contains(s, "warning") {
		t.Error("redis-benchmark complains")
	}
	if got := use("redis-cli", "set", "colour", "red"); got != "OK\n" {
		t.Errorf("redis-cli set: %q", got)
	}
	if got := use("redis-cli", "get", "colour"); got != "red\n" {
		t.Errorf("redis-cli get: %q", got)
	}
}
