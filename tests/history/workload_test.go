package history

import (
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// record runs a workload of some thousand requests against a server, and judges it.
func record(t *testing.T, dial func(context.Context) (net.Conn, error)) (*Workload, Report) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w := &Workload{Dial: dial, Recorder: NewRecorder(), Prefix: "test", Seed: 1, OperationsPerGeneration: 1000}
	if err := w.Run(ctx, 4000); err != nil {
		t.Fatal(err)
	}
	if err := w.Verify(ctx); err != nil {
		t.Fatal(err)
	}
	return w, Check(w.Recorder.Operations(), time.Minute)
}

func TestHonestServer(t *testing.T) {
	w, report := record(t, newServer(t, misdeed{}).dial)
	if !report.Good() || report.Unanswered != 0 || w.Resets() != 0 || w.ServerErrors() != 0 {
		t.Errorf("an honest server is blamed: %+v, %v", report, w.Failures())
	}
	if report.Acknowledged < 1500 {
		t.Errorf("only %d writes in %d requests", report.Acknowledged, report.Operations)
	}
}

// Every misdeed must be found by the detector that is there for it, and by the linearizability
// check where it is one.
func TestMisdeedsAreFound(t *testing.T) {
	lost := func(r Report, _ *Workload) bool { return r.LostWrites > 0 && r.Linearizable == NotLinearizable }
	stale := func(r Report, _ *Workload) bool { return r.StaleReads > 0 && r.Linearizable == NotLinearizable }
	for _, c := range []struct {
		name  string
		wrong misdeed
		found func(Report, *Workload) bool
	}{
		{"lost set", misdeed{"SET", 400, "lose"}, stale},
		{"lost increment", misdeed{"INCR", 200, "lose"}, lost},
		{"lost append", misdeed{"APPEND", 200, "lose"}, lost},
		{"everything falls back", misdeed{"APPEND", 300, "forget"}, lost},
		{"stale read", misdeed{"GET", 601, "stale"}, stale},
		{"invented value", misdeed{"GET", 500, "corrupt"}, func(r Report, _ *Workload) bool {
			return r.CorruptReads > 0 && r.Linearizable == NotLinearizable
		}},
		{"increment applied twice", misdeed{"INCR", 200, "twice"}, func(r Report, _ *Workload) bool {
			return r.Linearizable == NotLinearizable
		}},
		{"append applied twice", misdeed{"APPEND", 200, "twice"}, func(r Report, _ *Workload) bool {
			return r.Duplicated > 0 && r.Linearizable == NotLinearizable
		}},
		{"reset before the effect", misdeed{"SET", 300, "reset"}, func(r Report, w *Workload) bool {
			return w.Resets() == 1 && r.Good() && r.Unanswered == 1
		}},
		{"reset after the effect", misdeed{"APPEND", 200, "reset-after"}, func(r Report, w *Workload) bool {
			return w.Resets() == 1 && r.Good() && r.Unanswered == 1
		}},
		{"error reply", misdeed{"SET", 300, "error"}, func(r Report, w *Workload) bool {
			return w.ServerErrors() == 1 && w.Resets() == 0 && r.Good()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// One misdeed may show nothing (a set that is lost just before another one), or show only
			// to the check that looks at everything at once. Then the next is tried.
			for n := range 100 {
				wrong := c.wrong
				wrong.at += 7 * (n % 30)
				w, report := record(t, newServer(t, wrong).dial)
				if c.found(report, w) {
					return
				}
			}
			t.Error("not found")
		})
	}
}

// Debian's own server is the reference for what the workload takes for granted.
func TestRedisServer(t *testing.T) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("needs redis-server: apt-get install redis-server")
	}
	socket := filepath.Join(t.TempDir(), "redis.sock")
	cmd := exec.Command(path, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w, report := record(t, func(context.Context) (net.Conn, error) {
		for {
			c, err := net.Dial("unix", socket)
			if err == nil || ctx.Err() != nil {
				return c, err
			}
			pause(ctx, 5*time.Millisecond)
		}
	})
	if !report.Good() || w.Resets() != 0 || w.ServerErrors() != 0 {
		t.Errorf("redis-server is blamed: %+v, %v", report, w.Failures())
	}
}

func TestRunFailsWithoutAServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	w := &Workload{Recorder: NewRecorder(), Dial: func(context.Context) (net.Conn, error) { return net.Dial("tcp", address) }}
	if err := w.Run(context.Background(), 10); err == nil {
		t.Error("a workload without a server ended well")
	}
}
