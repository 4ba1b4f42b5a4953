package sim

import "time"

// clock is virtual time: what is to happen, in order.
type clock struct {
	now   time.Duration
	steps int // things that have happened
	seq   uint32
	queue []entry // a heap of four branches; without pointers, so that moving entries costs next to nothing
	fns   []func()
	free  []int32
}

type entry struct {
	at  time.Duration
	seq uint32
	fn  int32 // index into fns
}

func (e entry) before(o entry) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

const branches = 4

// after puts something on the agenda.
func (c *clock) after(d time.Duration, fn func()) {
	c.seq++
	e := entry{at: c.now + d, seq: c.seq}
	if n := len(c.free); n > 0 {
		e.fn = c.free[n-1]
		c.free = c.free[:n-1]
		c.fns[e.fn] = fn
	} else {
		e.fn = int32(len(c.fns))
		c.fns = append(c.fns, fn)
	}
	c.queue = append(c.queue, e)
	q, i := c.queue, len(c.queue)-1
	for i > 0 {
		up := (i - 1) / branches
		if !e.before(q[up]) {
			break
		}
		q[i] = q[up]
		i = up
	}
	q[i] = e
}

// next lets the next thing happen; false: nothing is left.
func (c *clock) next() bool {
	if len(c.queue) == 0 {
		return false
	}
	first := c.queue[0]
	c.sink()
	fn := c.fns[first.fn]
	c.fns[first.fn] = nil
	c.free = append(c.free, first.fn)
	c.now = max(c.now, first.at)
	c.steps++
	fn()
	return true
}

// sink takes the first entry away.
func (c *clock) sink() {
	n := len(c.queue) - 1
	e := c.queue[n]
	c.queue = c.queue[:n]
	if n == 0 {
		return
	}
	q, i := c.queue, 0
	for {
		low := i*branches + 1
		if low >= n {
			break
		}
		for j := low + 1; j < min(low+branches, n); j++ {
			if q[j].before(q[low]) {
				low = j
			}
		}
		if !q[low].before(e) {
			break
		}
		q[i] = q[low]
		i = low
	}
	q[i] = e
}
