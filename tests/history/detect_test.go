package history

import (
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// Short histories, written down by hand, so that each rule is seen alone.
func set(client int, call, ret time.Duration, v string) Operation {
	return Operation{Client: client, Kind: Set, Key: "k", Value: v, Call: call, Return: ret}
}

func get(client int, call, ret time.Duration, v string) Operation {
	return Operation{Client: client, Kind: Get, Key: "k", Text: v, Absent: v == "", Call: call, Return: ret}
}

func incr(client int, call, ret time.Duration, n int64) Operation {
	return Operation{Client: client, Kind: Incr, Key: "k", Number: n, Call: call, Return: ret}
}

func app(client int, call, ret time.Duration, v string, n int64) Operation {
	return Operation{Client: client, Kind: Append, Key: "k", Value: v, Number: n, Call: call, Return: ret}
}

func TestCheck(t *testing.T) {
	type want struct{ lost, stale, corrupt, twice int }
	for _, c := range []struct {
		name    string
		history []Operation
		want    want
		verdict Linearizability
	}{
		{"empty", nil, want{}, Linearizable},
		{"absent, written, read", []Operation{
			get(0, 0, 1*ms, ""), set(0, 2*ms, 3*ms, "a"), get(0, 4*ms, 5*ms, "a"),
		}, want{}, Linearizable},
		{"a read beside a write may show either", []Operation{
			set(0, 0, 1*ms, "a"), set(0, 2*ms, 9*ms, "b"), get(1, 3*ms, 4*ms, "a"), get(1, 5*ms, 6*ms, "b"),
		}, want{}, Linearizable},
		{"but not the older one after the newer one was seen", []Operation{
			set(0, 0, 1*ms, "a"), set(0, 2*ms, 9*ms, "b"), get(1, 3*ms, 4*ms, "b"), get(1, 5*ms, 6*ms, "a"), get(1, 10*ms, 11*ms, "b"),
		}, want{stale: 1}, NotLinearizable},
		{"an acknowledged write is gone for good", []Operation{
			set(0, 0, 1*ms, "a"), set(0, 2*ms, 3*ms, "b"), get(1, 5*ms, 6*ms, "a"),
		}, want{lost: 1, stale: 1}, NotLinearizable},
		{"the first write is gone", []Operation{
			set(0, 0, 1*ms, "a"), get(1, 5*ms, 6*ms, ""),
		}, want{lost: 1, stale: 1}, NotLinearizable},
		{"it was only hidden", []Operation{
			set(0, 0, 1*ms, "a"), set(0, 2*ms, 3*ms, "b"), get(1, 5*ms, 6*ms, "a"), get(1, 7*ms, 8*ms, "b"),
		}, want{stale: 1}, NotLinearizable},
		{"an unanswered write may show late", []Operation{
			set(0, 0, 1*ms, "a"), set(0, 2*ms, Never, "b"), get(1, 5*ms, 6*ms, "a"), get(1, 7*ms, 8*ms, "b"),
		}, want{}, Linearizable},
		{"or never", []Operation{
			set(0, 0, 1*ms, "a"), set(0, 2*ms, Never, "b"), get(1, 5*ms, 6*ms, "a"),
		}, want{}, Linearizable},
		{"but not disappear again", []Operation{
			set(0, 0, 1*ms, "a"), set(0, 2*ms, Never, "b"), get(1, 5*ms, 6*ms, "b"), get(1, 7*ms, 8*ms, "a"),
		}, want{stale: 1}, NotLinearizable},
		{"an invented value", []Operation{
			set(0, 0, 1*ms, "a"), get(1, 5*ms, 6*ms, "x"),
		}, want{corrupt: 1}, NotLinearizable},
		{"a value from the future", []Operation{
			get(1, 0, 1*ms, "a"), set(0, 2*ms, 3*ms, "a"),
		}, want{corrupt: 1}, NotLinearizable},

		{"counting", []Operation{
			incr(0, 0, 1*ms, 1), incr(1, 0, 2*ms, 2), get(0, 3*ms, 4*ms, "2"),
		}, want{}, Linearizable},
		{"an unanswered increment may count", []Operation{
			incr(0, 0, 1*ms, 1), incr(1, 0, Never, 0), get(0, 3*ms, 4*ms, "2"),
		}, want{}, Linearizable},
		{"or not", []Operation{
			incr(0, 0, 1*ms, 1), incr(1, 0, Never, 0), get(0, 3*ms, 4*ms, "1"),
		}, want{}, Linearizable},
		{"an increment lost", []Operation{
			incr(0, 0, 1*ms, 1), incr(0, 2*ms, 3*ms, 2), get(0, 4*ms, 5*ms, "1"),
		}, want{lost: 1, stale: 1}, NotLinearizable},
		{"an increment lost and the number given again", []Operation{
			incr(0, 0, 1*ms, 1), incr(0, 2*ms, 3*ms, 2), incr(0, 4*ms, 5*ms, 2), get(0, 6*ms, 7*ms, "2"),
		}, want{lost: 1, stale: 2}, NotLinearizable},
		{"counted twice", []Operation{
			incr(0, 0, 1*ms, 1), get(0, 2*ms, 3*ms, "2"),
		}, want{twice: 1}, NotLinearizable},

		{"appending", []Operation{
			app(0, 0, 1*ms, "a;", 2), app(1, 0, 2*ms, "b;", 4), get(0, 3*ms, 4*ms, "a;b;"),
		}, want{}, Linearizable},
		{"an append lost", []Operation{
			app(0, 0, 1*ms, "a;", 2), app(0, 2*ms, 3*ms, "b;", 4), get(0, 4*ms, 5*ms, "a;"),
		}, want{lost: 1, stale: 1}, NotLinearizable},
		{"an append hidden", []Operation{
			app(0, 0, 1*ms, "a;", 2), app(0, 2*ms, 3*ms, "b;", 4), get(0, 4*ms, 5*ms, "a;"), get(0, 6*ms, 7*ms, "a;b;"),
		}, want{stale: 1}, NotLinearizable},
		{"an append twice", []Operation{
			app(0, 0, 1*ms, "a;", 2), get(0, 4*ms, 5*ms, "a;a;"),
		}, want{twice: 1}, NotLinearizable},
		{"a torn piece", []Operation{
			app(0, 0, 1*ms, "abc;", 4), get(0, 4*ms, 5*ms, "abc;ab"),
		}, want{corrupt: 1}, NotLinearizable},
		{"the order of two appends turned around", []Operation{
			app(0, 0, 1*ms, "a;", 2), app(0, 2*ms, 3*ms, "b;", 4), get(0, 4*ms, 5*ms, "b;a;"),
		}, want{}, NotLinearizable},
		{"a wrong length", []Operation{
			app(0, 0, 1*ms, "a;", 3),
		}, want{}, NotLinearizable},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Check(c.history, time.Minute)
			if got := (want{r.LostWrites, r.StaleReads, r.CorruptReads, r.Duplicated}); got != c.want {
				t.Errorf("found %+v, want %+v\n%s", got, c.want, strings.Join(r.Findings, "\n"))
			}
			if r.Linearizable != c.verdict {
				t.Errorf("linearizable: %s, want %s", r.Linearizable, c.verdict)
			}
			if r.Good() != (c.want == want{} && c.verdict == Linearizable) {
				t.Errorf("Good() = %v", r.Good())
			}
		})
	}
}

