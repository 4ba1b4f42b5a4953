package sim

import (
	"math/rand/v2"
	"time"

	replica "github.com/pollux-ha/pollux/replica/core"
)

// faultKind is something that may go wrong.
type faultKind struct {
	name   string
	do     func(*trouble) bool // false: there was nothing that could have
	weight int                 // how often among others; 0 counts as 1
	rare   int                 // in one of so many schedules; 0: in each
}

// faultKinds are all of them. Their order is part of what a seed means.
var faultKinds = []faultKind{
	{name: "link-cut", do: (*trouble).cutBoth},
	{name: "link-cut-one-way", do: (*trouble).cutOne},
	{name: "link-swizzled", do: (*trouble).swizzle},
	{name: "connections-reset", do: (*trouble).reset},
	{name: "messages-slow", do: (*trouble).slow},
	{name: "process-frozen", do: (*trouble).freeze},
	{name: "host-frozen", do: (*trouble).freezeHost},
	{name: "process-killed", do: (*trouble).kill},
	{name: "daemon-killed", do: (*trouble).daemon},
	{name: "raft-cut", do: (*trouble).raftAway},
	{name: "raft-cut-one-way", do: (*trouble).raftOneWay},
	{name: "majority-lost", do: (*trouble).noMajority},
	{name: "log-lost", do: (*trouble).logLost},
	{name: "switchover", do: (*trouble).switchover, weight: 2},
	{name: "switchover-expired", do: (*trouble).wrongTime},
	{name: "memory-fault", do: (*trouble).fault},
	{name: "power-loss", do: (*trouble).powerLoss},
	{name: "power-loss-staggered", do: (*trouble).staggered},
	{name: "false-alarm", do: (*trouble).falseAlarm},
	{name: "clock-jump", do: (*trouble).clockJump},
	{name: "disk-fails", do: (*trouble).diskFails},
	{name: "event-log-fails", do: (*trouble).logFails},
	{name: "start-forced", do: (*trouble).forceStart, rare: 3},
	{name: "power-off", do: (*trouble).powerOff, rare: 12},
	{name: "guest-killed", do: (*trouble).killGuest, rare: 25},
}

// trouble is a fault as it happens, with choices of its own.
type trouble struct {
	w   *World
	rng *rand.Rand
}

// strike lets a fault happen.
func (w *World) strike(f Fault) {
	t := &trouble{w: w, rng: rand.New(rand.NewPCG(f.seed, 9))}
	if w.tracing {
		w.tracef("         ! fault %d: %s", f.N, f.Kind())
	}
	w.Stats.reach(w)
	if faultKinds[f.kind].do(t) {
		w.Stats.Faults[f.kind]++
	}
}

// heal ends all of it.
func (w *World) heal() {
	w.tracef("         --- all is well from here on")
	w.hostile, w.slow = false, 0
	w.raft.without = 0
	for i, n := range w.nodes {
		n.powerOn()
		n.mute, n.deaf = false, false
		n.events.broken = false
		for _, h := range n.hosts {
			h.disk.broken = false
			for _, p := range h.procs {
				p.frozenUntil = min(p.frozenUntil, w.now)
			}
		}
		w.healLink(i)
	}
}

func (t *trouble) one(in int) bool { return t.rng.IntN(in) == 0 }

func (t *trouble) upTo(d time.Duration) time.Duration {
	return time.Duration(t.rng.Int64N(int64(d) + 1))
}

func (t *trouble) node() *node { return t.w.nodes[t.rng.IntN(2)] }

func (t *trouble) guest() *guest { return t.w.guests[t.rng.IntN(len(t.w.guests))] }

func (t *trouble) process() *process {
	h := t.guest().hosts[t.rng.IntN(2)]
	if len(h.procs) == 0 {
		h = h.other()
	}
	if len(h.procs) == 0 {
		return nil
	}
	return h.procs[t.rng.IntN(len(h.procs))]
}

