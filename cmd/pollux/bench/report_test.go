package bench

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew; look at the difference before you commit it")

// sample is a report with every kind of row.
func sample() *Report {
	r := &Report{Machine: "2 x Processor, Linux 6.18, kvm-pvm", Commit: "0123abc", Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	split := phases{}
	for i := range 4 {
		split.add("stop", time.Duration(30+i)*time.Microsecond)
		split.add("copy", time.Duration(1000*(i+1)))
	}
	r.Rows = []Row{
		row("P1", "100 pages", "ms", samples{0.1, 0.2, 0.30004, 0.4}).against(0.1).atMost(1.3).split(split).noted("what was measured"),
		row("P1", "1000 pages", "ms", samples{0.5}).against(0.5).atMost(1.3).noted("what was measured"),
		row("P2a", "solo by turns", "1/s", samples{98, 99, 100}).against(100).toReach(0.98),
		row("P4", "process killed", "ms", samples{20, 25, 40}).atMost(30),
		row("P4", "election", "ms", nil).atMost(30).noted("none of them cost one"),
	}
	return r
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it anew); got:\n%s", path, got)
	}
}

// The JSON is a contract: programs read it.
func TestReportAsJSON(t *testing.T) {
	var b bytes.Buffer
	if err := write(&b, sample(), "json"); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", b.Bytes())
}

func TestReportAsTable(t *testing.T) {
	var b bytes.Buffer
	if err := write(&b, sample(), "table"); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.txt", b.Bytes())
}

func TestEmptyReportHasRows(t *testing.T) {
	b, err := json.Marshal(newReport())
	if err != nil {
		t.Fatal(err)
	}
	var r map[string]any
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if rows, ok := r["rows"].([]any); !ok || len(rows) != 0 {
		t.Errorf("rows is %v, not an empty list", r["rows"])
	}
	for _, key := range []string{"machine", "commit", "started"} {
		if s, _ := r[key].(string); s == "" {
			t.Errorf("%s is %v", key, r[key])
		}
	}
}

func TestQuantiles(t *testing.T) {
	var hundred samples
	for i := range 100 {
		hundred.add(float64(100 - i))
	}
	for _, c := range []struct {
		s    samples
		want quantiles
	}{
		{nil, quantiles{}},
		{samples{7}, quantiles{7, 7, 7}},
		{samples{2, 1}, quantiles{1, 2, 2}},
		{hundred, quantiles{50, 90, 99}},
	} {
		if got := c.s.quantiles(); got != c.want {
			t.Errorf("quantiles of %d samples: %v, want %v", len(c.s), got, c.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the samples were put in another order")
	}
}

func TestRound(t *testing.T) {
	for v, want := range map[float64]float64{0: 0, 1.23456: 1.235, 123456: 123500, 0.000123456: 0.0001235, 9.9999: 10, -5.55555: -5.556} {
		if got := round(v); got != want {
			t.Errorf("round(%v) = %v, want %v", v, got, want)
		}
	}
}

func TestTargets(t *testing.T) {
	s := samples{2}
	for _, c := range []struct {
		name string
		row  Row
		want string
	}{
		{"no target", row("P", "", "", s), "-"},
		{"value too high", row("P", "", "", s).atMost(1.9), "NO"},
		{"value at its target", row("P", "", "", s).atMost(2), "yes"},
		{"the ratio counts", row("P", "", "", s).against(4).atMost(0.5), "yes"},
		{"ratio too low", row("P", "", "", s).against(4).toReach(0.6), "NO"},
		{"nothing was measured", row("P", "", "", nil).atMost(1), "-"},
		{"no baseline was measured", row("P", "", "", s).against(0).atMost(1), "-"},
	} {
		if got := c.row.verdict(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestSelected(t *testing.T) {
	all, err := selected(nil)
	if err != nil || len(all) != len(metrics()) {
		t.Errorf("nothing named: %d metrics, %v", len(all), err)
	}
	some, err := selected([]string{"P5", "P1"})
	if err != nil || len(some) != 2 || some[0].id != "P1" {
		t.Errorf("P5,P1: %v, %v", some, err)
	}
	if p2, err := selected([]string{"P2"}); err != nil || len(p2) != 3 {
		t.Errorf("P2: %v, %v", p2, err)
	}
	if one, err := selected([]string{"P4/kill"}); err != nil || len(one) != 1 {
		t.Errorf("P4/kill: %v, %v", one, err)
	}
	if _, err := selected([]string{"P1", "P99"}); err == nil || !strings.Contains(err.Error(), "P99") {
		t.Errorf("P99: %v", err)
	}
}