func TestAnUndecidedCheckIsNotGood(t *testing.T) {
	r := Check([]Operation{set(0, 0, ms, "a")}, -time.Second)
	if r.Linearizable != Undecided || r.Good() {
		t.Errorf("%s, good %v", r.Linearizable, r.Good())
	}
}

func TestRecorder(t *testing.T) {
	r := NewRecorder()
	for _, o := range []Operation{
		set(0, 0, 1*ms, "a"), set(1, 0, 2*ms, "b"),
		set(0, 10*ms, 60*ms, "c"), // the others' replies come first
		set(1, 11*ms, 61*ms, "d"),
		set(0, 62*ms, 63*ms, "e"),
	} {
		r.Add(o)
	}
	if s := r.LongestSilence(0, 63*ms); s != (Silence{2 * ms, 60 * ms}) {
		t.Errorf("longest silence %v", s)
	}
	if s := r.LongestSilence(30*ms, 63*ms); s != (Silence{30 * ms, 60 * ms}) {
		t.Errorf("longest silence from 30 ms on %v", s)
	}
	if s := r.LongestSilence(63*ms, 200*ms); s != (Silence{63 * ms, 200 * ms}) {
		t.Errorf("silence that has not ended %v", s)
	}
	if d := r.LongestWait(30*ms, 70*ms); d != 59*ms {
		t.Errorf("longest wait %v", d)
	}

	if err := r.AwaitReplies(t.Context(), 62*ms, 1); err != nil {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.AwaitReplies(t.Context(), 70*ms, 2) }()
	r.Add(set(0, 64*ms, Never, "f"))
	r.Add(set(1, 69*ms, 80*ms, "g"))
	select {
	case <-done:
		t.Fatal("a reply to an older request ended the wait")
	default:
	}
	r.Add(set(1, 71*ms, 90*ms, "h"))
	select {
	case <-done:
		t.Fatal("one client's reply ended the wait for two")
	default:
	}
	r.Add(set(0, 72*ms, 91*ms, "i"))
	if err := <-done; err != nil {
		t.Error(err)
	}
}
