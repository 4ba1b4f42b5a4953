package audit

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

// sample writes a log of n events and returns its lines.
func sample(t testing.TB, n int) (path string, lines [][]byte) {
	t.Helper()
	path = logPath(t)
	l := mustOpen(t, path)
	for i := range n {
		mustAppend(t, l, Event{Kind: RoleChange, Guest: "db", Term: uint64(i), Detail: map[string]any{"from": "replica", "to": "primary"}})
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

func TestVerifyNamesTheFirstBrokenLine(t *testing.T) {
	_, lines := sample(t, 6)
	lines[5] = append(lines[5], '\n')
	for _, c := range []struct {
		name   string
		change func([][]byte) [][]byte
		line   uint64
		reason string
	}{
		{"changed", func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte(`"term":2`), []byte(`"term":9`), 1)
			return l
		}, 3, "was changed"},
		{"changed hash", func(l [][]byte) [][]byte {
			l[2][len(l[2])-5] ^= 1
			return l
		}, 3, "was changed"},
		{"removed", func(l [][]byte) [][]byte { return append(l[:2], l[3:]...) }, 3, "expected 3"},
		{"first removed", func(l [][]byte) [][]byte { return l[1:] }, 1, "expected 1"},
		{"repeated", func(l [][]byte) [][]byte { return append(l[:3], l[2:]...) }, 4, "expected 4"},
		{"exchanged", func(l [][]byte) [][]byte { l[2], l[3] = l[3], l[2]; return l }, 3, "expected 3"},
		{"forged with a right hash of its own", func(l [][]byte) [][]byte {
			e := Event{Seq: 3, Host: "x", Kind: Fault, Prev: genesis}
			l[2], _ = e.encode()
			return l
		}, 3, "does not continue"},
		{"a line of garbage", func(l [][]byte) [][]byte { l[4] = []byte("garbage\n"); return l }, 5, "not an event"},
		{"an empty line", func(l [][]byte) [][]byte { l[4] = append([]byte("\n"), l[4]...); return l }, 5, "not an event"},
		{"a huge line", func(l [][]byte) [][]byte { l[4] = []byte(strings.Repeat("x", 3*MaxLine) + "\n"); return l }, 5, "not an event"},
		{"torn", func(l [][]byte) [][]byte { l[5] = l[5][:40]; return l }, 6, "crash left 40 bytes"},
		{"no end and no beginning", func(l [][]byte) [][]byte { l[5] = []byte("garbage"); return l }, 6, "not the beginning"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cp := make([][]byte, len(lines))
			for i := range lines {
				cp[i] = bytes.Clone(lines[i])
			}
			path := logPath(t)
			if err := os.WriteFile(path, bytes.Join(c.change(cp), nil), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Verify(path)
			var b *Broken
			if !errors.As(err, &b) {
				t.Fatalf("error %v, want *Broken", err)
			}
			if b.Line != c.line || !strings.Contains(b.Reason, c.reason) || s.Events != c.line-1 {
				t.Errorf("%v (%d events before), want line %d: %q", err, s.Events, c.line, c.reason)
			}
		})
	}
}

func TestReadGoesOnBehindABrokenLine(t *testing.T) {
	path, lines := sample(t, 5)
	lines[2] = []byte("garbage\n")
	if err := os.WriteFile(path, append(bytes.Join(lines, nil), '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	var good, bad []uint64
	for e, err := range Read(path, Filter{}) {
		var b *Broken
		if errors.As(err, &b) {
			bad = append(bad, b.Line)
		} else if err != nil {
			t.Fatal(err)
		} else {
			good = append(good, e.Seq)
		}
	}
	if len(good) != 4 || len(bad) != 1 || bad[0] != 3 {
		t.Errorf("good %v, bad %v", good, bad)
	}
}
