package core

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Each file in testdata is a story: commands, and under each what the core did. Rewrite a golden file
// (go test ./replica/core -update) only when you understand why every changed line changed: these
// lines are the takeover decisions.
var update = flag.Bool("update", false, "rewrite testdata/*.txt; only when you understand the change")

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := runScript(string(want))
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("the story went differently:\n%s", firstDifference(string(want), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range w {
		if i >= len(g) || w[i] != g[i] {
			have := "(end)"
			if i < len(g) {
				have = g[i]
			}
			return fmt.Sprintf("line %d\nwant %s\ngot  %s\n\nall of it:\n%s", i+1, w[i], have, got)
		}
	}
	return got
}

// runScript executes the commands (lines that start with "> ") of a script, keeps its comments and
// writes each command's actions, indented, with the state after it where it changed.
func runScript(in string) (string, error) {
	var out strings.Builder
	c := New("g", party("b/2"))
	last := c.State()
	s := bufio.NewScanner(strings.NewReader(in))
	for n := 1; s.Scan(); n++ {
		line := s.Text()
		switch {
		case strings.HasPrefix(line, "    "):
			continue // old output
		case !strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			continue
		}
		fmt.Fprintln(&out, line)
		e, err := parseEvent(strings.Fields(line[2:]))
		if err != nil {
			return "", fmt.Errorf("line %d: %w", n, err)
		}
		for _, a := range c.Step(e) {
			fmt.Fprintln(&out, "    "+describe(a))
		}
		if c.State() != last {
			last = c.State()
			fmt.Fprintf(&out, "    -> %s\n", last)
		}
	}
	return out.String(), nil
}

func parseEvent(f []string) (Event, error) {
	args := map[string]string{}
	for _, a := range f[1:] {
		k, v, ok := strings.Cut(a, "=")
		if !ok {
			v = "yes"
		}
		args[k] = strings.ReplaceAll(v, "_", " ")
	}
	num := func(k string) uint64 {
		n, err := strconv.ParseUint(args[k], 10, 64)
		if err != nil && args[k] != "" {
			panic(fmt.Sprintf("%s=%s: %v", k, args[k], err))
		}
		return n
	}
	conn := Conn(num("conn"))
	if conn == 0 {
		conn = 1
	}
	has := func(k string) bool { return args[k] != "" }
	switch f[0] {
	case "applied":
		return Applied{assignment(args, num)}, nil
	case "answered":
		return Answered{ID: args["id"], Unknown: has("unknown"), Verdict: pact.Verdict{
			Applied: has("ok"), Reason: args["reason"], Assignment: assignment(args, num)}}, nil
	case "again":
		return Again{}, nil
	case "opened":
		e := Opened{Conn: conn, Term: pact.Term(num("term")), Primary: party("a/1"), Replica: party("b/2"), Resume: has("resume")}
		if has("primary") {
			e.Primary = party(args["primary"])
		}
		if has("replica") {
			e.Replica = party(args["replica"])
		}
		e.Host = e.Primary.Host
		if has("host") {
			e.Host = args["host"]
		}
		return e, nil
	case "prepared":
		return Prepared{Conn: conn, Err: args["err"]}, nil
	case "staged":
		return Staged{Conn: conn, Epoch: pact.Epoch(num("epoch")), Term: pact.Term(num("term")), Syncing: has("syncing"), Final: has("final"), Lost: has("lost")}, nil
	case "pages-lost":
		return PagesLost{}, nil
	case "lost":
		return Lost{Conn: conn, Why: args["why"], Alive: has("alive")}, nil
	case "silent":
		return Silent{}, nil
	case "heard":
		return HeardTerm{pact.Term(num("term"))}, nil
	case "gap":
		return Gap{}, nil
	case "activated":
		return Activated{}, nil
	case "failed":
		return Failed{args["err"]}, nil
	}
	return nil, fmt.Errorf("unknown command %q", f[0])
}

func assignment(args map[string]string, num func(string) uint64) pact.Assignment {
	a := pact.Assignment{
		Guest: "g", Term: pact.Term(num("term")), Mode: pact.Mode(args["mode"]),
		Primary: party(args["primary"]), Replica: party(args["replica"]),
		Base: pact.Epoch(num("base")), BaseTerm: pact.Term(num("baseterm")),
	}
	if host, term, ok := strings.Cut(args["disk"], ":"); ok {
		n, _ := strconv.ParseUint(term, 10, 64)
		a.CurrentDisk = pact.DiskCopy{Host: host, Term: pact.Term(n)}
	}
	if p, ok := args["gone"]; ok {
		a.Gone = []pact.Party{party(p)}
	}
	if p, ok := args["unproven"]; ok {
		a.Unproven = []pact.Claim{{Party: party(p), Term: 1}}
	}
	return a
}

// party reads "a/1".
func party(s string) pact.Party {
	host, inc, ok := strings.Cut(s, "/")
	if !ok {
		return pact.Party{}
	}
	n, _ := strconv.ParseUint(inc, 10, 64)
	return pact.Party{Host: host, Incarnation: pact.Incarnation(n)}
}

func describe(a Action) string {
	name := reflect.TypeOf(a).Name()
	switch a := a.(type) {
	case Propose:
		cmd := a.Command
		s := fmt.Sprintf("Propose %s id=%s term=%d by=%s", cmd.Kind, cmd.ID, cmd.Term, short(cmd.By))
		if cmd.Epoch != 0 {
			s += fmt.Sprintf(" epoch=%d", cmd.Epoch)
		}
		return s
	case ColdStart:
		return fmt.Sprintf("ColdStart term=%d", a.Assignment.Term)
	case Activate:
		return fmt.Sprintf("Activate term=%d from=%d", a.Assignment.Term, a.From)
	case TakeReplica:
		return fmt.Sprintf("TakeReplica term=%d base=%d", a.Assignment.Term, a.Base)
	}
	s := fmt.Sprintf("%+v", a)
	return strings.TrimSpace(name + " " + strings.Trim(s, "{}"))
}

func short(p pact.Party) string { return fmt.Sprintf("%s/%d", p.Host, p.Incarnation) }
