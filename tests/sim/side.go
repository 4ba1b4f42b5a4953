package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/fencing"
	replica "github.com/pollux-ha/pollux/replica/core"
)

// side is a model of replica.Side with its handler in cmd/pollux/dataplane.
type side struct {
	p         *process
	w         *World
	core      *replica.Core
	silence   *fencing.Silence
	sessions  map[replica.Conn]*session
	conns     replica.Conn
	image     image
	work      []func(done func())
	again     int            // numbers the timers: the last one counts
	preparing []replica.Conn // streams for which the disks are being made ready
	half      bool           // the last stream ended in the middle of an epoch
	closed    bool
}

// image is what this process holds of a guest that does not run in it.
type image struct {
	epoch  pact.Epoch
	sum    digest
	state  *event
	resend []*sent // of the last epochs
}

const resendEpochs = 8

func newSide(p *process) *side {
	s := &side{
		p: p, w: p.w, core: replica.New(p.host.g.name, p.party),
		silence: fencing.NewSilence(), sessions: map[replica.Conn]*session{},
	}
	s.watch()
	return s
}

func (s *side) watch() {
	if s.silence.Check(s.p.now()) {
		s.step(replica.Silent{})
	}
	s.p.timer(silence/10, s.watch)
}

func (s *side) step(ev replica.Event) {
	if s.closed {
		return
	}
	before := s.core.State()
	ev = s.w.mutant.toReplica(s, ev)
	s.w.Stats.Events++
	if s.w.tracing {
		switch ev.(type) {
		case replica.Staged, replica.Again:
		default:
			s.p.trace("replica < %T%s", ev, brief(ev))
		}
	}
	for _, a := range s.w.mutant.fromReplica(s, ev, s.core.Step(ev)) {
		if _, hot := a.(replica.Ack); !hot && s.w.tracing {
			s.p.trace("replica > %T%s", a, brief(a))
		}
		s.do(a)
	}
	if after := s.core.State(); after != before && s.w.tracing {
		s.p.trace("is %s now", after)
	}
}

// brief shows an event or action without the whole assignment.
func brief(x any) string {
	switch x := x.(type) {
	case replica.Applied:
		return fmt.Sprintf("{term %d %s}", x.Assignment.Term, x.Assignment.Mode)
	case replica.Activate:
		return fmt.Sprintf("{term %d from %d}", x.Assignment.Term, x.From)
	case replica.ColdStart:
		return fmt.Sprintf("{term %d}", x.Assignment.Term)
	case replica.TakeReplica:
		return fmt.Sprintf("{term %d base %d}", x.Assignment.Term, x.Base)
	case replica.Answered:
		return fmt.Sprintf("{%s unknown %t applied %t term %d}", x.ID, x.Unknown, x.Verdict.Applied, x.Verdict.Assignment.Term)
	case replica.Propose:
		return fmt.Sprintf("{%s term %d epoch %d}", x.Command.Kind, x.Command.Term, x.Command.Epoch)
	}
	return fmt.Sprintf("%+v", x)
}

func (s *side) do(a replica.Action) {
	switch a := a.(type) {
	case replica.Prepare:
		s.tell(a.Conn, a)
	case replica.Welcome:
		s.tell(a.Conn, a)
	case replica.Refuse:
		s.tell(a.Conn, a)
	case replica.Ack:
		s.tell(a.Conn, a)
	case replica.Drop:
		s.tell(a.Conn, a)
	case replica.Close:
		if x := s.sessions[a.Conn]; x != nil {
			x.abort()
		}
	case replica.Propose:
		s.p.propose(a.Command)
	case replica.AskLater:
		s.again++
		n := s.again
		s.p.timer(askAgain, func() {
			if s.again == n {
				s.step(replica.Again{})
			}
		})
	case replica.Arm:
		limit, grace := silence, time.Duration(0)
		if a.FirstContact {
			grace = contact
		}
		if s.core.State() == replica.Syncing {
			limit *= link.SyncSilences
		}
		s.silence.Arm(s.p.now(), limit, grace)
	case replica.Disarm:
		s.silence.Disarm()
	case replica.Heard:
		if e := s.p.engine; e != nil {
			s.p.after(s.w.small(), func() { e.word(a.Term) })
		}
	case replica.Outdated:
		s.later(func(done func()) {
			s.p.after(s.w.diskDelay(), func() {
				if d := &s.p.host.disk; !d.broken && (d.state == "" || d.state == "current" && d.term < a.Term) {
					d.state = "outdated"
				}
				done()
			})
		})
	case replica.ColdStart:
		decided := s.p.now()
		s.later(func(done func()) {
			if s.core.State() != replica.Activating {
				done()
				return
			}
			s.coldStart(a, decided, done)
		})
	case replica.Activate:
		decided := s.p.now()
		s.later(func(done func()) {
			if s.core.State() != replica.Activating {
				done()
				return
			}
			s.activate(a, decided, done)
		})
	case replica.TakeReplica:
		s.later(s.takeReplica)
	case replica.End:
		s.later(func(done func()) { s.end(a, done) })
	}
}

// later runs what takes its time, one thing after the other.
func (s *side) later(fn func(done func())) {
	s.work = append(s.work, fn)
	if len(s.work) == 1 {
		s.p.after(0, s.next)
	}
}

