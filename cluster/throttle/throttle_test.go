package throttle

import (
	"fmt"
	"net"
	"testing"
	"time"
)

var start = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

func TestBurstAndRate(t *testing.T) {
	l := New(2, 3, 10)
	now := start
	for i := range 3 {
		if w := l.Take("a", now); w != 0 {
			t.Fatalf("%d of the burst waits %v", i, w)
		}
	}
	if w := l.Take("a", now); w != 500*time.Millisecond {
		t.Errorf("beyond the burst: %v", w)
	}
	if w := l.Take("b", now); w != 0 {
		t.Errorf("another key waits %v", w)
	}
	now = now.Add(500 * time.Millisecond)
	if w := l.Take("a", now); w != 0 {
		t.Errorf("when it was told: %v", w)
	}
	if w := l.Take("a", now); w == 0 {
		t.Error("two at once")
	}
	// Hours of rest give no more than the burst; a clock that goes back gives nothing.
	now = now.Add(time.Hour)
	n := 0
	for l.Take("a", now) == 0 {
		n++
	}
	if n != 3 {
		t.Errorf("%d after a rest", n)
	}
	if w := l.Take("a", now.Add(-time.Hour)); w == 0 {
		t.Error("a clock that went back filled the bucket")
	}
}

func TestKeysAreBounded(t *testing.T) {
	l := New(1, 2, 100)
	now := start
	for i := range 1000 {
		now = now.Add(time.Millisecond)
		l.Take(fmt.Sprint(i), now)
		if len(l.buckets) > 100 {
			t.Fatalf("%d keys", len(l.buckets))
		}
	}
	// The busiest is not forgotten for those that come once.
	l = New(1, 2, 100)
	for i := range 1000 {
		now = now.Add(time.Millisecond)
		l.Take("busy", now)
		l.Take(fmt.Sprint(i), now)
	}
	if l.Take("busy", now) == 0 {
		t.Error("the busy one was forgotten")
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3:99":               "10.1.2.3",
		"[::ffff:10.1.2.3]:99":      "10.1.2.3",
		"[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:99":         "fe80::/64",
	} {
		a, err := net.ResolveTCPAddr("tcp", in)
		if err != nil {
			t.Fatal(err)
		}
		if got := Address(a); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	if got := Address(&net.UnixAddr{Name: "x"}); got != "x" || Address(nil) != "" {
		t.Errorf("%q", got)
	}
}
