package dataplane

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/audit"
)

// newScribe is a scribe of guest "db" on host "a", in this process, and its log. over gets how it ended.
func newScribe(t *testing.T) (s *scribe, path string, over <-chan error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "events.jsonl")
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := serveEvents(theirs, path, "a", "db", func() error { return nil })
		theirs.Close()
		ended <- err
	}()
	s, err := converse(ours)
	if err != nil {
		t.Fatal(err)
	}
	return s, path, ended
}

func appendEvent(t *testing.T, s *scribe, e audit.Event) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	return s.Append(ctx, e)
}

// events reads a log.
func readEvents(t *testing.T, path string) (all []audit.Event) {
	t.Helper()
	if _, err := audit.Verify(path); err != nil {
		t.Fatal(err)
	}
	for e, err := range audit.Read(path, audit.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func TestScribeWritesInItsGuestsName(t *testing.T) {
	s, path, over := newScribe(t)
	err := appendEvent(t, s, audit.Event{
		Kind: audit.Takeover, Guest: "web", Actor: "root", Host: "b", Term: math.MaxUint64, Time: time.Unix(1, 0), Seq: 99, Prev: "x", Hash: "y",
		Detail: map[string]any{"epoch": uint64(math.MaxUint64), "reason": "<silence>"},
	})
	if err != nil {
		t.Fatal(err)
	}
	all := readEvents(t, path)
	if len(all) != 1 {
		t.Fatalf("%d events", len(all))
	}
	e := all[0]
	if e.Guest != "db" || e.Actor != actor || e.Host != "a" || e.Seq != 1 || e.Term != math.MaxUint64 || e.Time.Year() < 2000 || e.Detail["reason"] != "<silence>" {
		t.Errorf("%+v", e)
	}
	for _, kind := range []audit.Kind{audit.DaemonStart, audit.Fence, audit.Membership, audit.LogRepair, "something"} {
		if err := appendEvent(t, s, audit.Event{Kind: kind}); err == nil {
			t.Errorf("a process can write %q", kind)
		}
	}
	if err := appendEvent(t, s, audit.Event{Kind: audit.Fault, Detail: map[string]any{"reason": strings.Repeat("x", audit.MaxLine)}}); err == nil {
		t.Error("an event of any length")
	}
	if err := appendEvent(t, s, audit.Event{Kind: audit.Fault}); err != nil {
		t.Errorf("after refusals: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err != nil {
		t.Errorf("the scribe ended with %v", err)
	}
	if err := appendEvent(t, s, audit.Event{Kind: audit.Fault}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if n := len(readEvents(t, path)); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

func TestScribeServesManyAtOnce(t *testing.T) {
	s, path, _ := newScribe(t)
	defer s.Close()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := appendEvent(t, s, audit.Event{Kind: audit.Fault}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(readEvents(t, path)); n != 20 {
		t.Errorf("%d events, want 20", n)
	}
}

// What was not answered may have been written or not, and nothing is written any more.
func TestScribeDies(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() { io.WriteString(theirs, "{\"id\":0}\n") }()
	s, err := converse(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go func() {
		theirs.Read(make([]byte, scribeLine))
		theirs.Close()
	}()
	if err := appendEvent(t, s, audit.Event{Kind: audit.Fault}); !errors.Is(err, audit.ErrUncertain) {
		t.Errorf("an event under way: %v, want that its outcome is not known", err)
	}
	if err := appendEvent(t, s, audit.Event{Kind: audit.Fault}); !errors.Is(err, errScribe) {
		t.Errorf("the next one: %v", err)
	}
}

// Nobody waits for a scribe whose disk hangs for longer than he wants to.
func TestScribeHangs(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() { io.WriteString(theirs, "{\"id\":0}\n") }()
	s, err := converse(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Append(ctx, audit.Event{Kind: audit.Fault}); err == nil {
		t.Error("it was written")
	}
}

func TestScribeThatCantBegin(t *testing.T) {
	for what, open := range map[string]struct {
		path   string
		shutIn error
	}{
		"no log":         {path: "/nowhere/events.jsonl"},
		"no confinement": {path: filepath.Join(t.TempDir(), "events.jsonl"), shutIn: errors.New("half way")},
	} {
		ours, theirs := net.Pipe()
		go func() {
			_ = serveEvents(theirs, open.path, "a", "db", func() error { return open.shutIn })
			theirs.Close()
		}()
		if _, err := converse(ours); err == nil || errors.Is(err, errScribe) {
			t.Errorf("%s: %v, want the reason", what, err)
		}
	}
	ours, theirs := net.Pipe()
	theirs.Close()
	if _, err := converse(ours); !errors.Is(err, errScribe) {
		t.Errorf("one that is gone: %v", err)
	}
}
