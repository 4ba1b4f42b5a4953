package confine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run this program again, as a process that confines itself and then tries what one in a guest's hands would.

const (
	deedVariable   = "POLLUX_CONFINE_TEST_DEED"
	orderVariable  = "POLLUX_CONFINE_TEST_ORDER"
	testUser       = 1_900_000_077
	testGroup      = 1_900_000_000
	childTimeLimit = time.Minute
)

// childOrder is what a child is told.
type childOrder struct {
	Options
	Own, Foreign string // directories
	Chroot       string // a root that can't be pivoted away, as of a host that runs from its initial RAM file system
}

// childReport is what it answers.
type childReport struct {
	Report Report
	Error  string
	Failed map[string]string // what it tried, and how that failed; "": it did not
}

func TestMain(m *testing.M) {
	if deed := os.Getenv(deedVariable); deed != "" {
		child(deed)
		return
	}
	os.Exit(m.Run())
}

func child(deed string) {
	var o childOrder
	if err := json.Unmarshal([]byte(os.Getenv(orderVariable)), &o); err != nil {
		panic(err)
	}
	if o.Chroot != "" {
		if err := errors.Join(unix.Chroot(o.Chroot), unix.Chdir("/")); err != nil {
			panic(err)
		}
	}
	// Threads that are there already, waiting in the kernel and locked to their goroutines.
	var ready sync.WaitGroup
	for range 4 {
		ready.Add(1)
		go func() {
			runtime.LockOSThread()
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				panic(err)
			}
			ready.Done()
			for {
				unix.Read(p[0], make([]byte, 1)) // an interruption ends it, never data
			}
		}()
	}
	ready.Wait()
	r, err := Apply(o.Options)
	answer := childReport{Report: r, Failed: map[string]string{}}
	if err != nil {
		answer.Error = err.Error()
	}
	deeds[deed](o, &answer)
	b, _ := json.Marshal(answer)
	os.Stdout.Write(b)
}

// try notes how something failed.
func (r *childReport) try(what string, err error) {
	r.Failed[what] = ""
	if err != nil {
		r.Failed[what] = err.Error()
	}
}

func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, e := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
		return e
	}
	return nil
}

var deeds = map[string]func(childOrder, *childReport){
	"look around": func(o childOrder, r *childReport) {
		open := func(path string, flags int) error {
			f, err := os.OpenFile(path, flags, 0o600)
			if err == nil {
				f.Close()
			}
			return err
		}
		r.try("read its own file", open(filepath.Join(o.Own, "disk"), os.O_RDONLY))
		r.try("make a file", open(filepath.Join(o.Own, "mark"), os.O_RDWR|os.O_CREATE|os.O_EXCL))
		r.try("read a certificate", open(filepath.Join(o.Own, "certificate"), os.O_RDONLY))
		r.try("write root's file", open(filepath.Join(o.Own, "root"), os.O_WRONLY))
		r.try("replace root's file", os.Rename(filepath.Join(o.Own, "mark"), filepath.Join(o.Own, "root")))
		r.try("read another's disk", open(filepath.Join(o.Foreign, "disk"), os.O_RDONLY))
		r.try("read another's disk by a link", errors.Join(os.Symlink(filepath.Join(o.Foreign, "disk"), filepath.Join(o.Own, "link")), open(filepath.Join(o.Own, "link"), os.O_RDONLY)))
		r.try("climb", open("../../../../../../../../etc/passwd", os.O_RDONLY))
		r.try("open /dev/kvm", open("/dev/kvm", os.O_RDWR))
		r.try("open /proc", open("/proc/self/mem", os.O_RDWR))
		r.try("make a file in the root", open("/file", os.O_RDWR|os.O_CREATE))
		r.try("open a device", open(filepath.Join(o.Own, "null"), os.O_RDONLY))
		r.try("signal its parent", unix.Kill(unix.Getppid(), 0))
		r.try("start a process", call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)))
		_, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		r.try("open a local socket", err)
		_, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0)
		r.try("open a netlink socket", err)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		r.try("listen", errors.Join(err, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 1)))
		_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		r.try("map code", err)
		r.try("raise a limit", unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 19, Max: 1 << 19}, nil))
	},
	// The state of every thread, as the kernel has it: a capability that one of them kept would be everybody's.
	"wait": func(_ childOrder, r *childReport) {
		b, _ := json.Marshal(r)
		os.Stdout.Write(append(b, '\n'))
		go func() {
			// A thread that is made afterwards.
			runtime.LockOSThread()
			select {}
		}()
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	},
	"exec":       func(childOrder, *childReport) { call(unix.SYS_EXECVE) },
	"execveat":   func(childOrder, *childReport) { call(unix.SYS_EXECVEAT) },
	"ptrace":     func(childOrder, *childReport) { call(unix.SYS_PTRACE, unix.PTRACE_TRACEME) },
	"mount":      func(childOrder, *childReport) { call(unix.SYS_MOUNT) },
	"unshare":    func(childOrder, *childReport) { call(unix.SYS_UNSHARE) },
	"setns":      func(childOrder, *childReport) { call(unix.SYS_SETNS, ^uintptr(0)) },
	"bpf":        func(childOrder, *childReport) { call(unix.SYS_BPF, ^uintptr(0)) },
	"io_uring":   func(childOrder, *childReport) { call(unix.SYS_IO_URING_SETUP) },
	"setuid":     func(childOrder, *childReport) { call(unix.SYS_SETUID) },
	"unexpected": func(_ childOrder, r *childReport) { r.try("an unexpected call", call(unix.SYS_GETPGID)) },
	"work":       work,
}

