package main

import (
	"errors"
	"strings"
	"testing"
)

const run = `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- PASS: TestA (0.00s)\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:7: needs /dev/kvm: permission denied\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`

func summarize(t *testing.T, input string, ps ...probe) (string, bool) {
	t.Helper()
	var out strings.Builder
	r := &report{out: &out, lines: make(map[key][]string)}
	if err := r.read(strings.NewReader(input)); err != nil {
		t.Fatal(err)
	}
	good := r.finish(ps)
	return out.String(), good
}

func TestSkips(t *testing.T) {
	kvm := func(found error) probe { return probe{"kvm-own-guests", []string{"/dev/kvm"}, found} }
	for name, tc := range map[string]struct {
		probe probe
		good  bool
	}{
		"what the machine lacks":   {kvm(errors.New("there is no /dev/kvm")), true},
		"what the machine has":     {kvm(nil), false},
		"something of no interest": {probe{"root", []string{"root"}, nil}, true},
	} {
		out, good := summarize(t, run, tc.probe)
		if good != tc.good || !strings.Contains(out, "1 passed, 0 failed, 1 skipped") ||
			!strings.Contains(out, "skipped: p TestB: needs /dev/kvm: permission denied") {
			t.Errorf("%s: good is %v:\n%s", name, good, out)
		}
	}
}

func TestFailures(t *testing.T) {
	for name, input := range map[string]string{
		"a test":  `{"Action":"output","Package":"p","Test":"T","Output":"boom\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"T"}`,
		"a panic": `{"Action":"output","Package":"p","Test":"T","Output":"boom\n"}` + "\n" + `{"Action":"fail","Package":"p"}`,
	} {
		if out, good := summarize(t, input); good || !strings.Contains(out, "boom") {
			t.Errorf("%s: good is %v:\n%s", name, good, out)
		}
	}
	if out, good := summarize(t, ""); good {
		t.Errorf("an empty run passes:\n%s", out)
	}
}
