package pact

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Scripts are read as stories: a line is a command, the lines after it, indented, are what became of
// it. Re-write them with -update only when you understand the change.
var update = flag.Bool("update", false, "write the golden outcomes of testdata/*.txt anew")

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts: ", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b))
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(b) {
				t.Errorf("the story goes otherwise now:\n%s", got)
			}
		})
	}
}

func play(t *testing.T, script string) string {
	w := newWorld(t)
	var out strings.Builder
	for sc := bufio.NewScanner(strings.NewReader(script)); sc.Scan(); {
		line := sc.Text()
		if strings.HasPrefix(line, "    ") {
			continue // the outcome as it was
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		v := w.try(parse(t, line))
		if !v.Applied {
			fmt.Fprintf(&out, "    refused: %s\n", v.Reason)
			continue
		}
		a := w.now()
		fmt.Fprintf(&out, "    term %d %s, primary %s", a.Term, a.Mode, brief(a.Primary))
		if !a.Replica.IsZero() {
			fmt.Fprintf(&out, ", replica %s from epoch %d", brief(a.Replica), a.Base)
		}
		fmt.Fprintf(&out, ", disk %s", a.CurrentDisk.Host)
		for _, c := range a.Unproven {
			fmt.Fprintf(&out, " unless %s/%d", c.Party.Host, c.Term)
		}
		for _, p := range a.Gone {
			fmt.Fprintf(&out, ", %s gone", brief(p))
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

func brief(p Party) string {
	if p.IsZero() {
		return "nobody"
	}
	return fmt.Sprintf("%s%d", p.Host, p.Incarnation)
}

// parse reads `promote b1 epoch=9 term=2`.
func parse(t *testing.T, line string) Command {
	f := strings.Fields(line)
	c := Command{Kind: Kind(f[0])}
	party := func(s string) Party {
		n, err := strconv.Atoi(s[1:])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return Party{Host: s[:1], Incarnation: Incarnation(n)}
	}
	for _, s := range f[1:] {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			c.By = party(k)
			continue
		}
		n, _ := strconv.ParseUint(v, 10, 64)
		switch k {
		case "other":
			c.Other = party(v)
		case "epoch":
			c.Epoch = Epoch(n)
		case "term":
			c.Term = Term(n)
		case "marker":
			c.MarkerTerm = Term(n)
		case "nomarker":
			c.NoMarker = true
		case "id":
			c.ID = v
		case "desired":
			c.Desired = Desired(v)
		case "loss":
			c.AcceptLoss = v
		case "operator":
			c.Operator = v
		default:
			t.Fatalf("%s: what is %s?", line, k)
		}
	}
	if c.Kind == Create {
		c.Spec = spec()
	}
	return c
}
