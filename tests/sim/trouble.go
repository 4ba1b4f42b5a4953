package sim

import (
	"time"

	replica "github.com/pollux-ha/pollux/replica/core"
)

// trouble is what may happen in a schedule. Each has its own selection: two kinds of fault that meet often
// find more than all that meet now and then.
type trouble struct {
	w     *World
	kinds []func()
	pause time.Duration
}

func (w *World) newTrouble() *trouble {
	t := &trouble{w: w, pause: time.Duration(20+w.rng.IntN(400)) * time.Millisecond}
	if w.one(2) {
		t.pause *= 3 // time to be protected in between
	}
	all := []func(){
		t.cutBoth, t.cutOne, t.reset, t.slow, t.freeze, t.freezeHost, t.kill, t.daemon, t.raftAway,
		t.switchover, t.switchover, t.fault, t.powerLoss, t.falseAlarm, t.wrongTime,
	}
	if w.one(12) {
		all = append(all, t.powerOff)
	}
	if w.one(25) {
		all = append(all, t.killGuest)
	}
	w.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	t.kinds = all[:1+w.rng.IntN(len(all))]
	return t
}

// strike lets something happen, or two things at once.
func (t *trouble) strike() {
	t.w.faults++
	t.kinds[t.w.rng.IntN(len(t.kinds))]()
	if t.w.one(4) {
		t.w.until(t.w.now + t.w.upTo(5*time.Millisecond))
		t.kinds[t.w.rng.IntN(len(t.kinds))]()
	}
}

// heal ends all of it.
func (w *World) heal() {
	w.tracef("         --- all is well from here on")
	w.hostile, w.slow = false, 0
	for i, h := range w.hosts {
		h.powerOn()
		h.cutOff = false
		for _, p := range h.procs {
			p.frozenUntil = min(p.frozenUntil, w.now)
		}
		w.healLink(i)
	}
}

func (t *trouble) host() *host { return t.w.hosts[t.w.rng.IntN(2)] }

func (t *trouble) process() *process {
	h := t.host()
	if len(h.procs) == 0 {
		return nil
	}
	return h.procs[t.w.rng.IntN(len(h.procs))]
}

// primary is the process that Raft calls the primary, if it lives and awake it is.
func (t *trouble) primary() *process {
	p := t.w.processes[t.w.raft.truth().Primary]
	if p == nil || !p.alive || p.frozen() || p.engine == nil || p.ending {
		return nil
	}
	return p
}

func (t *trouble) cutBoth() {
	d := t.w.upTo(1500 * time.Millisecond)
	t.w.tracef("         the link is cut for %v", d)
	t.w.cutLink(0, d)
	t.w.cutLink(1, d)
}

func (t *trouble) cutOne() {
	i, d := t.w.rng.IntN(2), t.w.upTo(1500*time.Millisecond)
	t.w.tracef("         the way from %s is cut for %v", t.w.hosts[i].name, d)
	t.w.cutLink(i, d)
}

func (t *trouble) reset() {
	t.w.tracef("         connections are reset")
	for _, c := range t.w.conns {
		if !c.ends[0].closed {
			c.reset()
		}
	}
}

func (t *trouble) slow() {
	t.w.slow = t.w.rng.IntN(60)
	t.w.tracef("         messages take up to %d ms", t.w.slow)
}

func (t *trouble) freeze() {
	if p := t.process(); p != nil {
		p.freeze(t.w.upTo(800 * time.Millisecond))
	}
}

// freezeHost stops a whole machine, its daemon and its Raft included.
func (t *trouble) freezeHost() {
	h, d := t.host(), t.w.upTo(800*time.Millisecond)
	for _, p := range h.procs {
		p.freeze(d)
	}
	t.away(h, d)
}

func (t *trouble) kill() {
	if p := t.process(); p != nil {
		p.die(false)
	}
}

func (t *trouble) daemon() {
	h := t.host()
	if h.on && h.daemonUp {
		t.w.tracef("%s        daemon dies", h.name)
		h.restartDaemon(t.w.upTo(600 * time.Millisecond))
	}
}

func (t *trouble) raftAway() {
	h, d := t.host(), t.w.upTo(1200*time.Millisecond)
	t.w.tracef("%s        is cut off from Raft for %v", h.name, d)
	t.away(h, d)
}

func (t *trouble) away(h *host, d time.Duration) {
	h.cutOff = true
	t.w.after(d, func() { h.cutOff = false })
}

func (t *trouble) switchover() {
	if p := t.primary(); p != nil {
		p.trace("is ordered to switch over")
		p.engine.orderSwitchover()
	}
}

func (t *trouble) fault() {
	if p := t.primary(); p != nil && t.w.one(2) {
		p.trace("has a fault")
		p.engine.fault()
	}
}

func (t *trouble) powerLoss() {
	h := t.host()
	if h.on && t.w.one(2) {
		t.w.tracef("%s        loses power", h.name)
		h.powerLoss(200*time.Millisecond + t.w.upTo(2*time.Second))
	}
}

// falseAlarm is a detector that is wrong.
func (t *trouble) falseAlarm() {
	if p := t.process(); p != nil && !p.frozen() && !p.ending {
		p.trace("calls the other one silent, wrongly")
		if e := p.engine; e != nil && e.stream != nil && e.stream.up {
			e.stream.why = "wrongly silent"
			e.stream.lose()
			e.unlock()
			return
		}
		p.side.step(replica.Silent{})
	}
}

// wrongTime gives up a switchover early.
func (t *trouble) wrongTime() {
	if p := t.primary(); p != nil && p.engine.switchedAt != 0 {
		p.engine.switchedAt -= switchoverLimit
	}
}

func (t *trouble) powerOff() {
	if p := t.primary(); p != nil && t.w.one(3) {
		p.powerOff()
	}
}

func (t *trouble) killGuest() {
	if p := t.primary(); p != nil && t.w.one(3) {
		p.trace("the operator stops the guest")
		p.engine.kill()
	}
}
