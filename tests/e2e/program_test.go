package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// patience bounds what takes moments, on a machine that is out of breath.
const patience = 30 * time.Second

// builtProgram is the built program: bin/pollux, as `make build` leaves it, or what POLLUX_E2E_PROGRAM names.
func builtProgram(t *testing.T) string {
	t.Helper()
	path := os.Getenv("POLLUX_E2E_PROGRAM")
	if path == "" {
		path = "../../bin/pollux"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs bin/pollux: make build")
	}
	return path
}

func needRoot(t *testing.T, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: " + what)
	}
}

// publicCopy is a copy of the program that every user can run, and that no build replaces meanwhile.
func publicCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pollux-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	to := filepath.Join(dir, "pollux")
	from, err := os.Open(builtProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(f, from)
	if err := errors.Join(err, f.Close(), os.Chmod(to, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return to
}

// asNobody and the others are what a command line begins with, to run the rest of it elsewhere.
var (
	asNobody  = []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	noDevices = []string{"unshare", "-m", "sh", "-c", `mount -t tmpfs none /dev && exec "$@"`, "sh"}
	notKVM    = []string{"unshare", "-m", "sh", "-c", `mount --bind /dev/null /dev/kvm && exec "$@"`, "sh"}
)

// readOnly makes a directory read-only for the command.
func readOnly(dir string) []string {
	return []string{"unshare", "-m", "sh", "-c", `mount -t tmpfs -o ro none "$0" && exec "$@"`, dir}
}

// tiny puts a directory onto a file system of that size for the command.
func tiny(dir, size string) []string {
	return []string{"unshare", "-m", "sh", "-c", `mount -t tmpfs -o size=` + size + ` none "$0" && exec "$@"`, dir}
}

// ending is how a command has ended.
type ending struct {
	args        []string
	out, errors string
	code        int
}

// run runs a command to its end, which must not take long and must not be a crash.
func run(t *testing.T, stdin string, argv ...string) ending {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	e := ending{args: argv, out: out.String(), errors: errs.String(), code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		t.Fatalf("%s hangs; so far it has said %q", strings.Join(argv, " "), e.errors)
	case err != nil && !errors.As(err, &exit):
		t.Fatal(err)
	case crashed(e.errors):
		t.Fatalf("%s crashed: %s", strings.Join(argv, " "), e.errors)
	}
	return e
}

func crashed(text string) bool {
	return strings.Contains(text, "goroutine ") || strings.Contains(text, "panic:") || strings.Contains(text, "fatal error:")
}

// refused checks that a command ended with that code and said these things, on standard error only.
func (e ending) refused(t *testing.T, code int, say ...string) {
	t.Helper()
	if e.code != code {
		t.Errorf("%s: exit code %d, want %d", strings.Join(e.args, " "), e.code, code)
	}
	for _, s := range say {
		if !strings.Contains(e.errors, s) {
			t.Errorf("%s: %q does not say %q", strings.Join(e.args, " "), e.errors, s)
		}
	}
	if e.out != "" {
		t.Errorf("%s: standard output has %q", strings.Join(e.args, " "), e.out)
	}
}

// done checks that a command succeeded, and returns its standard output.
func (e ending) done(t *testing.T) string {
	t.Helper()
	if e.code != 0 {
		t.Fatalf("%s: exit code %d: %s", strings.Join(e.args, " "), e.code, e.errors)
	}
	return e.out
}

// file writes a file and returns its path.
func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
