package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays all the parts: the program whose session it is, the keepers and what runs
// on the machines.
const (
	scenarioVariable = "LAB_TEST_SCENARIO"
	dirVariable      = "LAB_TEST_DIR"
)

func TestMain(m *testing.M) {
	KeeperCommand = []string{"keeper"}
	scenario := os.Getenv(scenarioVariable)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "keeper":
		err = Keep(os.Stdin, os.Stdout)
	case len(os.Args) > 1 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) > 1 && os.Args[1] == "orphan": // leave a server behind
		err = exec.Command(Program, "serve", os.Args[2]).Start()
	case len(os.Args) > 1 && os.Args[1] == "ask":
		err = askOnce(os.Args[2])
	case InSession():
		err = scenarios[scenario](ctx)
	case scenario != "":
		var code int
		if code, err = Isolate(ctx); err == nil {
			os.Exit(code)
		}
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve answers every line with "yes".
func serve(address string) error {
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			for r := bufio.NewReader(c); ; {
				if _, err := r.ReadString('\n'); err != nil {
					return
				}
				io.WriteString(c, "yes\n")
			}
		}()
	}
}

func askOnce(address string) error {
	deadline := time.Now().Add(patience)
	for {
		c, err := net.DialTimeout("tcp4", address, time.Second)
		if err == nil {
			defer c.Close()
			return ask(c, time.Now().Add(patience))
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond) // nothing tells when the other machine listens
	}
}

// ask asks the server and wants its answer before the deadline.
func ask(c net.Conn, deadline time.Time) error {
	if _, err := io.WriteString(c, "well?\n"); err != nil {
		return err
	}
	return answer(c, deadline)
}

func answer(c net.Conn, deadline time.Time) error {
	c.SetReadDeadline(deadline)
	b := make([]byte, 4)
	_, err := io.ReadFull(c, b)
	return err
}

var scenarios = map[string]func(context.Context) error{
	"links":  links,
	"faults": faults,
	"hold":   hold,
}

// build makes a lab of two machines.
func build() (l *Lab, a, b *Machine, err error) {
	if l, err = New(os.Getenv(dirVariable)); err != nil {
		return
	}
	if a, err = l.AddMachine("a", 1, LAN, Cluster, Replication); err != nil {
		return
	}
	if b, err = l.AddMachine("b", 2, LAN, Cluster, Replication); err != nil {
		return
	}
	if err = a.PowerOn(); err != nil {
		return
	}
	err = b.PowerOn()
	return
}

