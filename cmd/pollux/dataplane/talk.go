package dataplane

import (
	"context"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/replica/core"
	"github.com/pollux-ha/pollux/replica/mark"
)

// hello is what a new daemon is told first.
func (p *process) hello() []link.Message {
	s := p.status()
	return []link.Message{
		{Hello: &link.Hello{Guest: p.cfg.Guest, Party: p.cfg.Party, PID: os.Getpid(), StreamAddress: p.streamAddress(), TakesFiles: !p.cfg.Confine.Off()}},
		{Status: &s},
	}
}

// daemonUp puts every question without an answer again.
func (p *process) daemonUp() {
	p.side.Step(core.Again{})
	if e := p.currentEngine(); e != nil {
		e.LinkUp()
	}
}

// take handles a message of the daemon's.
func (p *process) take(m link.Message) {
	p.gate.Beat() // after a standstill nothing is begun before it has been noticed
	switch {
	case m.Assignment != nil:
		a := *m.Assignment
		if a.Guest != p.cfg.Guest {
			p.log.Warn("an assignment of another guest", zap.String("of", a.Guest))
			return
		}
		p.mu.Lock()
		if a.Term >= p.applied.Term {
			p.applied = a
		}
		e := p.engine
		p.mu.Unlock()
		// The primary's side first: what it learns stops it; what the replica's side learns may wait for that.
		if e != nil {
			e.Assigned(a)
		}
		p.side.Step(core.Applied{Assignment: a})
		p.change("")
	case m.Answer != nil:
		if e := p.currentEngine(); e != nil {
			e.Answered(*m.Answer)
		}
		ev := core.Answered{ID: m.Answer.ID, Unknown: m.Answer.Verdict == nil}
		if m.Answer.Verdict != nil {
			ev.Verdict = *m.Answer.Verdict
		}
		p.side.Step(ev)
	case m.Peer != nil:
		p.mu.Lock()
		p.peer = *m.Peer
		e := p.engine
		p.mu.Unlock()
		if e != nil {
			e.SetPeer(*m.Peer)
		}
	case m.Order != nil:
		p.follow(*m.Order, m.File)
	default:
		p.log.Warn("a message of the daemon's that this program does not know")
	}
}

// follow does what an operator wants, once the event log has it.
func (p *process) follow(o link.Order, file *os.File) {
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	detail := map[string]any{"order": o.Kind}
	if o.Kind == link.OrderKill {
		p.events.Note(audit.Operator, detail) // stopping never waits for the log
	} else if err := p.events.Log(audit.Operator, detail); err != nil {
		p.log.Error("an order is not followed: the event log can't be written", zap.String("order", o.Kind), zap.Error(err))
		p.change("the event log can't be written: " + err.Error())
		return
	}
	e := p.currentEngine()
	if e == nil && (o.Kind == link.OrderSwitchover || o.Kind == link.OrderPowerButton || o.Kind == link.OrderKill || o.Kind == link.OrderBalloon ||
		o.Kind == link.OrderReset || o.Kind == link.OrderDump) {
		(*host)(p).Refused(o.Kind + ": the guest does not run here")
		p.noDump(o)
		return
	}
	switch o.Kind {
	case link.OrderSwitchover:
		e.Switchover()
	case link.OrderPowerButton:
		p.powerButton()
	case link.OrderReset:
		p.reset(p.life.begin(0), "an operator ordered it", false)
	case link.OrderDump:
		p.writeDump(o.Path, file)
		file = nil
	case link.OrderKill:
		e.Kill("by order")
	case link.OrderBalloon:
		p.setBalloon(o.MemoryBytes)
	case link.OrderDamage:
		p.inject(o.Damage)
	case link.OrderAbandon:
		p.side.Step(core.Abandon{})
	case link.OrderAcceptInconsistent:
		p.mu.Lock()
		p.order = mark.Inconsistent
		p.mu.Unlock()
	default:
		p.log.Warn("an order that this program does not know", zap.String("order", o.Kind))
	}
}

// change has the daemon told soon that something is new, with a word for people if there is one.
func (p *process) change(detail string) {
	if detail != "" {
		p.mu.Lock()
		p.detail = detail
		p.mu.Unlock()
	}
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// tell sends the status after every change, and now and then.
func (p *process) tell(ctx context.Context) {
	t := time.NewTicker(statusEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.changed:
		case <-t.C:
		}
		p.announceStatus()
	}
}

func (p *process) announceStatus() {
	s := p.status()
	p.control.say(link.Message{Status: &s})
}

func (p *process) status() link.Status {
	p.mu.Lock()
	e, a, detail, took := p.engine, p.applied, p.detail, p.takeover
	p.mu.Unlock()
	state, acked, _ := p.side.State()
	s := link.Status{
		Guest: p.cfg.Guest, Party: p.cfg.Party, Term: a.Term, Mode: "stopped", Detail: detail,
		Role: link.RoleWaiting, EpochAcked: acked, EpochDurable: p.store.Durable(), Confinement: p.confinement,
	}
	switch state {
	case core.Syncing:
		s.Role, s.Mode = link.RoleReplica, "syncing"
	case core.Replica:
		s.Role, s.Mode = link.RoleReplica, "protected"
	case core.Promoting:
		s.Role, s.Mode = link.RoleReplica, "deciding"
	case core.Activating:
		s.Role, s.Mode = link.RolePrimary, "deciding"
	case core.Primary:
		s.Role = link.RolePrimary
	case core.Ended:
		s.Role = link.RoleLoser
	}
	if e != nil {
		e.Status(&s)
		s.Balloon = p.balloon()
		if s.Detail == "" {
			s.Detail = detail
		}
	}
	p.tellLife(&s)
	if s.TimingsUs == nil {
		s.TimingsUs = map[string]link.Summary{}
	}
	took.timings(s.TimingsUs)
	return s
}