// work is what the Go runtime and the packages under a data-plane process do in ordinary life.
func work(o childOrder, r *childReport) {
	var wg sync.WaitGroup
	for range 64 { // threads, collections, timers
		wg.Go(func() {
			runtime.LockOSThread()
			b := make([]byte, 1<<20)
			b[len(b)-1] = 1
			runtime.GC()
			time.Sleep(time.Millisecond)
		})
	}
	wg.Wait()
	name := filepath.Join(o.Own, "work")
	f, err := os.OpenFile(name+".tmp", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	r.try("make", err)
	if err == nil {
		_, err = f.WriteAt([]byte("x"), 8192)
		r.try("write", errors.Join(err, f.Sync(), unix.Fdatasync(int(f.Fd())), f.Truncate(4096), f.Chmod(0o600),
			unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 8192), f.Close()))
	}
	r.try("rename", os.Rename(name+".tmp", name))
	d, err := os.Open(o.Own)
	r.try("open a directory", err)
	if err == nil {
		_, err = d.ReadDir(-1)
		r.try("sync a directory", errors.Join(err, d.Sync(), d.Close()))
	}
	_, err = os.ReadFile(name)
	r.try("read", err)
	r.try("remove", os.Remove(name))
	// Not with package net, which would bring cgo in where there is a C compiler.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	r.try("make a socket", err)
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}})
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENETUNREACH) { // the way out is open, nobody is there
		err = nil
	}
	r.try("connect", errors.Join(err, unix.Close(fd)))
	fd, err = unix.MemfdCreate("page", unix.MFD_CLOEXEC)
	r.try("make memory", err)
	unix.Close(fd)
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	r.try("make an event", err)
	unix.Close(fd)
	var cpus unix.CPUSet
	r.try("pin a thread", errors.Join(unix.SchedGetaffinity(0, &cpus), unix.SchedSetaffinity(0, &cpus)))
	r.try("kick a thread", unix.Tgkill(unix.Getpid(), unix.Gettid(), 0))
}

