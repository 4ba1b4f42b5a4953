package demo

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/tests/history"
)

func good() *Result {
	r := &Result{Linearizable: history.Linearizable, Verified: true, EventLogsWhole: true, Strikes: []Strike{
		{HitPrimary: true, TakeoverMs: 30, ProtectedAgain: true},
		{HitPrimary: true, TakeoverMs: 10, ProtectedAgain: true},
		{HitPrimary: true, TakeoverMs: 20, ProtectedAgain: true},
		{HitPrimary: false, TakeoverMs: 500, ProtectedAgain: true}, // says nothing of takeovers
	}}
	r.summarize()
	return r
}

func TestResult(t *testing.T) {
	r := good()
	if !r.Good() {
		t.Errorf("a good result is not: %+v", r)
	}
	if r.TakeoverMsP50 != 20 || r.TakeoverMsMax != 30 {
		t.Errorf("takeover %v, %v", r.TakeoverMsP50, r.TakeoverMsMax)
	}
	// Each of these alone must fail the run.
	for what, spoil := range map[string]func(*Result){
		"lost":       func(r *Result) { r.LostWrites = 1 },
		"reset":      func(r *Result) { r.Resets = 1 },
		"stale":      func(r *Result) { r.StaleReads = 1 },
		"corrupt":    func(r *Result) { r.CorruptReads = 1 },
		"duplicated": func(r *Result) { r.Duplicated = 1 },
		"error":      func(r *Result) { r.ServerErrors = 1 },
		"order":      func(r *Result) { r.Linearizable = history.NotLinearizable },
		"undecided":  func(r *Result) { r.Linearizable = history.Undecided },
		"unverified": func(r *Result) { r.Verified = false },
		"log":        func(r *Result) { r.EventLogsWhole = false },
		"stuck":      func(r *Result) { r.Stuck = true },
		"load":       func(r *Result) { r.LoadFailure = "Error: Connection reset by peer" },
		"early":      func(r *Result) { r.Error = "no takeover" },
		"protection": func(r *Result) { r.Strikes[1].ProtectedAgain = false; r.summarize() },
		"nothing":    func(r *Result) { r.Strikes = nil; r.summarize() },
	} {
		r := good()
		if spoil(r); r.Good() {
			t.Errorf("%s: still good", what)
		}
	}
}

// The keys that scripts rely on are there whatever their values are.
func TestResultKeys(t *testing.T) {
	b, err := json.Marshal(&Result{})
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{
		"rounds", "lost_acknowledged_writes", "tcp_resets", "stale_reads", "takeover_ms_p50", "takeover_ms_max",
		"client_gap_ms_max", "protected_again", "linearizable", "seed", "epochs", "wire_bytes", "strikes", "elections",
	} {
		if _, ok := keys[k]; !ok {
			t.Errorf("%s is missing", k)
		}
	}
}

func TestResultText(t *testing.T) {
	r := good()
	r.Resets, r.Findings, r.Error = 1, []string{"client 3 lost its connection"}, "gave up"
	var b strings.Builder
	r.WriteText(&b)
	for _, want := range []string{"TCP connections reset              1", "FOUND: client 3", "STOPPED EARLY: gave up", "20.0 ms (p50), 30.0 ms (max)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, b.String())
		}
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Fault: "flood", Rounds: 1}, {Fault: Kill, Rounds: 0}, {Fault: Kill, Rounds: -1}, {Twice: true}, {During: DuringResync},
		{Fault: Kill, Rounds: 1, During: "lunch"}, {Fault: Kill, Rounds: 1, Victim: "cat"}, {Victim: VictimReplica},
		{Fault: Kill, Rounds: 1, Victim: VictimWitness}, {Fault: Link, Rounds: 1, Victim: VictimWitness},
		{Fault: Hang, Rounds: 1, Victim: VictimReplica, During: DuringResync},
	} {
		if err := o.Validate(); !errors.Is(err, ErrUsage) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, f := range Faults {
		o := Options{Fault: f, Rounds: 3, Twice: true, During: DuringSwitchover}
		if err := o.Validate(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestPreflightNamesThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Preflight(); err == nil || !strings.Contains(err.Error(), "apt-get install redis-tools") {
		t.Errorf("without redis-benchmark: %v", err)
	}
}
