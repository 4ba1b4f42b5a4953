package audit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func mustOpenLimited(t testing.TB, path string, limits Limits) *Log {
	t.Helper()
	l, err := OpenLimited(path, "host-a", limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustSegments(t testing.TB, path string) []segment {
	t.Helper()
	segs, err := segmentsOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return segs
}

func TestSegmentsAreOneLog(t *testing.T) {
	path := logPath(t)
	l := mustOpenLimited(t, path, Limits{SegmentBytes: 600})
	other := mustOpen(t, path) // knows nothing of limits, as a data plane
	const n = 20
	for i := range n / 2 {
		mustAppend(t, l, Event{Kind: Fault, Term: uint64(2 * i)})
		mustAppend(t, other, Event{Kind: Fault, Term: uint64(2*i + 1)})
	}
	if segs := mustSegments(t, path); len(segs) < 3 || segs[0].first != 1 {
		t.Fatalf("segments %v", segs)
	}
	events := readAll(t, path, Filter{})
	if len(events) != n {
		t.Fatalf("%d events, want %d", len(events), n)
	}
	for i, e := range events {
		if e.Term != uint64(i) {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	s, err := Verify(path)
	if err != nil || s.Events != n || s.From != 1 {
		t.Fatalf("verified %+v, %v", s, err)
	}
	if _, hash := l.Head(); hash != events[n-2].Hash {
		t.Error("the head of the one that closes segments is not its last event")
	}
	again := mustOpen(t, path)
	if seq, hash := again.Head(); seq != n || hash != s.Head {
		t.Errorf("opened again it ends with %d %s, want %d %s", seq, hash, n, s.Head)
	}
}

func TestOnlySomeSegmentsAreKept(t *testing.T) {
	path := logPath(t)
	l := mustOpenLimited(t, path, Limits{SegmentBytes: 600, KeepSegments: 2})
	for range 30 {
		mustAppend(t, l, Event{Kind: Fault})
	}
	segs := mustSegments(t, path)
	if len(segs) != 2 {
		t.Fatalf("segments %v", segs)
	}
	s, err := Verify(path)
	if err != nil || s.From != segs[0].first || s.From == 1 {
		t.Fatalf("verified %+v, %v; the first segment begins with %d", s, err, segs[0].first)
	}
	trims := readAll(t, path, Filter{Kinds: []Kind{LogTrim}})
	if len(trims) == 0 || trims[len(trims)-1].Detail["through"].(float64) != float64(s.From-1) {
		t.Errorf("trims %+v", trims)
	}
	// One that was idle meanwhile has a file that is gone.
	idle := mustOpen(t, path)
	for range 30 {
		mustAppend(t, l, Event{Kind: Fault})
	}
	mustAppend(t, idle, Event{Kind: Heal})
	if _, err := Verify(path); err != nil {
		t.Fatal(err)
	}
	// Nobody else may take segments away.
	if err := os.Remove(mustSegments(t, path)[0].path); err != nil {
		t.Fatal(err)
	}
	var b *Broken
	if _, err := Verify(path); !errors.As(err, &b) || !strings.Contains(b.Reason, "taken away") {
		t.Errorf("with a segment less: %v", err)
	}
}

func TestSegmentsThatDoNotFit(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string, segs []segment){
		"one in the middle is gone": func(t *testing.T, _ string, segs []segment) {
			if err := os.Remove(segs[1].path); err != nil {
				t.Fatal(err)
			}
		},
		"the first is gone": func(t *testing.T, _ string, segs []segment) {
			if err := os.Remove(segs[0].path); err != nil {
				t.Fatal(err)
			}
		},
		"one is cut off": func(t *testing.T, _ string, segs []segment) {
			if err := os.Truncate(segs[1].path, 100); err != nil {
				t.Fatal(err)
			}
		},
		"one is cut off at a line's end": func(t *testing.T, _ string, segs []segment) {
			b, err := os.ReadFile(segs[1].path)
			if err == nil {
				err = os.WriteFile(segs[1].path, b[:strings.IndexByte(string(b), '\n')+1], 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"the last is gone": func(t *testing.T, path string, _ []segment) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			mustAppend(t, mustOpen(t, path), Event{Kind: Heal})
			segs := mustSegments(t, path)
			if err := os.Remove(segs[len(segs)-1].path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := logPath(t)
			l := mustOpenLimited(t, path, Limits{SegmentBytes: 600})
			for range 12 {
				mustAppend(t, l, Event{Kind: Fault})
			}
			l.Close()
			damage(t, path, mustSegments(t, path))
			var b *Broken
			if s, err := Verify(path); !errors.As(err, &b) || b.Torn {
				t.Errorf("verified %+v, %v", s, err)
			}
		})
	}
}

// A writer goes on where another has closed the segment, and nowhere else.
func TestReplacedFileIsNoSegment(t *testing.T) {
	path := logPath(t)
	l := mustOpenLimited(t, path, Limits{SegmentBytes: 600})
	for range 6 {
		mustAppend(t, l, Event{Kind: Fault})
	}
	idle := mustOpen(t, path)
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, mustOpen(t, path), Event{Kind: Heal})
	if err := idle.Append(t.Context(), Event{Kind: Heal}); err == nil || !strings.Contains(err.Error(), "moved or deleted") {
		t.Errorf("a writer went on in another file: %v", err)
	}
}

func TestWritersBesideOneThatClosesSegments(t *testing.T) {
	path := logPath(t)
	const writers, each = 4, 25
	var wg sync.WaitGroup
	for i := range writers {
		limits := Limits{}
		if i%2 == 0 {
			limits = Limits{SegmentBytes: 900, KeepSegments: 1000}
		}
		l := mustOpenLimited(t, path, limits)
		wg.Go(func() {
			for range each {
				if err := l.Append(t.Context(), Event{Kind: Fault}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s, err := Verify(path); err != nil || s.Events != writers*each {
		t.Fatalf("verified %+v, %v", s, err)
	}
}

func TestFollowGoesOnInTheNextSegment(t *testing.T) {
	path := logPath(t)
	l := mustOpenLimited(t, path, Limits{SegmentBytes: 600})
	mustAppend(t, l, Event{Kind: Fault, Term: 1}, Event{Kind: Fault, Term: 2}, Event{Kind: Fault, Term: 3}, Event{Kind: Fault, Term: 4})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const n = 16
	next := uint64(1)
	for e, err := range Follow(ctx, path, Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Term != next {
			t.Fatalf("event %d came, expected %d", e.Term, next)
		}
		if next++; next > n {
			break
		}
		if next%4 == 1 { // all that was there has come
			for i := range uint64(4) {
				mustAppend(t, l, Event{Kind: Fault, Term: next + i})
			}
		}
	}
	if next <= n {
		t.Fatalf("it ended before event %d", next)
	}
}

// A log whose directory has room for no other name goes on in the file that it has.
func TestSegmentThatCannotBeClosed(t *testing.T) {
	path := logPath(t)
	l := mustOpenLimited(t, path, Limits{SegmentBytes: 1})
	mustAppend(t, l, Event{Kind: Fault})
	// Somebody has put something where the closed segment would go.
	if err := os.WriteFile(segmentPath(path, 1), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, Event{Kind: Fault})
	b, err := os.ReadFile(path)
	if err != nil || strings.Count(string(b), "\n") != 2 {
		t.Errorf("the file at %s holds %q, %v", filepath.Base(path), b, err)
	}
}