// primary is the process that Raft calls the primary, if it lives and awake it is.
func (t *trouble) primary() *process {
	p := t.w.processes[t.guest().truth().Primary]
	if p == nil || !p.alive || p.frozen() || p.engine == nil || p.ending {
		return nil
	}
	return p
}

func (t *trouble) cutBoth() bool {
	d := t.upTo(1500 * time.Millisecond)
	t.w.tracef("         the link is cut for %v", d)
	t.w.cutLink(0, d)
	t.w.cutLink(1, d)
	return true
}

func (t *trouble) cutOne() bool {
	i, d := t.rng.IntN(2), t.upTo(1500*time.Millisecond)
	t.w.tracef("         the way from %s is cut for %v", t.w.nodes[i].name, d)
	t.w.cutLink(i, d)
	return true
}

// swizzle cuts a selection of all ways, one after the other, and mends them in another order.
func (t *trouble) swizzle() bool {
	for i, n := range t.w.nodes {
		for way := range 3 {
			if t.one(2) {
				continue
			}
			after, d := t.upTo(200*time.Millisecond), t.upTo(1200*time.Millisecond)
			t.w.after(after, func() {
				if !t.w.hostile {
					return
				}
				switch way {
				case 0:
					t.w.tracef("         the way from %s is cut for %v", n.name, d)
					t.w.cutLink(i, d)
				case 1:
					t.away(n, d, true, false)
				case 2:
					t.away(n, d, false, true)
				}
			})
		}
	}
	return true
}

func (t *trouble) reset() bool {
	t.w.tracef("         connections are reset")
	any := false
	for _, c := range t.w.conns {
		if !c.ends[0].closed {
			c.reset()
			any = true
		}
	}
	return any
}

func (t *trouble) slow() bool {
	t.w.slow = t.rng.IntN(60)
	t.w.tracef("         messages take up to %d ms", t.w.slow)
	return true
}

func (t *trouble) freeze() bool {
	p := t.process()
	if p != nil {
		p.freeze(t.upTo(800 * time.Millisecond))
	}
	return p != nil
}

// freezeHost stops a whole machine, its daemon and its Raft included.
func (t *trouble) freezeHost() bool {
	n, d := t.node(), t.upTo(800*time.Millisecond)
	for _, h := range n.hosts {
		for _, p := range h.procs {
			p.freeze(d)
		}
	}
	t.away(n, d, true, true)
	return true
}

func (t *trouble) kill() bool {
	p := t.process()
	if p != nil {
		p.die(false)
	}
	return p != nil
}

func (t *trouble) daemon() bool {
	n := t.node()
	if !n.on || !n.daemonUp {
		return false
	}
	t.w.tracef("%s        daemon dies", n.name)
	n.restartDaemon(t.upTo(600 * time.Millisecond))
	return true
}

func (t *trouble) raftAway() bool {
	t.away(t.node(), t.upTo(1200*time.Millisecond), true, true)
	return true
}

func (t *trouble) raftOneWay() bool {
	mute := t.one(2)
	t.away(t.node(), t.upTo(1200*time.Millisecond), mute, !mute)
	return true
}

func (t *trouble) away(n *node, d time.Duration, mute, deaf bool) {
	switch {
	case mute && deaf:
		t.w.tracef("%s        is cut off from Raft for %v", n.name, d)
	case mute:
		t.w.tracef("%s        can propose nothing for %v", n.name, d)
	default:
		t.w.tracef("%s        hears nothing of Raft for %v", n.name, d)
	}
	n.mute, n.deaf = n.mute || mute, n.deaf || deaf
	t.w.after(d, func() {
		if mute {
			n.mute = false
		}
		if deaf {
			n.deaf = false
		}
	})
}

func (t *trouble) noMajority() bool {
	d := t.upTo(1500 * time.Millisecond)
	t.w.tracef("raft     has no majority for %v", d)
	t.w.raft.without = max(t.w.raft.without, t.w.now+d)
	return true
}

