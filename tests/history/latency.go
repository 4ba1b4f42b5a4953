package history

import (
	"sort"
	"time"
)

// Latency is how long requests waited for their replies.
type Latency struct {
	P50, P99 time.Duration
	Replies  int
}

// Latency tells of the replies that came in [from, to].
func (r *Recorder) Latency(from, to time.Duration) Latency {
	replies := r.between(from, to)
	if len(replies) == 0 {
		return Latency{}
	}
	waits := make([]time.Duration, len(replies))
	for i := range replies {
		waits[i] = replies[i].Return - replies[i].Call
	}
	sort.Slice(waits, func(i, j int) bool { return waits[i] < waits[j] })
	return Latency{P50: waits[len(waits)/2], P99: waits[len(waits)*99/100], Replies: len(waits)}
}
