package audit

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func logPath(t testing.TB) string { return filepath.Join(t.TempDir(), "events.jsonl") }

func mustOpen(t testing.TB, path string) *Log {
	t.Helper()
	l, err := Open(path, "host-a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustAppend(t testing.TB, l *Log, events ...Event) {
	t.Helper()
	for _, e := range events {
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

func readAll(t testing.TB, path string, f Filter) []Event {
	t.Helper()
	var events []Event
	for e, err := range Read(path, f) {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

func TestWhatIsAppendedCanBeReadAndVerified(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, path)
	mustAppend(t, l,
		Event{Kind: DaemonStart, Actor: "daemon", Detail: map[string]any{"version": "1"}},
		Event{Kind: Protect, Guest: "db", Term: 3},
		Event{Kind: Takeover, Guest: "db", Term: 4, Actor: "dataplane", Detail: map[string]any{"reason": "<silence> & \"more\"\n", "epoch": 7}},
		Event{Kind: GoSolo, Guest: "web", Term: 9, Time: time.Date(2100, 1, 1, 1, 0, 0, 5, time.FixedZone("x", 3600))},
	)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, path)
	mustAppend(t, l, Event{Kind: DaemonStop})

	s, err := Verify(path)
	if err != nil {
		t.Fatal(err)
	}
	seq, hash := l.Head()
	if s.Events != 5 || seq != 5 || s.Head != hash {
		t.Errorf("summary %+v, head %d %s", s, seq, hash)
	}
	all := readAll(t, path, Filter{})
	if len(all) != 5 || all[2].Detail["reason"] != "<silence> & \"more\"\n" || all[2].Host != "host-a" || all[2].Term != 4 {
		t.Errorf("read %+v", all)
	}
	for _, c := range []struct {
		name string
		f    Filter
		want []Kind
	}{
		{"guest", Filter{Guest: "db"}, []Kind{Protect, Takeover}},
		{"kinds", Filter{Kinds: []Kind{DaemonStop, GoSolo}}, []Kind{GoSolo, DaemonStop}},
		{"since", Filter{Since: time.Date(2100, 1, 1, 0, 0, 0, 5, time.UTC)}, []Kind{GoSolo}},
		{"after", Filter{Since: time.Date(2100, 1, 1, 0, 0, 0, 6, time.UTC)}, nil},
	} {
		got := readAll(t, path, c.f)
		if len(got) != len(c.want) {
			t.Errorf("%s: %d events, want %d", c.name, len(got), len(c.want))
			continue
		}
		for i, k := range c.want {
			if got[i].Kind != k {
				t.Errorf("%s: event %d is %s, want %s", c.name, i, got[i].Kind, k)
			}
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, path)
	for name, e := range map[string]Event{
		"no kind":      {Guest: "db"},
		"too long":     {Kind: Fault, Detail: map[string]any{"what": strings.Repeat("x", MaxLine)}},
		"not for JSON": {Kind: Fault, Detail: map[string]any{"what": make(chan int)}},
	} {
		if err := l.Append(t.Context(), e); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
	mustAppend(t, l, Event{Kind: Fault})
	if s, err := Verify(path); err != nil || s.Events != 1 {
		t.Errorf("after the refusals: %+v, %v", s, err)
	}
	l.Close()
	if err := l.Append(t.Context(), Event{Kind: Fault}); !errors.Is(err, ErrClosed) {
		t.Errorf("append to a closed log: %v", err)
	}
}

func TestLogMovedOrCutUnderAWriter(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, path)
	mustAppend(t, l, Event{Kind: Fault}, Event{Kind: Fault})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Event{Kind: Fault}); err == nil {
		t.Error("a log that was moved away is still written to")
	}
	if err := os.Rename(path+".1", path); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, Event{Kind: Fault})
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Event{Kind: Fault}); err == nil || !strings.Contains(err.Error(), "shrunk") {
		t.Errorf("a log that was cut is still written to: %v", err)
	}
}

func TestSeveralWritersInOneProcess(t *testing.T) {
	path := logPath(t)
	logs := []*Log{mustOpen(t, path), mustOpen(t, path), mustOpen(t, path)}
	var wg sync.WaitGroup
	const each = 20
	for i := range 6 {
		wg.Go(func() {
			for range each {
				if err := logs[i%3].Append(t.Context(), Event{Kind: RoleChange, Term: uint64(i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s, err := Verify(path); err != nil || s.Events != 6*each {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestAppendGivesUpWithItsContext(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, path)
	other, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Append(ctx, Event{Kind: Fault}); !errors.Is(err, context.Canceled) {
		t.Errorf("append to a locked log: %v, want context.Canceled", err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, Event{Kind: Heal})
	if all := readAll(t, path, Filter{}); len(all) != 1 || all[0].Kind != Heal {
		t.Errorf("read %+v, want the second event only", all)
	}
}

// failing is a file of which some operations fail.
type failing struct {
	*os.File
	write    func(p []byte, at int64) (int, error)
	sync     func() error
	truncate func(int64) error
}

func (f *failing) WriteAt(p []byte, at int64) (int, error) {
	if f.write != nil {
		return f.write(p, at)
	}
	return f.File.WriteAt(p, at)
}

func (f *failing) Sync() error {
	if f.sync != nil {
		return f.sync()
	}
	return f.File.Sync()
}

func (f *failing) Truncate(n int64) error {
	if f.truncate != nil {
		return f.truncate(n)
	}
	return f.File.Truncate(n)
}

func (f *failing) Stat() (fs.FileInfo, error) { return f.File.Stat() }

func openFailing(t *testing.T, path string) (*Log, *failing) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ff := &failing{File: f}
	l, err := open(ff, path, "host-a", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, ff
}

func TestDiskFull(t *testing.T) {
	path := logPath(t)
	l, f := openFailing(t, path)
	mustAppend(t, l, Event{Kind: DaemonStart})
	f.write = func(p []byte, at int64) (int, error) {
		n, err := f.File.WriteAt(p[:len(p)/2], at)
		return n, errors.Join(err, unix.ENOSPC)
	}
	err := l.Append(t.Context(), Event{Kind: Takeover})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Fatalf("error %v", err)
	}
	if s, err := Verify(path); err != nil || s.Events != 1 {
		t.Errorf("after the failure: %+v, %v", s, err)
	}
	f.write = nil
	mustAppend(t, l, Event{Kind: Takeover})
	if s, err := Verify(path); err != nil || s.Events != 2 {
		t.Errorf("with room again: %+v, %v", s, err)
	}
}

func TestFsyncFailureEndsTheLog(t *testing.T) {
	path := logPath(t)
	l, f := openFailing(t, path)
	mustAppend(t, l, Event{Kind: DaemonStart})
	f.sync = func() error { return unix.EIO }
	if err := l.Append(t.Context(), Event{Kind: Takeover}); !errors.Is(err, unix.EIO) {
		t.Fatalf("error %v", err)
	}
	f.sync = nil
	if err := l.Append(t.Context(), Event{Kind: Takeover}); err == nil {
		t.Error("a log whose disk failed is trusted again")
	}
	mustAppend(t, mustOpen(t, path), Event{Kind: DaemonStart})
	if s, err := Verify(path); err != nil || s.Events != 2 {
		t.Errorf("after a restart: %+v, %v", s, err)
	}
}

func TestOpenRefusesWhatIsNoLog(t *testing.T) {
	for name, content := range map[string]string{
		"text":             "hello\n",
		"text without \\n": "hello",
		"JSON":             `{"seq":1,"kind":"fault"}` + "\n",
		"huge line":        strings.Repeat("x", 4*MaxLine),
	} {
		path := logPath(t)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path, "a")
		var broken *Broken
		if !errors.As(err, &broken) {
			t.Errorf("%s: %v, want *Broken", name, err)
		}
		if b, _ := os.ReadFile(path); string(b) != content {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "no", "such", "dir"), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestFollowSeesNewEvents(t *testing.T) {
	path := logPath(t)
	l := mustOpen(t, path)
	mustAppend(t, l, Event{Kind: Fault, Guest: "db"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n := 0
	for e, err := range Follow(ctx, path, Filter{Guest: "db"}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if e.Seq != uint64(2*n-1) {
			t.Errorf("event %d has number %d", n, e.Seq)
		}
		if n == 3 {
			break
		}
		mustAppend(t, l, Event{Kind: Fault, Guest: "web"}, Event{Kind: Heal, Guest: "db"})
	}
	if n != 3 {
		t.Errorf("saw %d events, want 3", n)
	}
}
