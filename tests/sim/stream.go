package sim

import (
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	primary "github.com/pollux-ha/pollux/lockstep/core"
)

// stream is the primary's end of a connection to a replica: lockstep's stream.go.
type stream struct {
	e        *engine
	id       uint64
	party    pact.Party
	end      *end
	resume   bool
	up       bool
	welcomed bool
	over     bool
	acked    bool
	fill     *fill
	sentUpTo pact.Epoch
	chain    digest
	poking   bool
	why      string

	lastHeard, lastSent, lastAck time.Duration
}

// fill is a synchronization.
type fill struct {
	forget bool // the record of written pages has to start
	left   int  // epochs that it still takes
}

const (
	backoffMin = 2 * time.Millisecond
	backoffMax = 250 * time.Millisecond
	barrenMax  = 3
)

// connect keeps a stream to the peer for as long as one is wanted.
func (e *engine) connect() {
	if e.over || e.calling {
		return
	}
	if e.logging && e.stream == nil && e.image.party.IsZero() {
		e.logging = false
	}
	p := e.peer
	if p.Party.IsZero() || e.stream != nil {
		e.backoff = backoffMin
		return
	}
	entitled := e.core.Entitled()
	switch {
	case e.image.party == p.Party && (entitled.IsZero() || entitled == p.Party):
		e.call(p.Party, true)
	case e.core.MayFill():
		e.call(p.Party, false)
	default:
		e.backoff = backoffMin
	}
}

func (e *engine) call(party pact.Party, resume bool) {
	e.calling = true
	to := e.w.processes[party]
	e.w.streams++
	s := &stream{e: e, id: e.w.streams, party: party, resume: resume}
	c := e.w.dial(e.p, to)
	s.end = c.ends[0]
	to.side.accept(c.ends[1])
	e.stream = s
	s.end.take, s.end.gone = s.take, func(err error) { s.finish(err.Error()) }
	s.end.send(hello{term: e.core.Term(), primary: e.p.party, replica: party, resume: resume})
	e.p.timer(handshakeLimit, func() {
		if !s.welcomed {
			s.finish("no welcome in time")
		}
	})
}

// finish is the end of a stream as its reader sees it.
func (s *stream) finish(why string) {
	if s.over {
		return
	}
	s.over = true
	s.end.close()
	e := s.e
	if s.why == "" {
		s.why = why
	}
	if s.up {
		s.up = false
		e.step(primary.StreamDown{Stream: s.id, Why: s.why})
	}
	e.unlock()
	e.p.after(e.w.small(), func() { // the sender has to come back first
		e.stream = nil
		if s.fill != nil || e.image.party != s.party {
			e.forgetImage()
		}
		e.kick()
		switch {
		case s.acked:
			e.backoff, e.barren = backoffMin, 0
		case s.welcomed:
			e.barren++
		}
		if s.resume && e.barren >= barrenMax && e.core.Entitled().IsZero() {
			e.forgetImage()
			e.barren = 0
		}
		e.p.timer(e.backoff, func() { e.calling = false; e.connect() })
		e.backoff = min(max(2*e.backoff, backoffMin), backoffMax)
	})
}

// close ends it from this side; the reader notices a little later.
func (s *stream) close() {
	s.end.close()
	s.e.p.after(s.e.w.small(), func() { s.finish("closed here") })
}

// lose tells the core at once of a stream that has failed.
func (s *stream) lose() {
	s.up = false
	s.e.step(primary.StreamDown{Stream: s.id, Why: s.why})
	s.close()
}

func (e *engine) forgetImage() {
	e.image = held{}
	e.inflight = nil
	e.mirroring = false
}

func (e *engine) setPeer(p link.Peer) {
	if e.peer == p {
		return
	}
	e.peer = p
	if e.stream == nil && e.image.party != p.Party && e.core.Entitled() != e.image.party {
		e.forgetImage()
	}
	if s := e.stream; s != nil && s.party != p.Party && e.core.Entitled() != s.party {
		s.close()
	}
	e.unlock()
	e.p.after(0, e.connect)
}

