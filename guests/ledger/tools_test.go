package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	patience = 4 * time.Minute // for any single command: a bound for failures only

	hostAddress  = "10.0.0.1"
	guestAddress = "10.0.0.5"
	tapName      = "ledger0"
)

func needTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
}

// run runs a command to its end and returns what it wrote. A test that has a network namespace
// calls it from the goroutine that entered it.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// network moves the test's goroutine into a network namespace of its own, with a tap in it for the
// guest. Nothing has to be taken down: the thread ends with the test, and the namespace with it.
func network(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and taps")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	}
	needTools(t, "ip")
	runtime.LockOSThread() // and never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs a network namespace: %v", err)
	}
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "tuntap", "add", "dev", tapName, "mode", "tap")
	run(t, "ip", "address", "add", hostAddress+"/24", "dev", tapName)
	run(t, "ip", "link", "set", tapName, "up")
}

var hosted struct {
	sync.Once
	dir string
	err error
	out []byte
}

// hostedPrograms builds the hosted programs, once for all tests, and returns their folder.
func hostedPrograms(t *testing.T) string {
	t.Helper()
	needTools(t, "gcc", "make")
	hosted.Do(func() {
		if hosted.dir, hosted.err = os.MkdirTemp("", "ledger-test-"); hosted.err == nil {
			hosted.out, hosted.err = exec.Command("make", "host", "OUT="+hosted.dir).CombinedOutput()
		}
	})
	if hosted.err != nil {
		if bytes.Contains(hosted.out, []byte("cannot find -lasan")) || bytes.Contains(hosted.out, []byte("cannot find libasan")) {
			t.Skip("needs gcc's address sanitizer")
		}
		t.Fatalf("build the hosted programs: %v\n%s", hosted.err, hosted.out)
	}
	return hosted.dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if hosted.dir != "" {
		os.RemoveAll(hosted.dir)
	}
	os.Exit(code)
}

// watcher collects output and wakes whoever waits for a word in it.
type watcher struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newWatcher() *watcher { return &watcher{more: make(chan struct{})} }

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	close(w.more)
	w.more = make(chan struct{})
	return len(p), nil
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

func (w *watcher) wait(t *testing.T, word string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		w.mu.Lock()
		found, more := strings.Contains(w.text.String(), word), w.more
		w.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("no %q in: %s", word, w)
		}
	}
}

// startHosted runs ledger-host on the namespace's tap until the returned function is called,
// which fails the test when a sanitizer has found something.
func startHosted(t *testing.T, disk, options string) (stop func()) {
	t.Helper()
	out := newWatcher()
	cmd := exec.Command(filepath.Join(hostedPrograms(t), "ledger-host"), tapName, disk, "ip="+guestAddress+"/24 "+options)
	cmd.Stdout, cmd.Stderr = out, out
	// The child dies with the test's thread: no stray process after a panic.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
		if text := out.String(); strings.Contains(text, "ERROR") || strings.Contains(text, "runtime error") || strings.Contains(text, "panic") {
			t.Errorf("ledger-host: %s", text)
		}
	})
	t.Cleanup(stop)
	out.wait(t, "ready")
	return stop
}

func emptyDisk(t *testing.T, bytes int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(bytes); err != nil {
		t.Fatal(err)
	}
	return path
}

func cli(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimRight(run(t, "redis-cli", append([]string{"-h", guestAddress}, args...)...), "\n")
}

// benchmark runs redis-benchmark and fails unless every test in tests has a result.
func benchmark(t *testing.T, tests string, args ...string) {
	t.Helper()
	out := run(t, "redis-benchmark", append([]string{"-h", guestAddress, "-t", tests, "--csv"}, args...)...)
	for _, name := range strings.Split(tests, ",") {
		if !strings.Contains(out, `"`+strings.ToUpper(name)) {
			t.Errorf("redis-benchmark has no result for %s:\n%s", name, out)
		}
	}
	if strings.Contains(strings.ToLower(out), "error") {
		t.Errorf("redis-benchmark: %s", out)
	}
	t.Log(out)
}

// info reads one number of INFO.
func info(t *testing.T, name string) (v int64) {
	t.Helper()
	for line := range strings.Lines(cli(t, "INFO")) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil && err != io.EOF {
				t.Fatalf("INFO %s: %q", name, rest)
			}
			return v
		}
	}
	t.Fatalf("INFO has no %s", name)
	return 0
}