// place makes two guests' directories and the options to confine the first one's process to its own.
func place(t *testing.T) childOrder {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives away a file, mounts, and becomes another user")
	}
	// Not t.TempDir, whose parents only root may enter: what a process can't reach must be out of reach for another reason.
	dir, err := os.MkdirTemp("", "pollux-confine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := childOrder{Own: filepath.Join(dir, "own"), Foreign: filepath.Join(dir, "foreign")}
	o.User, o.Groups, o.Root = testUser, []int{testGroup}, filepath.Join(dir, "root")
	o.Dirs = []Dir{{Path: o.Own, Writable: true}}
	for path, mode := range map[string]os.FileMode{dir: 0o755, o.Own: 0o770 | os.ModeSticky, o.Foreign: 0o777, o.Root: 0o700} {
		if err := errors.Join(os.MkdirAll(path, 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for path, mode := range map[string]os.FileMode{
		filepath.Join(o.Own, "disk"): 0o640, filepath.Join(o.Own, "certificate"): 0o640, filepath.Join(o.Own, "root"): 0o600, filepath.Join(o.Foreign, "disk"): 0o666,
	} {
		if err := errors.Join(os.WriteFile(path, []byte("x"), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Chown(o.Own, 0, testUser), os.Chown(filepath.Join(o.Own, "disk"), 0, testUser), os.Chown(filepath.Join(o.Own, "certificate"), 0, testGroup),
		unix.Mknod(filepath.Join(o.Own, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Chmod(filepath.Join(o.Own, "null"), 0o666),
	); err != nil {
		t.Skipf("needs a file system with owners and devices: %v", err)
	}
	return o
}

// start prepares a child.
func start(t *testing.T, deed string, o childOrder) *exec.Cmd {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), childTimeLimit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), deedVariable+"="+deed, orderVariable+"="+string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	return cmd
}

// does has a child do something and returns its report.
func does(t *testing.T, deed string, o childOrder) childReport {
	t.Helper()
	cmd := start(t, deed, o)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("needs namespaces: %v", err)
		}
		t.Fatalf("%s: %v\n%s", deed, err, &errs)
	}
	var r childReport
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%s: %v: %s", deed, err, &out)
	}
	whole(t, r)
	return r
}

// whole skips the test where Go can't confine this program, and fails it where anything else is missing.
func whole(t *testing.T, r childReport) {
	t.Helper()
	if strings.Contains(r.Report.Gaps(), "cgo") {
		t.Skip("needs a program without cgo (the race detector brings it)")
	}
	if r.Error != "" || r.Report.Err() != nil {
		t.Fatalf("%s, %v", r.Error, r.Report.Err())
	}
}

func TestWhatIsOutOfReach(t *testing.T) {
	r := does(t, "look around", place(t))
	allowed := []string{"read its own file", "make a file", "read a certificate"}
	for what, failed := range r.Failed {
		if may := slices.Contains(allowed, what); may && failed != "" {
			t.Errorf("it can't %s: %s", what, failed)
		} else if !may && failed == "" {
			t.Errorf("it can %s", what)
		} else if !may {
			t.Logf("%s: %s", what, failed)
		}
	}
	if len(r.Failed) < 18 {
		t.Errorf("only %d things were tried", len(r.Failed))
	}
}

// The user alone keeps a process from others' files, where it has no root of its own.
func TestOwnUserWithoutOwnFiles(t *testing.T) {
	o := place(t)
	o.Root, o.Without = "", "this test"
	if err := errors.Join(os.Chmod(o.Foreign, 0o770), os.Chown(o.Foreign, 0, testUser+1)); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, "look around", o)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r childReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.Report.Gaps(), "cgo") {
		t.Skip("needs a program without cgo (the race detector brings it)")
	}
	if len(r.Report.Missing) != 1 || r.Report.Missing[0] != (Lack{OwnFiles, "this test"}) {
		t.Errorf("missing: %v", r.Report.Gaps())
	}
	for _, what := range []string{"read another's disk", "read another's disk by a link", "write root's file", "open /dev/kvm", "make a file in the root"} {
		if r.Failed[what] == "" {
			t.Errorf("it can %s", what)
		}
	}
}