func links(ctx context.Context) error {
	l, a, b, err := build()
	if err != nil {
		return err
	}
	defer l.Close()
	for _, address := range []string{"10.77.0.1:900", "10.77.1.1:900", "10.77.2.1:900"} {
		if _, err := a.Run("serve.log", Program, "serve", address); err != nil {
			return err
		}
		if _, err := b.Exec(ctx, "", Program, "ask", address); err != nil {
			return fmt.Errorf("b to a: %w", err)
		}
	}
	if _, err := l.Dial(ctx, "10.77.1.1:900"); err == nil {
		return errors.New("clients reach the cluster's network")
	}
	c, err := l.Dial(ctx, "10.77.0.1:900")
	if err != nil {
		return err
	}
	defer c.Close()
	for _, how := range []Cut{Silent, Unplugged} {
		if err := ask(c, time.Now().Add(patience)); err != nil {
			return fmt.Errorf("before the %s cut: %w", how, err)
		}
		if err := a.Cut(how, LAN); err != nil {
			return err
		}
		// The answer can't come while the cable is cut, however long one waits.
		if err := ask(c, time.Now().Add(300*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("through a cable with a %s cut: %w", how, err)
		}
		if _, err := b.Exec(ctx, "", Program, "ask", "10.77.2.1:900"); err != nil {
			return fmt.Errorf("the other networks after the %s cut: %w", how, err)
		}
		if err := a.Mend(LAN); err != nil {
			return err
		}
		if err := answer(c, time.Now().Add(patience)); err != nil {
			return fmt.Errorf("after the %s cut was mended: %w", how, err)
		}
	}
	return nil
}

func faults(ctx context.Context) error {
	l, a, _, err := build()
	if err != nil {
		return err
	}
	defer l.Close()
	const address = "10.77.0.1:901"
	first, err := a.Run("serve.log", Program, "serve", address)
	if err != nil {
		return err
	}
	if _, err := a.Exec(ctx, "", Program, "ask", address); err != nil {
		return err
	}
	if _, err := a.Run("serve.log", "/nonexistent/program"); err == nil {
		return errors.New("a program that isn't there was started")
	}

	// Frozen, it doesn't answer, and goes on afterwards.
	c, err := l.Dial(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := a.Freeze(ctx); err != nil {
		return err
	}
	if err := ask(c, time.Now().Add(200*time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("a frozen machine answers: %w", err)
	}
	if err := a.Thaw(); err != nil {
		return err
	}
	if err := answer(c, time.Now().Add(patience)); err != nil {
		return fmt.Errorf("a thawed machine: %w", err)
	}

	// One process is killed, the machine goes on.
	processes, err := a.Processes()
	if err != nil || len(processes) != 2 || processes[0].Own != 1 || processes[1].Argv[1] != "serve" {
		return fmt.Errorf("processes: %+v, %w", processes, err)
	}
	if err := a.Kill(ctx, processes[1].Own); err != nil {
		return err
	}
	if how := first.Ended(); how != "signal SIGKILL" {
		return fmt.Errorf("the killed process: %s", how)
	}

	// An orphan falls to the keeper; the power cut takes it too.
	parent, err := a.Run("orphan.log", Program, "orphan", address)
	if err != nil {
		return err
	}
	if how := parent.Ended(); how != "exit status 0" {
		return fmt.Errorf("the orphan's parent: %s", how)
	}
	if _, err := a.Exec(ctx, "", Program, "ask", address); err != nil {
		return fmt.Errorf("the orphan: %w", err)
	}
	task, err := a.Run("serve.log", Program, "serve", "10.77.0.1:902")
	if err != nil {
		return err
	}
	if err := a.PowerOff(); err != nil {
		return err
	}
	task.Ended()
	if _, err := a.Run("serve.log", Program, "serve", address); err == nil {
		return errors.New("a program was started without power")
	}
	if err := a.PowerOn(); err != nil {
		return err
	}
	if processes, err := a.Processes(); err != nil || len(processes) != 1 {
		return fmt.Errorf("after a power cut: %+v, %w", processes, err)
	}
	if _, err := a.Run("serve.log", Program, "serve", address); err != nil {
		return err
	}
	_, err = a.Exec(ctx, "", Program, "ask", address)
	return err
}

// hold waits to be ended, with processes of all kinds running.
func hold(ctx context.Context) error {
	d, err := NewDir(os.Getenv(dirVariable))
	if err != nil {
		return err
	}
	defer d.Remove()
	os.Setenv(dirVariable, d.Path)
	l, a, _, err := build()
	if err != nil {
		return err
	}
	defer l.Close()
	marker := filepath.Base(os.Getenv("LAB_TEST_MARKER"))
	for _, address := range []string{"10.77.0.1:903", "10.77.0.1:904"} {
		if _, err := a.Run("log", Program, "serve", address, marker); err != nil {
			return err
		}
	}
	client := exec.Command(Program, "serve", "10.77.0.100:905", marker)
	if err := l.StartClient(client); err != nil {
		return err
	}
	fmt.Println("ready", d.Path)
	<-ctx.Done()
	return nil
}

// session runs a scenario in a session of its own.
func session(t *testing.T, scenario, dir string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, bridges and cables")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), scenarioVariable+"="+scenario, dirVariable+"="+dir, "LAB_TEST_MARKER="+t.Name())
	cmd.Stderr = os.Stderr
	return cmd
}

// shortDir is a directory with a path short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestLinks(t *testing.T) {
	if err := session(t, "links", shortDir(t)).Run(); err != nil {
		t.Error(err)
	}
}

func TestFaults(t *testing.T) {
	if err := session(t, "faults", shortDir(t)).Run(); err != nil {
		t.Error(err)
	}
}

// However the program ends, nothing of its session is left.
func TestNothingIsLeft(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		t.Run(unix.SignalName(s), func(t *testing.T) {
			parent := shortDir(t)
			cmd := session(t, "hold", parent)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			var dir string
			if _, err2 := fmt.Sscanf(line, "ready %s", &dir); err != nil || err2 != nil {
				t.Fatalf("the session says %q, %v", line, err)
			}
			if n := len(marked(t)); n != 3 {
				t.Fatalf("%d processes run, want 3", n)
			}
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			// The program's end is not quite the end of the last process.
			for deadline := time.Now().Add(patience); len(marked(t)) > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("processes are left: %v", marked(t))
				}
			}
			if s != unix.SIGKILL {
				if _, err := os.Stat(dir); err == nil {
					t.Errorf("%s is left", dir)
				}
				return
			}
			// A killed session can't remove its directory; the next one does. A process that ends has lost
			// its memory, and with it its mark, before its files.
			lock, err := os.Open(filepath.Join(dir, lockName))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
			lock.Close()
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
			next, err := NewDir(parent)
			if err != nil {
				t.Fatal(err)
			}
			defer next.Remove()
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s is left after the next session's start", dir)
			}
		})
	}
}

// marked lists the processes that carry this test's name.
func marked(t *testing.T) []string {
	t.Helper()
	marker := filepath.Base(t.Name())
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasSuffix(string(b), marker+"\x00") {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

func TestDirOfALivingSessionStays(t *testing.T) {
	parent := shortDir(t)
	first, err := NewDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(first.Path, old, old); err != nil {
		t.Fatal(err)
	}
	second, err := NewDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(first.Path); err != nil {
		t.Errorf("a living session's directory is gone: %v", err)
	}
	if err := second.Remove(); err != nil {
		t.Error(err)
	}
	kept, err := first.Keep()
	if err != nil || !strings.Contains(kept, "pollux-failed-") {
		t.Errorf("kept as %q: %v", kept, err)
	}
}

func TestDirMustBeShort(t *testing.T) {
	long := filepath.Join(shortDir(t), strings.Repeat("x", 60))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDir(long); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("%v", err)
	}
}
