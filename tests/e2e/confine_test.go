package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
)

// In every cluster of these tests a system call that guests' processes are not known to need ends the process: what the
// list has forgotten shows as a takeover that nobody ordered.
func init() { os.Setenv(demo.StrictVariable, "1") }

// The processes that hold guests are shut in, on both hosts, and can't reach another guest's disk.
func TestProcessesAreConfined(t *testing.T) {
	if !session(t) {
		return
	}
	stage := newStage(t)
	for _, host := range []string{"a", "b"} {
		// A disk of another guest's, as far as the file system goes.
		foreign := filepath.Join(stage.Lab.Dir, host, "state", "guests", "other", "disk0.raw")
		if err := errors.Join(os.MkdirAll(filepath.Dir(foreign), 0o777), os.WriteFile(foreign, []byte("secret"), 0o666)); err != nil {
			t.Fatal(err)
		}
		for _, p := range processesWith(t, filepath.Join(stage.Lab.Dir, host)+"/", "dataplane") {
			checkConfined(t, p, foreign, stage.Lab.Dir, host)
		}
		// The one that writes its events sees the log, and has no capabilities either.
		for _, p := range processesWith(t, filepath.Join(stage.Lab.Dir, host)+"/", "dataplane-events") {
			checkThreads(t, p, map[string]string{"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"})
			if _, err := os.Stat(filepath.Join(p, "root", "etc")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("host %s: the process for events sees /etc: %v", host, err)
			}
		}
	}
	if s := stage.Primary(); s == nil || s.Confinement != "full" {
		t.Errorf("the primary says: %+v", s)
	}
}

// processesWith finds the directories in /proc of processes that have a word among their arguments and work in dir.
func processesWith(t *testing.T, dir, word string) (found []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		b, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // it has just ended
		}
		args := strings.Split(string(b), "\x00")
		if slices.Contains(args, word) && strings.Contains(string(b), dir) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		t.Fatalf("no process %q works in %s", word, dir)
	}
	return found
}

func checkThreads(t *testing.T, proc string, want map[string]string) {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join(proc, "task", "*", "status"))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		for _, line := range strings.Split(string(b), "\n") {
			key, value, _ := strings.Cut(line, ":")
			if w, ok := want[key]; ok && strings.TrimSpace(value) != w {
				t.Errorf("%s: %s is %q, want %q", path, key, strings.TrimSpace(value), w)
			}
		}
	}
}

func checkConfined(t *testing.T, proc, foreign, lab, host string) {
	t.Helper()
	var id string
	b, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) == 5 && f[0] == "Uid:" {
			id = f[1]
		}
	}
	if id == "" || id == "0" {
		t.Errorf("%s: it runs as user %q", proc, id)
	}
	ids := strings.Join([]string{id, id, id, id}, "\t")
	checkThreads(t, proc, map[string]string{
		"Uid": ids, "Gid": ids, "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000",
		"CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	})
	// All that there is of the host, as the process sees it.
	root := filepath.Join(proc, "root")
	if _, err := os.Stat(filepath.Join(root, foreign)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: it sees another guest's disk: %v", proc, err)
	}
	seen := 0
	err = filepath.WalkDir(root+"/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside := strings.TrimPrefix(path, root)
		if d.IsDir() {
			return nil
		}
		seen++
		if !strings.HasPrefix(inside, filepath.Join(lab, host, "state", "guests", "ledger")+"/") && !strings.HasPrefix(inside, filepath.Join(lab, host, "run", "certificates")+"/") {
			t.Errorf("%s: it sees %s", proc, inside)
		}
		if strings.HasSuffix(inside, "ca.key") {
			t.Errorf("%s: it sees the key of the cluster's CA", proc)
		}
		return nil
	})
	if err != nil || seen < 4 {
		t.Errorf("%s: it sees %d files: %v", proc, seen, err)
	}
	// And all that it has open: devices, sockets, and files of its own.
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err != nil {
			continue // it has just been closed
		}
		// The devices' file system is out of sight: its names have lost their beginning.
		own := strings.Contains(to, "/guests/ledger") || strings.HasPrefix(to, "/dev/") || to == "/net/tun" || to == "/kvm" || strings.HasPrefix(to, "/sys/fs/cgroup/") || strings.HasPrefix(to, "/memfd:")
		if filepath.IsAbs(to) && !own {
			t.Errorf("%s: it has %s open", proc, to)
		}
	}
}
