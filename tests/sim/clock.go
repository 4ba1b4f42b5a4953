package sim

import (
	"container/heap"
	"time"
)

// clock is virtual time: what is to happen, in order.
type clock struct {
	now   time.Duration
	seq   uint64
	queue agenda
}

type entry struct {
	at  time.Duration
	seq uint64
	fn  func()
}

type agenda []entry

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(entry)) }
func (a *agenda) Pop() any {
	old := *a
	n := len(old) - 1
	x := old[n]
	old[n] = entry{}
	*a = old[:n]
	return x
}

// after puts something on the agenda.
func (c *clock) after(d time.Duration, fn func()) {
	c.seq++
	heap.Push(&c.queue, entry{c.now + d, c.seq, fn})
}

// next lets the next thing happen; false: nothing is left.
func (c *clock) next() bool {
	if len(c.queue) == 0 {
		return false
	}
	e := heap.Pop(&c.queue).(entry)
	c.now = max(c.now, e.at)
	e.fn()
	return true
}
