package fencing

import (
	"slices"
	"time"
)

// Flap counts how often hosts fail, and says when one does so too often to be given anything. It has no clock of
// its own and is not safe for concurrent use.
type Flap struct {
	faults int
	within time.Duration
	seen   map[string][]time.Duration // by host, oldest first, at most faults of them
}

// NewFlap makes a counter for so many faults within a time.
func NewFlap(faults int, within time.Duration) *Flap {
	return &Flap{faults: faults, within: within, seen: map[string][]time.Duration{}}
}

// Fault notes a fault of a host, and says whether that is one too many. Afterwards its count begins anew.
func (f *Flap) Fault(host string, now time.Duration) bool {
	seen := slices.DeleteFunc(f.seen[host], func(t time.Duration) bool { return now-t > f.within })
	seen = append(seen, now)
	if len(seen) < f.faults {
		f.seen[host] = seen
		return false
	}
	delete(f.seen, host)
	return true
}

// Forget begins a host's count anew.
func (f *Flap) Forget(host string) { delete(f.seen, host) }
