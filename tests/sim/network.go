package sim

import (
	"errors"
	"time"
)

var (
	errClosed = errors.New("closed by the peer")
	errReset  = errors.New("connection reset")
)

// conn is a connection between two processes: two queues of messages that keep their order. While a way is
// cut, what is on it waits, as in a TCP that sends again; a reset loses what is on the way from some point on.
type conn struct {
	w    *World
	ends [2]*end // 0: who called
}

type end struct {
	c      *conn
	side   int
	p      *process
	queue  []packet // on their way to this end
	last   time.Duration
	closed bool
	busy   bool // does not read
	take   func(any)
	gone   func(error)
}

type packet struct {
	at   time.Duration
	what any // a message, or an error: the end
}

// dial makes a connection to a process; nobody may be there.
func (w *World) dial(from *process, to *process) *conn {
	c := &conn{w: w}
	for i, p := range []*process{from, to} {
		c.ends[i] = &end{c: c, side: i, p: p}
	}
	w.conns = append(w.conns, c)
	return c
}

func (e *end) other() *end { return e.c.ends[1-e.side] }

func (e *end) send(what any) {
	if !e.closed {
		e.other().arrive(what)
	}
}

// arrive puts something on the way to e.
func (e *end) arrive(what any) {
	w := e.c.w
	e.last = max(e.last, w.now+w.latency())
	e.queue = append(e.queue, packet{e.last, what})
	w.after(e.last-w.now, e.pump)
}

// pump delivers what has arrived.
func (e *end) pump() {
	w := e.c.w
	for len(e.queue) > 0 && e.queue[0].at <= w.now {
		if !w.linkUp(e.other().p.host.node, e.p.host.node) || !e.p.host.on {
			return // until it heals
		}
		if !e.closed && e.p.alive {
			if e.p.frozen() {
				w.after(e.p.frozenUntil-w.now+w.small(), e.pump)
				return
			}
			if e.busy {
				return
			}
		}
		what := e.queue[0].what
		e.queue = e.queue[1:]
		err, end := what.(error)
		switch {
		case e.closed || !e.p.alive:
			if !end {
				e.queue = nil
				e.closed = true
				e.other().arrive(errReset)
			}
		case end:
			e.closed = true
			if e.gone != nil {
				e.gone(err)
			}
		case e.take != nil:
			e.take(what)
		}
	}
}

// close ends the connection from this end, without a word to its own process.
func (e *end) close() {
	if e.closed {
		return
	}
	e.closed = true
	e.other().arrive(errClosed)
}

// reset breaks it: of what is on the way some is lost.
func (c *conn) reset() {
	for _, e := range c.ends {
		if n := len(e.queue); n > 0 {
			e.queue = e.queue[:c.w.rng.IntN(n+1)]
		}
		e.last = 0
		if n := len(e.queue); n > 0 {
			e.last = e.queue[n-1].at
		}
		e.arrive(errReset)
	}
}

// linkUp says whether the way from one host to the other works.
func (w *World) linkUp(from, to *node) bool { return from == to || !w.cut[from.index] }

// cutLink cuts the way from a host to its twin for a while; healLink mends it.
func (w *World) cutLink(from int, d time.Duration) {
	w.cut[from] = true
	w.cuts[from]++
	n := w.cuts[from]
	w.after(d, func() {
		if w.cuts[from] == n {
			w.healLink(from)
		}
	})
}

func (w *World) healLink(from int) {
	w.cut[from] = false
	w.pumpAll()
}

func (w *World) pumpAll() {
	kept := w.conns[:0]
	for _, c := range w.conns {
		if c.ends[0].closed && c.ends[1].closed {
			continue
		}
		kept = append(kept, c)
	}
	clear(w.conns[len(kept):])
	w.conns = kept
	for _, c := range w.conns {
		for _, e := range c.ends {
			w.after(w.latency(), e.pump)
		}
	}
}
