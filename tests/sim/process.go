package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	replica "github.com/pollux-ha/pollux/replica/core"
)

// Times of the drivers, as in their defaults.
const (
	heartbeat       = link.DefaultHeartbeat
	silence         = link.DefaultSilence
	maxEpoch        = link.DefaultMaxEpoch
	askAgain        = link.DefaultAskAgain
	contact         = 4 * silence // of a replica that waits for its primary's next stream
	switchoverLimit = 2 * time.Second
	ackLimit        = 5 * time.Second
	handshakeLimit  = 5 * time.Second
)

// machine is a guest's machine.
type machine struct {
	running bool
	stopped bool // for good
	off     bool // the guest has switched itself off
	state   *event
}

// process is a data-plane process: cmd/pollux/dataplane's.
type process struct {
	w     *World
	host  *host
	party pact.Party
	cold  bool // was started for a cold start
	// accepts: by an operator's order it may start from a disk whose blocks are of different moments.
	accepts bool

	alive       bool
	frozenSince time.Duration
	frozenUntil time.Duration
	confirmed   time.Duration // when Raft last had an answer for it
	ending      bool

	machine machine
	side    *side
	engine  *engine
	newest  pact.Assignment
	peer    link.Peer
	told    link.Peer // by the daemon, last
	last    pact.Epoch
	alived  time.Duration // the gate's last look at the clock
	saved   *event        // up to here the guest was told that its writes are on the disk
	failed  bool          // the disk has failed under it
}

func newProcess(h *host, cold bool) *process {
	w := h.w
	w.incarnations++
	p := &process{w: w, host: h, party: pact.Party{Host: h.name, Incarnation: w.incarnations}, cold: cold, alive: true, alived: h.clock()}
	h.disk.owner = p
	w.processes[p.party] = p
	p.side = newSide(p)
	p.pulse()
	return p
}

func short(p pact.Party) string {
	if p.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%s%d", p.Host, p.Incarnation)
}

func (p *process) trace(format string, args ...any) {
	if p.w.tracing {
		p.w.tracef("%-4s     %s", short(p.party), fmt.Sprintf(format, args...))
	}
}

func (p *process) frozen() bool { return p.frozenUntil > p.w.now }

// after runs something in the process, later: not at all in a dead one, after its sleep in a frozen one.
func (p *process) after(d time.Duration, fn func()) {
	p.w.after(d, func() { p.run(fn) })
}

func (p *process) run(fn func()) {
	switch {
	case !p.alive:
	case p.frozen():
		// Who wakes first is anybody's guess.
		p.w.after(p.frozenUntil-p.w.now+p.w.small(), func() { p.run(fn) })
	default:
		fn()
	}
}

// freeze stops all of the process for a while.
func (p *process) freeze(d time.Duration) {
	p.trace("is frozen for %v", d)
	if !p.frozen() {
		p.frozenSince = p.w.now
	}
	p.frozenUntil = max(p.frozenUntil, p.w.now+d)
}

// die ends the process at once. silent: its host says nothing to its peers, either.
func (p *process) die(silent bool) {
	if !p.alive {
		return
	}
	p.trace("dies")
	p.alive = false
	p.machine.running = false
	if p.host.disk.owner == p {
		p.host.disk.owner = nil
	}
	for _, c := range p.w.conns {
		for _, e := range c.ends {
			if e.p == p && !e.closed && !silent {
				e.closed = true
				e.other().arrive(errReset)
			}
		}
	}
	p.host.ended(p)
}

// pulse is the process's gate: it notices that the process did not run.
func (p *process) pulse() {
	p.gate()
	p.timer(silence/8, p.pulse)
}

// now is the time on the process's machine.
func (p *process) now() time.Duration { return p.host.clock() }

// timer runs something after a while of the machine's time.
func (p *process) timer(d time.Duration, fn func()) { p.after(p.host.real(d), fn) }

func (p *process) gate() {
	now := p.now()
	gap := now - p.alived
	p.alived = now
	if gap > silence {
		p.side.step(replica.Gap{})
	}
}

func (p *process) propose(c pact.Command) {
	if p.w.tracing {
		p.trace("asks %s term=%d epoch=%d", c.Kind, c.Term, c.Epoch)
	}
	p.w.after(p.w.small(), func() { p.host.ask(p, c) }) // it has left the process
}

