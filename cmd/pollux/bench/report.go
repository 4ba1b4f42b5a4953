package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster"
)

// Report is what a run has measured. Its JSON form is documented and stable.
type Report struct {
	Machine string    `json:"machine"` // processors, their number, kernel, which KVM
	Commit  string    `json:"commit"`
	Started time.Time `json:"started"`
	Rows    []Row     `json:"rows"`
}

// Row is one figure. Value is what the row is about: the median of the samples unless the note says
// otherwise. What is not there does not apply.
type Row struct {
	ID      string  `json:"id"`
	Case    string  `json:"case"`
	Unit    string  `json:"unit"`
	Value   float64 `json:"value"`
	P50     float64 `json:"p50"`
	P90     float64 `json:"p90"`
	P99     float64 `json:"p99"`
	Samples int     `json:"samples"`

	Baseline *float64 `json:"baseline,omitempty"` // in the same unit, from the same run
	Ratio    *float64 `json:"ratio,omitempty"`    // value by baseline

	Target  *float64 `json:"target,omitempty"`   // of the ratio where there is one, else of the value
	AtLeast bool     `json:"at_least,omitempty"` // the target is a lower bound, not an upper one
	Reached *bool    `json:"reached,omitempty"`

	// Phases says where the time went, by name.
	Phases map[string]Phase `json:"phases,omitempty"`
	// Note says what was measured, and what limits it here.
	Note string `json:"note,omitempty"`
}

// Phase is a part of what a row measures.
type Phase struct {
	Unit    string  `json:"unit"`
	P50     float64 `json:"p50"`
	P90     float64 `json:"p90"`
	P99     float64 `json:"p99"`
	Samples int     `json:"samples"`
}

// row makes a row of samples.
func row(id, name, unit string, s samples) Row {
	q := s.quantiles()
	return Row{ID: id, Case: name, Unit: unit, Value: round(q.p50), P50: round(q.p50), P90: round(q.p90), P99: round(q.p99), Samples: len(s)}
}

// against compares it with a baseline.
func (r Row) against(baseline float64) Row {
	b := round(baseline)
	r.Baseline = &b
	if baseline != 0 {
		ratio := round(r.Value / baseline)
		r.Ratio = &ratio
	}
	return r
}

// atMost sets a target that must not be exceeded, toReach one that must be reached. It is the
// ratio's where the row has a baseline, else the value's.
func (r Row) atMost(target float64) Row { return r.judge(target, false) }

func (r Row) toReach(target float64) Row { return r.judge(target, true) }

func (r Row) judge(target float64, atLeast bool) Row {
	r.Target, r.AtLeast = &target, atLeast
	if r.Samples == 0 {
		return r // nothing can be said
	}
	v := r.Value
	if r.Baseline != nil {
		if r.Ratio == nil {
			return r
		}
		v = *r.Ratio
	}
	reached := v <= target
	if atLeast {
		reached = v >= target
	}
	r.Reached = &reached
	return r
}

func (r Row) split(p phases) Row {
	r.Phases = p.summary()
	return r
}

func (r Row) noted(format string, a ...any) Row {
	r.Note = fmt.Sprintf(format, a...)
	return r
}

// newReport begins a report on this machine and this program.
func newReport() *Report {
	return &Report{Machine: machine(), Commit: commit(), Started: time.Now().UTC().Truncate(time.Second), Rows: []Row{}}
}

// machine describes this one in a line.
func machine() string {
	parts := []string{fmt.Sprintf("%d x %s", runtime.NumCPU(), processor())}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		parts = append(parts, unix.ByteSliceToString(u.Sysname[:])+" "+unix.ByteSliceToString(u.Release[:]))
	}
	for _, name := range []string{"kvm_intel", "kvm_amd", "kvm_pvm"} {
		if _, err := os.Stat(filepath.Join("/sys/module", name)); err == nil {
			parts = append(parts, strings.ReplaceAll(name, "_", "-"))
		}
	}
	return strings.Join(parts, ", ")
}

func processor() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// commit is what the program was built from.
func commit() string {
	if cluster.Version != "" && cluster.Version != "dev" {
		return cluster.Version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		revision, dirty := "", ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "-dirty"
			}
		}
		if revision != "" {
			return revision + dirty
		}
	}
	return "dev"
}
