package bench

import (
	"testing"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
)

func TestParseRate(t *testing.T) {
	const out = `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","17391.30","2.790","0.384","2.735","3.423","4.831","9.663"
`
	if v, err := parseRate([]byte(out), "SET"); err != nil || v != 17391.30 {
		t.Errorf("%v, %v", v, err)
	}
	for _, bad := range []string{"", "Could not connect to Redis", `"SET"`, `"SET","fast"`} {
		if v, err := parseRate([]byte(bad), "SET"); err == nil {
			t.Errorf("%q: %v", bad, v)
		}
	}
}

// Takeovers that cost an election are told apart from those that the target is for.
func TestTakeoverRows(t *testing.T) {
	strike := func(leader string, ms float64) demo.Strike {
		return demo.Strike{Host: "a", HitPrimary: true, RaftLeader: leader, TakeoverMs: ms, PhasesUs: map[string]float64{"detect": 1000, "decide": 2000}}
	}
	missed := strike("w", 999)
	missed.HitPrimary = false
	result := &demo.Result{Strikes: []demo.Strike{strike("w", 10), strike("w", 20), strike("b", 30), strike("a", 300), missed}}
	rows := takeoverRows(takeover{demo.Power, "power", 150}, result)
	if len(rows) != 3 {
		t.Fatalf("%d rows", len(rows))
	}
	for i, want := range []struct {
		samples int
		p50     float64
		target  bool
	}{{2, 10, true}, {1, 30, false}, {1, 300, false}} {
		if r := rows[i]; r.Samples != want.samples || r.P50 != want.p50 || (r.Target != nil) != want.target {
			t.Errorf("row %d: %+v", i, r)
		}
	}
	if p := rows[0].Phases["the rest"]; p.P50 != 7000 || p.Samples != 2 {
		t.Errorf("the rest: %+v", p)
	}
	// A process that is killed takes no leader with it.
	for _, r := range takeoverRows(takeover{demo.Kill, "kill", 30}, &demo.Result{Strikes: []demo.Strike{strike("a", 10)}}) {
		if r.Case == "kill, with an election" {
			t.Errorf("%+v", r)
		}
	}
}

func TestTapeRewinds(t *testing.T) {
	var tape tape
	p, s := tape.pair(), tape.samples()
	p.of(true).add(1)
	p.of(false).add(2)
	tape.mark()
	p.of(true).add(3)
	s.add(4)
	tape.rewind()
	if len(*p.protected) != 1 || len(*p.solo) != 1 || len(*s) != 0 {
		t.Errorf("%v, %v, %v", *p.protected, *p.solo, *s)
	}
}