// logLost is a voter that comes back without its log.
func (t *trouble) logLost() bool {
	n := t.node()
	if !n.on || !n.daemonUp {
		return false
	}
	t.w.tracef("%s        daemon dies, and its Raft log is lost", n.name)
	n.loseLog(t.upTo(600 * time.Millisecond))
	return true
}

func (t *trouble) switchover() bool {
	p := t.primary()
	if p != nil {
		p.trace("is ordered to switch over")
		p.engine.orderSwitchover()
	}
	return p != nil
}

// wrongTime gives up a switchover early.
func (t *trouble) wrongTime() bool {
	p := t.primary()
	if p == nil {
		return false
	}
	if p.engine.switchedAt == 0 {
		p.trace("is ordered to switch over, and will not wait for long")
		p.engine.orderSwitchover()
	}
	if p.engine.switchedAt != 0 {
		p.engine.switchedAt -= switchoverLimit - t.upTo(30*time.Millisecond)
	}
	return true
}

func (t *trouble) fault() bool {
	p := t.primary()
	if p != nil {
		p.trace("has a fault")
		p.engine.fault("memory")
	}
	return p != nil
}

func (t *trouble) powerLoss() bool {
	n := t.node()
	if !n.on {
		return false
	}
	t.off(n, t.outage())
	return true
}

func (t *trouble) off(n *node, away time.Duration) {
	t.w.tracef("%s        loses power", n.name)
	n.powerLoss(away)
}

// outage is how long a host is without power.
func (t *trouble) outage() time.Duration {
	if t.one(4) {
		return 300*time.Millisecond + t.upTo(2*time.Second)
	}
	return 50*time.Millisecond + t.upTo(600*time.Millisecond)
}

// staggered takes the power from both hosts, one after the other, and gives it back in any order.
func (t *trouble) staggered() bool {
	n := t.node()
	if !n.on {
		return false
	}
	t.off(n, t.outage())
	after, away := t.upTo(500*time.Millisecond), t.outage()
	t.w.after(after, func() {
		if o := n.other(); o.on && t.w.hostile {
			t.off(o, away)
		}
	})
	return true
}

// falseAlarm is a detector that is wrong.
func (t *trouble) falseAlarm() bool {
	p := t.process()
	if p == nil || p.frozen() || p.ending {
		return false
	}
	p.trace("calls the other one silent, wrongly")
	if e := p.engine; e != nil && e.stream != nil && e.stream.up {
		e.stream.why = "wrongly silent"
		e.stream.lose()
		e.unlock()
		return true
	}
	p.side.step(replica.Silent{})
	return true
}

// clockJump moves a machine's clock on, as a machine does that was suspended for a while, or one that corrects itself.
func (t *trouble) clockJump() bool {
	n, d := t.node(), t.upTo(500*time.Millisecond)
	t.w.tracef("%s        clock jumps by %v", n.name, d)
	n.base += d
	return true
}

// diskFails has every write to a guest's disk fail for a while: EIO, or no space.
func (t *trouble) diskFails() bool {
	h := t.guest().hosts[t.rng.IntN(2)]
	d := t.upTo(1500 * time.Millisecond)
	t.w.tracef("%s        disk of guest %s can't be written for %v", h.name, h.g.name, d)
	h.disk.broken = true
	t.w.after(d, func() { h.disk.broken = false })
	return true
}

func (t *trouble) logFails() bool {
	n, d := t.node(), t.upTo(1500*time.Millisecond)
	t.w.tracef("%s        event log can't be written for %v", n.name, d)
	n.events.broken = true
	t.w.after(d, func() { n.events.broken = false })
	return true
}

func (t *trouble) powerOff() bool {
	p := t.primary()
	if p != nil {
		p.powerOff()
	}
	return p != nil
}

func (t *trouble) killGuest() bool {
	p := t.primary()
	if p != nil {
		p.trace("the operator stops the guest")
		p.engine.kill()
	}
	return p != nil
}
