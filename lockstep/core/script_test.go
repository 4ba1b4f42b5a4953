package core

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// -update writes what the core does now into the scripts. Do that only when you understand each
// changed line and know why it is right: the scripts are the protocol's specification.
var update = flag.Bool("update", false, "rewrite the golden output in testdata")

var parties = map[string]pact.Party{
	"a":  {Host: "a", Incarnation: 0xa1},
	"b":  {Host: "b", Incarnation: 0xb1},
	"b2": {Host: "b", Incarnation: 0xb2},
	"c":  {Host: "c", Incarnation: 0xc1},
}

// TestScripts runs testdata/*.txt: a line that starts in the first column is an event, the indented
// lines after it are the actions.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(raw))
			if got == string(raw) {
				return
			}
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("%s has changed: %s", f, firstDifference(string(raw), got))
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var x, y string
		if i < len(w) {
			x = w[i]
		}
		if i < len(g) {
			y = g[i]
		}
		if x != y {
			return fmt.Sprintf("line %d\n  golden: %s\n  now:    %s", i+1, x, y)
		}
	}
	return "nowhere"
}

func runScript(t *testing.T, script string) string {
	t.Helper()
	var out strings.Builder
	c := New(Config{Guest: "g", Self: parties["a"]})
	for n, line := range strings.Split(strings.TrimRight(script, "\n"), "\n") {
		if strings.HasPrefix(line, "    ") {
			continue
		}
		fmt.Fprintln(&out, line)
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if f[0] == "status" {
			fmt.Fprintf(&out, "    %s, term %d, captured %d, acked %d, gated %t, asking %t, may fill %t (%s)\n",
				c.Mode(), c.Term(), c.Captured(), c.Acked(), c.Gated(), c.Asking(), c.MayFill(), c.Detail())
			continue
		}
		ev, err := parseEvent(f)
		if err != nil {
			t.Fatalf("line %d: %q: %v", n+1, line, err)
		}
		for _, a := range c.Step(ev) {
			fmt.Fprintf(&out, "    %s\n", a)
		}
	}
	return out.String()
}

// words are the arguments of a script line: key=value pairs and bare words.
type words struct {
	keys map[string]string
	bare []string
}

func parseWords(f []string) words {
	w := words{keys: map[string]string{}}
	for _, s := range f {
		if k, v, ok := strings.Cut(s, "="); ok {
			w.keys[k] = v
		} else {
			w.bare = append(w.bare, s)
		}
	}
	return w
}

func (w words) num(key string) uint64 {
	n, _ := strconv.ParseUint(w.keys[key], 10, 64)
	return n
}

func (w words) has(s string) bool {
	for _, b := range w.bare {
		if b == s {
			return true
		}
	}
	return false
}

func (w words) text() string { return strings.Join(w.bare, " ") }

func (w words) assignment() pact.Assignment {
	a := pact.Assignment{Guest: "g", Term: pact.Term(w.num("term")), Mode: pact.Solo, Primary: parties["a"], Base: pact.Epoch(w.num("base"))}
	if p, ok := w.keys["primary"]; ok {
		a.Primary = parties[p]
	}
	a.Replica = parties[w.keys["replica"]]
	switch {
	case w.has("stopped"):
		a.Mode = pact.Stopped
	case w.has("protected"):
		a.Mode = pact.Protected
	}
	a.CurrentDisk = pact.DiskCopy{Host: "a", Term: 1}
	if host, term, ok := strings.Cut(w.keys["disk"], "@"); ok {
		n, _ := strconv.ParseUint(term, 10, 64)
		a.CurrentDisk = pact.DiskCopy{Host: host, Term: pact.Term(n)}
	}
	return a
}

func parseEvent(f []string) (Event, error) {
	w := parseWords(f[1:])
	switch f[0] {
	case "begin":
		return Begin{Assignment: w.assignment(), Last: pact.Epoch(w.num("last"))}, nil
	case "assigned":
		return Assigned{w.assignment()}, nil
	case "answered":
		ev := Answered{ID: w.keys["id"]}
		if !w.has("unknown") {
			ev.Verdict = &pact.Verdict{Applied: w.has("applied"), Assignment: w.assignment()}
			if !ev.Verdict.Applied {
				ev.Verdict.Reason = "no"
			}
		}
		return ev, nil
	case "retry":
		return Retry{}, nil
	case "stream-up":
		return StreamUp{Stream: w.num("stream"), Party: parties[w.keys["party"]], Resumed: w.has("resumed"), Last: pact.Epoch(w.num("last"))}, nil
	case "stream-down":
		return StreamDown{Stream: w.num("stream"), Why: w.text()}, nil
	case "captured":
		return Captured{Epoch: pact.Epoch(w.num("epoch")), Complete: w.has("complete"), Final: w.has("final")}, nil
	case "acked":
		return Acked{Stream: w.num("stream"), Epoch: pact.Epoch(w.num("epoch"))}, nil
	case "word":
		return Word{pact.Term(w.num("term"))}, nil
	case "own-gap":
		return OwnGap{}, nil
	case "marker-durable":
		return MarkerDurable{pact.Term(w.num("term"))}, nil
	case "switchover":
		return SwitchoverOrdered{}, nil
	case "switchover-expired":
		return SwitchoverExpired{}, nil
	case "faulty":
		return Faulty{w.text()}, nil
	case "damaged":
		return Damaged{Page: uint32(w.num("page")), Dirty: w.has("dirty"), Needed: w.has("needed")}, nil
	case "copied":
		return Copied{Stream: w.num("stream"), Page: uint32(w.num("page")), Epoch: pact.Epoch(w.num("epoch")), Good: w.has("good")}, nil
	case "powered-off":
		return PoweredOff{w.text()}, nil
	case "killed":
		return Killed{w.text()}, nil
	}
	return nil, fmt.Errorf("unknown event %q", f[0])
}