// A host that runs from its initial RAM file system can't pivot.
func TestRootThatCantBePivoted(t *testing.T) {
	o := place(t)
	dir := filepath.Dir(o.Own)
	o.Chroot = dir // not a mount point: pivot_root(2) says EINVAL, as for the initial file system
	o.Root, o.Own, o.Foreign = "/root", "/own", "/foreign"
	o.Dirs[0].Path = o.Own
	r := does(t, "look around", o)
	for _, what := range []string{"read another's disk", "read another's disk by a link", "climb", "open /dev/kvm"} {
		if r.Failed[what] == "" {
			t.Errorf("it can %s", what)
		}
	}
	if r.Failed["read its own file"] != "" {
		t.Error(r.Failed["read its own file"])
	}
}

func TestNoThreadKeepsARight(t *testing.T) {
	cmd := start(t, "wait", place(t))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs namespaces: %v", err)
	}
	defer cmd.Wait()
	defer in.Close()
	var r childReport
	if err := json.NewDecoder(out).Decode(&r); err != nil {
		t.Fatal(err)
	}
	whole(t, r)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	if err != nil || len(threads) < 5 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	id := fmt.Sprint(testUser)
	want := map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", "Uid": strings.Join([]string{id, id, id, id}, "\t"), "Gid": strings.Join([]string{id, id, id, id}, "\t"), "Groups": fmt.Sprint(testGroup),
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // the runtime has ended it
		}
		for _, line := range strings.Split(string(b), "\n") {
			key, value, _ := strings.Cut(line, ":")
			if w, ok := want[key]; ok && strings.TrimSpace(value) != w {
				t.Errorf("%s: %s is %q, want %q", path, key, strings.TrimSpace(value), w)
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(limits), "\n") {
		if strings.HasPrefix(line, "Max core file size") && !slices.Equal(strings.Fields(line)[4:6], []string{"0", "0"}) {
			t.Error(line)
		}
	}
}

// What could only be hostile ends the process.
func TestHostileCallsEndTheProcess(t *testing.T) {
	o := place(t)
	for _, deed := range []string{"exec", "execveat", "ptrace", "mount", "unshare", "setns", "bpf", "io_uring", "setuid"} {
		t.Run(deed, func(t *testing.T) { killed(t, deed, o) })
	}
}

func killed(t *testing.T, deed string, o childOrder) {
	t.Helper()
	does(t, "unexpected", withoutKill(o)) // or skip
	cmd := start(t, deed, o)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("it lives on: %v, %s", err, out)
	}
	if s := exit.Sys().(syscall.WaitStatus); !s.Signaled() || s.Signal() != unix.SIGSYS {
		t.Errorf("it ended with %v, want SIGSYS: %s", exit, exit.Stderr)
	}
}

func withoutKill(o childOrder) childOrder {
	o.Kill = false
	return o
}

// What is merely unexpected fails, and ends the process only where that is wanted.
func TestUnexpectedCalls(t *testing.T) {
	o := place(t)
	if r := does(t, "unexpected", o); r.Failed["an unexpected call"] != unix.EPERM.Error() {
		t.Errorf("it ended in %q, want EPERM", r.Failed["an unexpected call"])
	}
	o.Kill = true
	killed(t, "unexpected", o)
}

// Ordinary life goes on where every call that is not on the list ends the process.
func TestOrdinaryLife(t *testing.T) {
	o := place(t)
	o.Kill = true
	for what, failed := range does(t, "work", o).Failed {
		if failed != "" {
			t.Errorf("%s: %s", what, failed)
		}
	}
}

// A machine that can't do something says what, and does the rest.
func TestWhatIsMissingIsNamed(t *testing.T) {
	o := place(t)
	o.Root, o.Without, o.User, o.WithoutUser = "", "no mounts", 0, "no user"
	cmd := start(t, "unexpected", o)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r childReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.Report.Gaps(), "cgo") {
		t.Skip("needs a program without cgo (the race detector brings it)")
	}
	if got, want := r.Report.Gaps(), "own-files (no mounts), own-user (no user)"; got != want {
		t.Errorf("missing %q, want %q", got, want)
	}
	if r.Report.Err() == nil || r.Failed["an unexpected call"] == "" {
		t.Errorf("%v, %v", r.Report.Err(), r.Failed)
	}
}