func (s *side) next() {
	s.work[0](func() {
		s.work = s.work[1:]
		if len(s.work) > 0 {
			s.p.after(0, s.next)
		}
	})
}

// whenIdle runs fn once nothing is under way that may use the image: no work, and no stream before this one that is
// still being made ready, wanted or not.
func (s *side) whenIdle(id replica.Conn, fn func()) {
	if len(s.work) == 0 && !slices.ContainsFunc(s.preparing, func(o replica.Conn) bool { return o < id }) {
		fn()
		return
	}
	s.p.after(1e6, func() { s.whenIdle(id, fn) })
}

func (s *side) coldStart(a replica.ColdStart, decided time.Duration, done func()) {
	d := &s.p.host.disk
	known := a.Assignment.CurrentDisk.Host != s.p.host.name || a.Assignment.CurrentDisk.Term == d.term
	x := line{kind: lineStart, guest: s.p.host.g, party: s.p.party, term: a.Assignment.Term}
	var no string
	switch {
	case !s.w.mutant.staleDisk && (d.state == "outdated" && !known || d.state == "inconsistent" && !s.p.accepts):
		no = "the disk is " + d.state
	case !s.w.mutant.silentStart && !s.p.host.events.log(x):
		no = "the event log can't be written"
	}
	if no != "" {
		s.step(replica.Failed{Err: "cold start refused: " + no})
		done()
		return
	}
	s.p.after(s.w.diskDelay(), func() {
		if d.broken {
			s.step(replica.Failed{Err: "the disk can't be written"})
			done()
			return
		}
		s.p.machine.state = d.holds
		d.flush(d.holds)
		s.p.begin(start{assignment: a.Assignment, since: decided, cold: true})
		d.torn = false
		s.handOver(done)
	})
}

func (s *side) activate(a replica.Activate, decided time.Duration, done func()) {
	s.p.after(s.w.diskDelay(), func() {
		if s.image.epoch != a.From {
			s.step(replica.Failed{Err: "the image is not at the epoch that was acknowledged"})
			done()
			return
		}
		d := &s.p.host.disk
		if d.broken {
			s.step(replica.Failed{Err: "the disk can't be written"})
			done()
			return
		}
		if s.w.mutant.tears {
			s.tear()
		}
		s.p.machine = machine{state: s.image.state}
		d.holds, d.torn = s.image.state, false
		if !s.w.mutant.unflushed {
			d.flush(d.holds)
		}
		s.p.saved = nil
		var frames []*event
		for _, e := range s.image.resend {
			frames = append(frames, e.frames...)
		}
		if !s.w.mutant.silentTakeover {
			s.p.host.events.note(s.w, s.p, line{kind: lineTakeover, guest: s.p.host.g, party: s.p.party, term: a.Assignment.Term})
		}
		s.p.begin(start{assignment: a.Assignment, last: s.image.epoch, sum: s.image.sum, frames: frames, since: decided})
		s.handOver(done)
	})
}

// handOver tells that the guest runs, a little after it has begun to.
func (s *side) handOver(done func()) {
	s.p.after(s.w.small(), func() {
		s.step(replica.Activated{})
		done()
	})
}

func (s *side) takeReplica(done func()) {
	e := s.p.engine
	if e == nil || e.over && e.done && !e.final.acked || !e.over {
		s.step(replica.Failed{Err: "no final epoch was kept"})
		done()
		return
	}
	if !e.done {
		s.p.after(1e6, func() { s.takeReplica(done) })
		return
	}
	s.image = image{epoch: e.final.epoch, sum: e.final.sum, state: e.final.state}
	s.p.engine = nil
	e.close()
	s.p.after(s.w.diskDelay(), func() {
		if a, _ := s.core.Assignment(); s.image.epoch != a.Base && a.Mode == pact.Protected && a.Replica == s.p.party {
			s.step(replica.Failed{Err: "another final epoch"})
		}
		done()
	})
}

func (s *side) end(a replica.End, done func()) {
	if e := s.p.engine; e != nil && a.How != replica.EndFailed && !e.done && !s.p.ending {
		s.p.after(1e6, func() { s.end(a, done) })
		return
	}
	s.closed = true
	s.p.end(a.How, a.Why)
	done()
}

// tell gives a decision to the session that waits for it.
func (s *side) tell(c replica.Conn, a replica.Action) {
	if x := s.sessions[c]; x != nil {
		x.decided(a)
	}
}

// accept takes a connection from a primary.
func (s *side) accept(e *end) {
	s.conns++
	x := &session{s: s, id: s.conns, end: e}
	s.sessions[x.id] = x
	e.take, e.gone = x.take, x.gone
}

// advance applies an epoch to the image.
func (i *image) advance(m *sent) {
	if m.syncing || !m.whole && i.state != m.base {
		i.state = &event{} // torn: part of no history
	} else {
		i.state = m.state
	}
	i.epoch, i.sum = m.number, m.sum
	if len(m.frames) > 0 {
		i.resend = append(i.resend, m)
	}
	i.resend = slices.DeleteFunc(i.resend, func(o *sent) bool { return o.number+resendEpochs <= i.epoch })
}

// tear makes the image what it is with part of an epoch that had not come whole: part of no history.
func (s *side) tear() {
	if s.half {
		s.image.state = &event{}
	}
}
