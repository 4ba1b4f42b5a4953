package history

import (
	"context"
	"sort"
	"sync"
	"time"
)

// Recorder collects the operations of several clients on one monotonic clock.
type Recorder struct {
	start time.Time

	mu         sync.Mutex
	operations []Operation           // in the order in which they ended
	latestCall map[int]time.Duration // by client, of those requests that were answered
	waiters    []waiter
}

type waiter struct {
	call    time.Duration
	clients int
	done    chan struct{}
}

// NewRecorder starts an empty recording.
func NewRecorder() *Recorder {
	return &Recorder{start: time.Now(), latestCall: make(map[int]time.Duration)}
}

// Now is the time on the recorder's clock.
func (r *Recorder) Now() time.Duration { return time.Since(r.start) }

// At converts a point in time to the recorder's clock.
func (r *Recorder) At(t time.Time) time.Duration { return t.Sub(r.start) }

// Add records an operation that has ended, with a reply or without.
func (r *Recorder) Add(o Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.operations = append(r.operations, o)
	if !o.Known() {
		return
	}
	r.latestCall[o.Client] = max(r.latestCall[o.Client], o.Call)
	rest := r.waiters[:0]
	for _, w := range r.waiters {
		if r.answered(w.call) >= w.clients {
			close(w.done)
		} else {
			rest = append(rest, w)
		}
	}
	r.waiters = rest
}

// answered counts the clients of whom a request sent at call or later has been answered.
func (r *Recorder) answered(call time.Duration) int {
	n := 0
	for _, c := range r.latestCall {
		if c >= call {
			n++
		}
	}
	return n
}

// AwaitReplies waits until so many clients have got a reply to a request that they sent at call or
// later.
func (r *Recorder) AwaitReplies(ctx context.Context, call time.Duration, clients int) error {
	r.mu.Lock()
	if r.answered(call) >= clients {
		r.mu.Unlock()
		return nil
	}
	w := waiter{call: call, clients: clients, done: make(chan struct{})}
	r.waiters = append(r.waiters, w)
	r.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Operations returns a copy of all that has been recorded, in the order in which it ended.
func (r *Recorder) Operations() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Operation(nil), r.operations...)
}

// Len is the number of recorded operations.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.operations)
}

// between returns the replies that came in [from, to]. Operations end nearly in order, so the search
// starts a little before and looks at each.
func (r *Recorder) between(from, to time.Duration) []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []Operation
	for i := len(r.operations) - 1; i >= 0; i-- {
		o := &r.operations[i]
		if o.Known() && o.Return >= from && o.Return <= to {
			found = append(found, *o)
		}
		// Recorded in the order of ending, but by clients that may have been delayed between their
		// reply and Add: a second is far more than any such delay that matters here.
		if o.Known() && o.Return < from-time.Second {
			break
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Return < found[j].Return })
	return found
}

// Silence is a stretch in which no client got any reply.
type Silence struct{ Begin, End time.Duration }

// Duration is how long it took.
func (s Silence) Duration() time.Duration { return s.End - s.Begin }

// LongestSilence finds the longest stretch between from and to in which no client got a reply. It
// ends with a reply, or with to. A zero Silence: to isn't after from.
func (r *Recorder) LongestSilence(from, to time.Duration) Silence {
	var longest Silence
	last := from
	consider := func(end time.Duration) {
		if end-last > longest.Duration() {
			longest = Silence{Begin: last, End: end}
		}
		last = end
	}
	for _, o := range r.between(from, to) {
		consider(o.Return)
	}
	if to > last {
		consider(to)
	}
	return longest
}

// LongestWait is LongestGap's duration.
func (r *Recorder) LongestWait(from, to time.Duration) time.Duration {
	return r.LongestGap(from, to).Duration()
}

// LongestGap is the longest time between two replies on one connection of those that ended in
// [from, to]: the gap that a client saw. What the client itself paused between its requests counts
// as well, so it is never too small.
func (r *Recorder) LongestGap(from, to time.Duration) Silence {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := make(map[int]time.Duration)
	var longest Silence
	for i := range r.operations {
		o := &r.operations[i]
		if !o.Known() {
			continue
		}
		before, ok := last[o.Client]
		if ok && o.Return >= from && o.Return <= to && o.Return-before > longest.Duration() {
			longest = Silence{Begin: before, End: o.Return}
		}
		last[o.Client] = o.Return
	}
	return longest
}
