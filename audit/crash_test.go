package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// writeLog puts content where a log is expected.
func writeLog(t *testing.T, content []byte) string {
	t.Helper()
	path := logPath(t)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkRepaired opens a log that ends in what a crash left of its line number seq, and checks that
// what was there before is intact, that the cut is logged with the bytes, and that writing goes on.
func checkRepaired(t *testing.T, path string, seq int, part string) {
	t.Helper()
	l := mustOpen(t, path)
	defer l.Close()
	mustAppend(t, l, Event{Kind: Heal})
	all := readAll(t, path, Filter{})
	if len(all) != seq+1 {
		t.Fatalf("%d events, want %d, a repair and one more", len(all), seq-1)
	}
	r := all[seq-1]
	if r.Kind != LogRepair || !strings.HasPrefix(part, r.Detail["text"].(string)) || len(part) != int(r.Detail["bytes"].(float64)) {
		t.Fatalf("repair event %+v, cut was %q", r, part)
	}
	if _, err := Verify(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + ".torn"); err == nil {
		t.Fatal("the file of the repair is still there")
	}
}

func TestCrashAtEveryByteOfTheLastRecord(t *testing.T) {
	_, lines := sample(t, 3)
	before := bytes.Join(lines[:2], nil)
	last := append(bytes.Clone(lines[2]), '\n')
	for n := 0; n <= len(last); n++ {
		path := writeLog(t, append(bytes.Clone(before), last[:n]...))
		switch n {
		case 0, len(last): // nothing to repair
			l := mustOpen(t, path)
			mustAppend(t, l, Event{Kind: Heal})
			want := map[int]uint64{0: 3, len(last): 4}[n]
			if s, err := Verify(path); err != nil || s.Events != want {
				t.Fatalf("%d bytes: %+v, %v, want %d events", n, s, err, want)
			}
		default:
			checkRepaired(t, path, 3, string(last[:n]))
		}
		// The same where the file system had made room for more than it wrote.
		if n < len(last) {
			zeros := strings.Repeat("\x00", len(last)-n)
			checkRepaired(t, writeLog(t, append(append(bytes.Clone(before), last[:n]...), zeros...)), 3, string(last[:n])+zeros)
		}
	}
}

func TestCrashInTheFirstRecord(t *testing.T) {
	_, lines := sample(t, 1)
	for _, n := range []int{1, 5, 30, len(lines[0])} {
		checkRepaired(t, writeLog(t, lines[0][:n]), 1, string(lines[0][:n]))
	}
}

// TestDamageIsNotTakenForACrash holds the repair to what it can prove: nothing is cut off here.
func TestDamageIsNotTakenForACrash(t *testing.T) {
	_, lines := sample(t, 3)
	before := string(bytes.Join(lines[:2], nil))
	last := string(lines[2]) + "\n"
	for name, tail := range map[string]string{
		"last line changed":              strings.Replace(last, "primary", "replica", 1),
		"zeros within the last line":     last[:50] + strings.Repeat("\x00", 50) + last[100:],
		"zeros, then a line end":         last[:50] + "\x00\x00\n",
		"part of another line's number":  strings.Replace(last, `"seq":3`, `"seq":4`, 1)[:60],
		"zeros before a part":            "\x00" + last[:50],
		"end without a line's beginning": last[30 : len(last)-1],
		"more than a line holds":         last[:50] + strings.Repeat(" ", MaxLine),
	} {
		path := writeLog(t, []byte(before+tail))
		_, err := Open(path, "a")
		var b *Broken
		if !errors.As(err, &b) {
			t.Errorf("%s: Open returned %v, want *Broken", name, err)
		}
		if now, _ := os.ReadFile(path); string(now) != before+tail {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

var errCrash = errors.New("crash")

// TestCrashInTheRepair stops a repair at each of its writes and syncs. Whatever the moment, a later one
// must finish it, and the cut bytes must be in the log.
func TestCrashInTheRepair(t *testing.T) {
	_, lines := sample(t, 3)
	before, part := bytes.Join(lines[:2], nil), string(lines[2][:120])
	for _, first := range []string{"truncate", "sync 1", "write", "half write", "sync 2", "truncate after"} {
		t.Run(first, func(t *testing.T) {
			path := writeLog(t, append(bytes.Clone(before), part...))
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			ff := &failing{File: f}
			syncs, dead := 0, false
			ff.truncate = func(n int64) error {
				if dead || first == "truncate" {
					dead = true
					return errCrash
				}
				return f.Truncate(n)
			}
			ff.write = func(p []byte, at int64) (int, error) {
				switch {
				case dead || first == "write":
					dead = true
					return 0, errCrash
				case first == "half write":
					dead = true
					f.WriteAt(p[:len(p)/2], at)
					return 0, errCrash
				}
				return f.WriteAt(p, at)
			}
			ff.sync = func() error {
				syncs++
				if dead || first == fmt.Sprintf("sync %d", syncs) {
					dead = true
					return errCrash
				}
				return nil
			}
			if first == "truncate after" {
				ff.sync = func() error { // the repair event is complete, its acknowledgement is not
					if syncs++; syncs == 2 {
						dead = true
						return errCrash
					}
					return nil
				}
			}
			if _, err := open(ff, path, "a", Limits{}); !errors.Is(err, errCrash) {
				t.Fatalf("the first repair: %v, want a crash", err)
			}
			l := mustOpen(t, path)
			mustAppend(t, l, Event{Kind: Heal})
			if _, err := Verify(path); err != nil {
				t.Fatal(err)
			}
			kept := false
			for _, e := range readAll(t, path, Filter{Kinds: []Kind{LogRepair}}) {
				kept = kept || strings.HasPrefix(e.Detail["text"].(string), part)
			}
			if !kept {
				t.Error("no event holds what was cut off")
			}
			if _, err := os.Stat(path + ".torn"); err == nil {
				t.Error("the file of the repair is still there")
			}
		})
	}
}

// TestWriterRepairsAfterAnother has one process die in the middle of an append while another one goes on.
func TestWriterRepairsAfterAnother(t *testing.T) {
	path, _ := sample(t, 2)
	l := mustOpen(t, path)
	mustAppend(t, l, Event{Kind: Fault})
	e := Event{Seq: 4, Kind: Fault, Prev: genesis}
	line, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(line[:50]); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, Event{Kind: Heal})
	all := readAll(t, path, Filter{})
	if len(all) != 5 || all[3].Kind != LogRepair || all[4].Kind != Heal {
		t.Errorf("events %+v", all)
	}
}

const childEnv = "POLLUX_AUDIT_TEST_CHILD"

// TestMain lets the test program be a writer of its own, until it is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		l, err := Open(path, "child")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		for {
			if err := l.Append(context.Background(), Event{Kind: RoleChange, Detail: map[string]any{"pid": os.Getpid()}}); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			fmt.Println("ok") // acknowledged
		}
	}
	os.Exit(m.Run())
}

// TestProcessesAreKilledWhileTheyWrite checks that every acknowledged event of several processes is in
// the log, whatever moment each was killed at.
func TestProcessesAreKilledWhileTheyWrite(t *testing.T) {
	path := logPath(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := 0
	for range 3 {
		wg.Go(func() {
			for range 3 {
				n, err := runChild(path)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				acked += n
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	mustAppend(t, mustOpen(t, path), Event{Kind: DaemonStart})
	s, err := Verify(path)
	if err != nil {
		t.Fatal(err)
	}
	events := len(readAll(t, path, Filter{Kinds: []Kind{RoleChange}}))
	// An event may be durable whose acknowledgement did not get out: one a killed process.
	if events < acked || events > acked+9 {
		t.Errorf("%d events acknowledged, %d in the log (%d lines)", acked, events, s.Events)
	}
}

// runChild runs a writer until it has acknowledged some events, kills it, and returns how many it had.
func runChild(path string) (int, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	limit := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer limit.Stop()
	n := 0
	b := make([]byte, 3)
	for {
		if _, err := out.Read(b); err != nil {
			break
		}
		if n++; n == 8 {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if n < 8 {
		return n, fmt.Errorf("the child ended after %d events: %s", n, errs.String())
	}
	return n, nil
}
