// Command report reads the output of `go test -json` on its standard input, shows what a person wants
// to see of it, and ends with every skipped test, its reason and a line of counts. It fails where a test
// failed, and where a test was skipped for the want of something that a probe finds on this machine.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

type key struct{ pkg, test string }

type skip struct {
	key
	reason string
}

// report gathers what happened.
type report struct {
	out            io.Writer
	lines          map[key][]string
	skips          []skip
	passed, failed int
}

func main() {
	r := &report{out: os.Stdout, lines: make(map[key][]string)}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
	if !r.finish(probes()) {
		os.Exit(1)
	}
}

func (r *report) read(in io.Reader) error {
	s := bufio.NewScanner(in)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			fmt.Fprintln(r.out, s.Text()) // go vet's complaints come plain
			continue
		}
		r.take(e)
	}
	return s.Err()
}

func (r *report) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		r.lines[k] = append(r.lines[k], e.Output)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(k, e)
			break
		}
		switch e.Action {
		case "pass":
			r.passed++
		case "fail":
			r.failed++
			for _, l := range r.lines[k] {
				fmt.Fprint(r.out, l)
			}
		case "skip":
			r.skips = append(r.skips, skip{k, reason(r.lines[k])})
		}
		delete(r.lines, k)
	}
}

// endPackage prints the package's own line, or all that it said where it failed without a failed test.
func (r *report) endPackage(k key, e event) {
	for _, l := range r.lines[k] {
		if e.Action == "fail" || strings.HasPrefix(l, "ok ") {
			fmt.Fprint(r.out, l)
		}
	}
	if e.Action == "fail" {
		r.failed++
		// A panic or a timeout leaves tests without a verdict of their own.
		for other, lines := range r.lines {
			if other.pkg == k.pkg && other.test != "" {
				for _, l := range lines {
					fmt.Fprint(r.out, l)
				}
			}
		}
		fmt.Fprintf(r.out, "FAIL\t%s\t%.1fs\n", k.pkg, e.Elapsed)
	}
	for other := range r.lines {
		if other.pkg == k.pkg {
			delete(r.lines, other)
		}
	}
}

// reason is what a test said when it skipped itself.
func reason(lines []string) string {
	for _, l := range slices.Backward(lines) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			if _, after, ok := strings.Cut(l, ".go:"); ok {
				if _, text, ok := strings.Cut(after, ": "); ok {
					return text
				}
			}
			return l
		}
	}
	return "no reason given"
}

// finish prints the summary and says whether all is well.
func (r *report) finish(ps []probe) bool {
	good := r.failed == 0
	slices.SortFunc(r.skips, func(a, b skip) int {
		return strings.Compare(a.reason+a.pkg+a.test, b.reason+b.pkg+b.test)
	})
	for _, s := range r.skips {
		fmt.Fprintf(r.out, "skipped: %s %s: %s\n", s.pkg, s.test, s.reason)
		for _, p := range ps {
			if p.speaksOf(s.reason) && p.found == nil {
				fmt.Fprintf(r.out, "  but the probe %q finds it here: this test must run\n", p.name)
				good = false
			}
		}
		if s.reason == "no reason given" {
			good = false
		}
	}
	if len(r.skips) > 0 {
		for _, p := range ps {
			if p.found != nil {
				fmt.Fprintf(r.out, "probe %s: %v\n", p.name, p.found)
			} else {
				fmt.Fprintf(r.out, "probe %s: found\n", p.name)
			}
		}
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skips))
	if r.passed+r.failed == 0 {
		fmt.Fprintln(r.out, "no test ran")
		return false
	}
	return good
}
