package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// reading is what the guest's program says; see inside/clock.go.
type reading struct {
	MonotonicNs     int64  `json:"monotonic_ns"`
	RealtimeNs      int64  `json:"realtime_ns"`
	Samples         uint64 `json:"samples"`
	MonotonicBackNs int64  `json:"monotonic_back_ns"`
	RealtimeBackNs  int64  `json:"realtime_back_ns"`
	MonotonicJumpNs int64  `json:"monotonic_jump_ns"`
	RealtimeJumpNs  int64  `json:"realtime_jump_ns"`
}

// sample is a reading of the guest's clocks, somewhere between two moments of the client's.
type sample struct {
	asked, answered time.Time
	reading
}

// clock asks for the guest's time several times a second.
type clock struct {
	s       *stage
	mu      sync.Mutex
	samples []sample
	err     error
}

func (s *stage) startClock() *clock {
	s.Helper()
	s.inBackground("clock", "inside clock 0.0.0.0:"+clockPort)
	c := &clock{s: s}
	go c.ask(s.dial(clockPort))
	return c
}

func (c *clock) ask(conn net.Conn) {
	in := json.NewDecoder(bufio.NewReader(conn))
	for ; ; time.Sleep(50 * time.Millisecond) {
		x := sample{asked: time.Now()}
		_, err := fmt.Fprintln(conn)
		if err == nil {
			err = in.Decode(&x.reading)
		}
		x.answered = time.Now()
		c.mu.Lock()
		if err != nil {
			c.err = err
			c.mu.Unlock()
			return
		}
		c.samples = append(c.samples, x)
		c.mu.Unlock()
	}
}

// more waits for n further readings and returns all.
func (c *clock) more(n int) []sample {
	c.s.Helper()
	c.mu.Lock()
	want := len(c.samples) + n
	c.mu.Unlock()
	c.s.eventually(fmt.Sprintf("%d readings of the guest's clocks", want), func(context.Context) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			c.s.Fatalf("after %d readings: %v", len(c.samples), c.err)
		}
		if len(c.samples) < want {
			return fmt.Errorf("%d", len(c.samples))
		}
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.samples[:len(c.samples):len(c.samples)]
}

// The rates of the guest's clocks and of the client's may differ by this much: the emulated hosts have measured the
// frequency of their counters with timers of their own.
const rateTolerance = 0.005

// slack is the resolution of that comparison.
const slack = 2 * time.Millisecond

// timely checks that between any reading before a moment and any one after it the guest's clocks have advanced by no more than the
// time between the question for the one and the answer to the other.
func (c *clock) timely(samples []sample, moment time.Time) {
	c.s.Helper()
	const window = 40
	at := 0
	for at < len(samples) && samples[at].answered.Before(moment) {
		at++
	}
	var excess [2]time.Duration
	for _, before := range samples[max(0, at-window):at] {
		for _, after := range samples[at:min(len(samples), at+window)] {
			real := after.answered.Sub(before.asked)
			allowed := real + time.Duration(rateTolerance*float64(real)) + slack
			excess[0] = max(excess[0], time.Duration(after.MonotonicNs-before.MonotonicNs)-allowed)
			excess[1] = max(excess[1], time.Duration(after.RealtimeNs-before.RealtimeNs)-allowed)
		}
	}
	if excess != [2]time.Duration{} {
		c.s.Errorf("the guest's clocks jumped by more than the outage: monotonic by %v, real time by %v", excess[0], excess[1])
	}
	last := samples[len(samples)-1]
	if last.MonotonicBackNs > 0 || last.RealtimeBackNs > 0 {
		c.s.Errorf("the guest's clocks stepped back: monotonic by %v, real time by %v", time.Duration(last.MonotonicBackNs), time.Duration(last.RealtimeBackNs))
	}
	c.s.Logf("%d readings inside; the largest steps so far: monotonic %v, real time %v; behind the client's clock since the beginning: %v",
		last.Samples, time.Duration(last.MonotonicJumpNs), time.Duration(last.RealtimeJumpNs),
		last.answered.Sub(samples[0].asked)-time.Duration(last.MonotonicNs-samples[0].MonotonicNs))
}

// A program in the guest that looks at the clock all the time sees no step back and no jump beyond the real outage, over
// a takeover and a switchover.
func TestGuestTime(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d-cpu", cpus), func(t *testing.T) {
			s := newStage(t, options{cpus: cpus})
			c := s.startClock()
			c.more(40)
			moment := time.Now()
			dead, _ := s.pullPlug()
			c.timely(c.more(40), moment)
			s.must(dead.Name+" is on again", dead.PowerOn(s.Context()))
			s.protected()
			c.more(40)
			moment = time.Now()
			s.must("the guest is switched over", s.cluster.Switchover(s.Context(), guestName))
			c.timely(c.more(40), moment)
		})
	}
}