// take handles one message of the replica's.
func (s *stream) take(m any) {
	if s.over {
		return
	}
	e := s.e
	if w, ok := m.(welcome); ok && !s.welcomed {
		s.answered(w)
		return
	}
	s.lastHeard = e.p.now()
	switch m := m.(type) {
	case higherTerm:
		e.step(primary.Word{Term: m.term})
	case beat:
		if m.term > e.core.Term() {
			e.step(primary.Word{Term: m.term})
		}
	case ack:
		if why := s.ack(m); why != "" {
			s.finish(why)
			return
		}
	case goodbye:
		s.finish("the replica says goodbye")
		return
	default:
		s.finish("a message where none may come")
		return
	}
	e.unlock()
}

func (s *stream) answered(w welcome) {
	e := s.e
	if e.over || w.refused != "" {
		s.finish("refused: " + w.refused)
		return
	}
	s.welcomed = true
	var why string
	if s.resume {
		why = s.goOn(w)
	} else {
		why = s.startFill()
	}
	if why == "" && !s.bringUp(w) {
		why = "this side does not want the stream"
	}
	if why != "" {
		s.welcomed = false // it was never up
		s.finish(why)
	}
}

// goOn resumes after the epoch that the replica holds.
func (s *stream) goOn(w welcome) string {
	e := s.e
	holds := false
	switch {
	case e.image.party != s.party || w.last < e.image.whole:
	case w.last == e.image.last:
		holds = w.sum == e.image.sum
	default:
		for _, ep := range e.inflight {
			if ep.number == w.last {
				holds = ep.sum == w.sum && ep.sum != 0
			}
		}
	}
	if !holds {
		if e.core.Entitled().IsZero() {
			e.forgetImage()
		}
		return "what it holds can't be gone on from"
	}
	e.dropAcked(w.last, w.sum)
	s.sentUpTo, s.chain = w.last, w.sum
	return ""
}

func (s *stream) startFill() string {
	e := s.e
	e.logging = true
	if !e.core.MayFill() {
		return "the replica can't be filled before a decision has been made"
	}
	e.forgetImage()
	e.mirroring = true
	s.fill = &fill{forget: true, left: 1 + e.w.rng.IntN(4)}
	s.sentUpTo = e.core.Captured()
	return ""
}

func (s *stream) bringUp(w welcome) bool {
	e := s.e
	now := e.p.now()
	s.lastHeard, s.lastSent, s.lastAck = now, now, now
	s.up = true
	e.contact = 0
	up := primary.StreamUp{Stream: s.id, Party: s.party}
	if s.resume {
		up.Resumed, up.Last = true, w.last
	}
	e.step(up)
	e.unlock()
	if s.end.closed {
		s.up = false
		return false
	}
	s.poke()
	return true
}

// ack takes an acknowledgement.
func (s *stream) ack(m ack) string {
	e := s.e
	var ep *epoch
	for _, i := range e.inflight {
		if i.number == m.epoch {
			ep = i
		}
	}
	switch {
	case ep == nil || m.epoch > s.sentUpTo:
		return "an epoch that was not sent is acknowledged"
	case ep.sum != 0 && ep.sum != m.sum:
		return "the replica holds something else"
	}
	e.gap()
	s.lastAck = e.p.now()
	s.acked = true
	e.dropAcked(m.epoch, m.sum)
	e.step(primary.Acked{Stream: s.id, Epoch: m.epoch})
	return ""
}

func (e *engine) dropAcked(upTo pact.Epoch, sum digest) {
	for len(e.inflight) > 0 && e.inflight[0].number <= upTo {
		e.inflight = e.inflight[1:]
	}
	if e.final.epoch != 0 && e.final.epoch == upTo {
		e.final.sum, e.final.acked = sum, true
	}
	if !e.image.party.IsZero() {
		e.image.last, e.image.sum = upTo, sum
	}
}

// poke has the sender send what is due.
func (s *stream) poke() {
	if s.poking {
		return
	}
	s.poking = true
	s.e.p.after(s.e.w.small()/2, func() {
		s.poking = false
		e := s.e
		if !s.up || s.end.closed {
			return
		}
		for _, ep := range e.inflight {
			if ep.number <= s.sentUpTo {
				continue
			}
			s.sentUpTo = ep.number
			m := &sent{number: ep.number, term: ep.term, syncing: ep.syncing, final: ep.final, before: s.chain, whole: ep.whole, base: ep.base, state: ep.state, frames: ep.frames}
			s.chain = s.chain.chain(ep.number, ep.state)
			m.sum = s.chain
			ep.sum = m.sum
			s.lastSent = e.p.now()
			s.end.send(m)
		}
	})
}
