package fencing

import (
	"testing"
	"time"
)

func TestFlap(t *testing.T) {
	f := NewFlap(3, time.Minute)
	type fault struct {
		host string
		at   time.Duration
		want bool
	}
	for i, c := range []fault{
		{"a", 0, false},
		{"a", 10 * time.Second, false},
		{"b", 11 * time.Second, false},
		{"a", 61 * time.Second, false}, // the first is too long ago
		{"a", 70 * time.Second, true},  // 10 s, 61 s, 70 s
		{"a", 71 * time.Second, false}, // it begins anew
		{"a", 72 * time.Second, false},
	} {
		if got := f.Fault(c.host, c.at); got != c.want {
			t.Errorf("fault %d of %s at %v: %v", i, c.host, c.at, got)
		}
	}
	f.Forget("a")
	if f.Fault("a", 73*time.Second) {
		t.Error("what was forgotten counts")
	}
}
