package sim

import (
	"slices"
	"time"

	replica "github.com/pollux-ha/pollux/replica/core"
)

// behindLimit is how long a stream of a term that this host's log does not have yet may wait for it.
const behindLimit = 100 * time.Millisecond

// session is a replica's end of a stream: replica/session.go.
type session struct {
	s        *side
	id       replica.Conn
	end      *end
	hello    *hello
	accepted bool
	over     bool
	waiting  *sent // for its Ack or Drop
	expect   digest
	first    bool // the next epoch begins the chain
	wrote    time.Duration
}

func (x *session) take(m any) {
	if x.over {
		return
	}
	if x.accepted {
		x.s.silence.Heard(x.s.p.now())
	}
	switch m := m.(type) {
	case hello:
		x.hello = &m
		x.end.busy = true
		x.s.step(replica.HeardTerm{Term: m.term})
		x.open(x.s.p.now() + behindLimit)
	case *sent:
		x.epoch(m)
	case beat:
		x.heard(replica.HeardTerm{Term: m.term})
	case higherTerm:
		x.heard(replica.HeardTerm{Term: m.term})
	case goodbye:
		x.lost("the primary says goodbye", true)
	}
}

// open lets the state machine decide, once this host's log has come to the stream's term or is too late.
func (x *session) open(limit time.Duration) {
	if x.over {
		return
	}
	h := x.hello
	if a, ok := x.s.core.Assignment(); (!ok || a.Term < h.term) && x.s.p.now() < limit {
		x.s.p.after(time.Millisecond, func() { x.open(limit) })
		return
	}
	x.end.busy = false
	x.s.step(replica.Opened{Conn: x.id, Host: h.primary.Host, Term: h.term, Primary: h.primary, Replica: h.replica, Resume: h.resume})
	x.free()
}

func (x *session) heard(h replica.HeardTerm) {
	if h.Term > x.hello.term {
		x.s.step(h)
	}
}

func (x *session) epoch(m *sent) {
	if !x.first && m.before != x.expect {
		x.lost("the chain is broken", true)
		return
	}
	if x.s.p.host.disk.broken {
		// This host's own disk has no room for it: it must not ask for a guest that it could not run.
		x.s.step(replica.Failed{Err: "the disk can't be written"})
		x.lost("the disk can't be written", true)
		return
	}
	x.waiting = m
	x.end.busy = true
	x.s.step(replica.Staged{Conn: x.id, Epoch: m.number, Term: m.term, Syncing: m.syncing, Final: m.final})
}

// decided takes the state machine's word on this session.
func (x *session) decided(a replica.Action) {
	s := x.s
	switch a := a.(type) {
	case replica.Refuse:
		if a.Term != 0 {
			x.end.send(higherTerm{a.Term})
		}
		w := welcome{refused: a.Why}
		if a.Blank {
			w.refused = ""
		}
		x.end.send(w)
		x.end.close()
		s.p.after(0, func() { x.lost("refused", true) })
	case replica.Prepare:
		s.preparing = append(s.preparing, x.id)
		s.whenIdle(x.id, func() {
			s.p.after(s.w.diskDelay(), func() {
				s.preparing = slices.DeleteFunc(s.preparing, func(o replica.Conn) bool { return o == x.id })
				e := replica.Prepared{Conn: x.id}
				d := &s.p.host.disk
				switch {
				case x.over:
					e.Err = "the stream is not wanted any more"
				case !s.p.host.events.log(line{kind: lineResync, guest: s.p.host.g, party: s.p.party}):
					e.Err = "the event log can't be written"
				case d.broken:
					e.Err = "the disk can't be written"
				default:
					d.state, d.holds, d.durable = "inconsistent", nil, nil
				}
				s.image = image{}
				s.step(e)
			})
		})
	case replica.Welcome:
		s.whenIdle(x.id, func() {
			if x.over {
				return
			}
			if a.Last != s.image.epoch {
				x.lost("the image is not at the epoch that was acknowledged", false)
				return
			}
			x.expect, x.first, x.accepted = s.image.sum, a.Last == 0, true
			s.silence.Heard(s.p.now())
			x.end.send(welcome{last: a.Last, sum: s.image.sum})
			x.wrote = s.p.now()
			x.beat()
		})
	case replica.Ack:
		m := x.waiting
		x.waiting, s.half = nil, false
		x.first, x.expect = false, m.sum
		x.end.send(ack{m.number, m.sum})
		x.wrote = s.p.now()
		if m.syncing || !s.w.mutant.losesEpoch(m) {
			s.image.advance(m)
			if s.image.state.number() == 0 {
				s.p.trace("holds nothing whole after epoch %d (whole %t, syncing %t)", m.number, m.whole, m.syncing)
			}
		} else {
			s.image.epoch, s.image.sum = m.number, m.sum
		}
		if !m.syncing {
			s.journal()
		}
		s.p.host.g.checks.acknowledged(s.p, s.image.state)
		x.free()
	case replica.Drop:
		x.waiting = nil
		x.free()
	}
}

// free goes on reading.
func (x *session) free() {
	x.s.p.after(0, func() {
		x.end.busy = false
		x.end.pump()
	})
}

func (x *session) beat() {
	if x.over {
		return
	}
	if now := x.s.p.now(); now-x.wrote >= heartbeat {
		x.wrote = now
		x.end.send(beat{x.hello.term})
	}
	x.s.p.timer(heartbeat, x.beat)
}

func (x *session) gone(err error) { x.lost(err.Error(), false) }

// abort ends it from this side.
func (x *session) abort() {
	x.end.close()
	x.s.p.after(x.s.w.small(), func() { x.lost("closed here", false) })
}

func (x *session) lost(why string, alive bool) {
	if x.over {
		return
	}
	x.over = true
	for _, q := range x.end.queue {
		if _, ok := q.what.(*sent); ok {
			x.s.half = true
		}
	}
	x.end.close()
	delete(x.s.sessions, x.id)
	x.s.step(replica.Lost{Conn: x.id, Why: why, Alive: alive})
}

// journal has the newest epoch's writes come to the disk. They are durable a little later: the disk is whole then,
// as of an epoch.
func (s *side) journal() {
	d, e := &s.p.host.disk, s.image.state
	d.holds = e
	if d.state != "inconsistent" && !d.holds.contains(d.durable) {
		d.durable = common(d.holds, d.durable)
	}
	s.p.after(s.w.upTo(s.w.journalLag)+s.w.diskDelay(), func() {
		if d.owner != s.p || s.p.engine != nil || d.broken || !d.holds.contains(e) {
			return
		}
		d.flush(e)
		if d.state == "inconsistent" {
			d.state = "outdated"
		}
	})
}
