package shim

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mount mounts an empty file system until the test ends. Where there is no FUSE the test is skipped. The
// files must not be mapped into the memory of this process: see Record.
func Mount(t *testing.T) (*FS, string) { return mount(t, true) }

func mount(t *testing.T, direct bool) (*FS, string) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs fuse: %v", err)
	}
	f.Close()
	sys, dir := newFS(direct), filepath.Join(t.TempDir(), "shim")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	srv, err := fuse.NewServer(sys, dir, &fuse.MountOptions{
		FsName: "pollux-test", Name: "shim", DirectMountStrict: true, DisableXAttrs: true, MaxWrite: 1 << 20, DisableReadDirPlus: true,
	})
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("needs fuse: %v", err)
	}
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	go srv.Serve()
	t.Cleanup(func() {
		sys.Break(nil)
		// Detached: a file that a failing test has left open must not keep the next from running.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	if err := srv.WaitMount(); err != nil {
		t.Fatalf("mount: %v", err)
	}
	// The first close tells the kernel that it need not ask at any other (FS.Flush).
	if f, err = os.Open(filepath.Join(dir, noteName)); err != nil {
		t.Fatalf("mount: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatalf("mount: %v", err)
	}
	return sys, dir
}

const (
	dirEnv = "POLLUX_SHIM_DIR"
	// recordLimit bounds a recorded run; its length decides no verdict.
	recordLimit = 2 * time.Minute
)

// Record runs script in a process of its own, on an empty file system, and returns what it did there. Of its
// own, because a page fault on a mapped file can't be answered by the process that waits for it. The process
// is this test again: whatever comes before Record in a test runs in both.
//
// note puts a word onto the tape, after what was done before and before all that comes later.
func Record(t *testing.T, script func(dir string, note func(string)) error) Tape {
	t.Helper()
	if dir := os.Getenv(dirEnv); dir != "" {
		perform(dir, script)
	}
	sys, dir := mount(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), recordLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), dirEnv+"="+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		t.Fatalf("the recorded run: %v\n%s", err, out.String())
	}
	tape := sys.Tape()
	if len(tape) == 0 {
		t.Fatalf("the recorded run did nothing\n%s", out.String())
	}
	return tape
}

// perform runs the script and ends the process.
func perform(dir string, script func(string, func(string)) error) {
	notes, err := os.OpenFile(filepath.Join(dir, noteName), os.O_WRONLY, 0)
	if err == nil {
		err = script(dir, func(s string) {
			if _, err := notes.WriteString(s); err != nil {
				panic(err)
			}
		})
	}
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// Scratch is an empty directory for images, in memory where there is a place for that.
func Scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pollux-crash-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