func (p *process) assigned(a *pact.Assignment) {
	p.gate()
	if p.ending {
		return
	}
	if a.Term >= p.newest.Term {
		if a.Term > p.newest.Term {
			p.trace("learns of term %d", a.Term)
		}
		p.newest = *a
	}
	if e := p.engine; e != nil {
		e.assigned(a)
	}
	p.side.step(replica.Applied{Assignment: *a})
}

func (p *process) answered(id string, v *pact.Verdict) {
	p.gate()
	if p.ending {
		return
	}
	if e := p.engine; e != nil {
		e.answered(id, v)
	}
	ev := replica.Answered{ID: id, Unknown: v == nil}
	if v != nil {
		ev.Verdict = *v
	}
	p.side.step(ev)
}

func (p *process) daemonBack() {
	p.side.step(replica.Again{})
	if p.engine != nil {
		p.engine.retry()
	}
}

func (p *process) meet(peer link.Peer) {
	p.peer = peer
	if p.engine != nil {
		p.engine.setPeer(peer)
	}
}

func (p *process) abandon() { p.side.step(replica.Abandon{}) }

func (p *process) role() link.Role {
	switch p.side.core.State() {
	case replica.Syncing, replica.Replica, replica.Promoting:
		return link.RoleReplica
	case replica.Activating, replica.Primary:
		return link.RolePrimary
	case replica.Ended:
		return link.RoleLoser
	}
	return link.RoleWaiting
}

// begin makes this process the primary and runs its machine.
func (p *process) begin(s start) {
	p.last = s.last
	e := newEngine(p)
	p.engine = e
	e.setPeer(p.peer)
	e.begin(s)
	if p.newest.Term >= s.assignment.Term {
		e.assigned(&p.newest)
	}
	if e.over {
		return
	}
	p.machine.running, p.machine.stopped = true, false
	p.host.g.checks.started(p, &s.assignment, s.cold)
	p.guest()
}

// guest is the guest's own life: it does things, has some of them seen, and flushes its disk now and then.
func (p *process) guest() {
	p.after(p.w.guestPace(), func() {
		e, m := p.engine, &p.machine
		if e == nil || m.stopped || !m.running {
			return
		}
		switch d := &p.host.disk; {
		case e.staying || m.off:
		case d.broken:
			p.diskError()
		default:
			m.state = m.state.then(p.w.one(3))
			d.holds = m.state
			if p.saved != nil && m.state.contains(p.saved) {
				m.state.saves = p.saved
			}
			if m.state.output {
				e.output(m.state)
			}
			if p.w.one(6) {
				p.flush()
			}
		}
		p.guest()
	})
}

// flush is the guest having its disk made durable.
func (p *process) flush() {
	e, d := p.machine.state, &p.host.disk
	if p.w.mutant.flushLies {
		p.saved = e
		return
	}
	p.after(p.w.diskDelay(), func() {
		switch {
		case d.owner != p || p.engine == nil || p.machine.stopped || !p.machine.state.contains(e):
		case d.broken:
			p.diskError()
		default:
			d.flush(e)
			p.saved = e
		}
	})
}

// diskError is cmd/pollux/dataplane's: while a replica is entitled, the guest never hears of it. Alone, it is told,
// and tries again.
func (p *process) diskError() {
	if !p.failed && p.newest.Mode == pact.Protected {
		p.failed = true
		p.engine.fault("the disk can't be written")
	}
}

// diskFailed is watchDisks: this process may neither acknowledge nor take over any more.
func (p *process) diskFailed() {
	if p.failed || p.ending {
		return
	}
	p.failed = true
	if p.engine != nil {
		p.engine.fault("the disk can't be written")
		return
	}
	p.side.step(replica.Failed{Err: "the disk can't be written"})
}

// powerOff is the guest switching itself off.
func (p *process) powerOff() {
	if p.engine == nil || p.machine.off || !p.machine.running || p.engine.staying {
		return
	}
	p.trace("the guest switches itself off")
	p.machine.off = true
	p.engine.powerOff()
}

// end stops everything and ends the process.
func (p *process) end(how replica.Ending, why string) {
	p.trace("ends: %s (%s)", how, why)
	p.ending = true
	p.machine.stopped = true
	if p.engine != nil {
		p.engine.close()
	}
	for _, id := range slices.Sorted(maps.Keys(p.side.sessions)) {
		p.side.sessions[id].end.close() // in an order: each draws a delay
	}
	p.after(p.w.small(), func() { p.die(false) })
}
