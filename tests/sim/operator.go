package sim

import (
	"strconv"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// forceStart is an operator who gives up one host, switches it off, says so, and has the other one start the
// guest from whatever its disk holds: cluster/daemon's Start with an accepted loss.
func (t *trouble) forceStart() bool {
	g := t.guest()
	h := g.hosts[t.rng.IntN(2)]
	if !h.on || !h.works() {
		return false
	}
	away := t.outage()
	if o := h.other(); o.on {
		t.off(o.node, away)
	}
	if t.one(4) {
		h.events.broken = true
		t.w.after(t.upTo(300*time.Millisecond), func() { h.events.broken = false })
	}
	h.force(t.one(2))
	return true
}

// force is the operator's order, as the daemon takes it: logged first, or not done; then who is off is committed, and
// the wish; and only when this host's log has come that far does its keeper hear of it. The other host is off.
func (h *host) force(inconsistent bool) {
	if !h.events.log(line{kind: lineOperator, guest: h.g}) && !h.w.mutant.unlogged {
		return
	}
	h.w.tracef("%s        the operator accepts a loss: guest %s is to start here", h.name, h.g.name)
	life := h.life
	var commands []pact.Command
	a := h.newest()
	for _, p := range []pact.Party{a.Primary, a.Replica} {
		if a.Runs() && !p.IsZero() && !a.IsGone(p) && p.Host != h.name {
			commands = append(commands, pact.Command{Kind: pact.Disclaim, Guest: a.Guest, Term: a.Term, By: p, Operator: "operator", ID: h.newID()})
		}
	}
	commands = append(commands, pact.Command{Kind: pact.SetDesired, Guest: a.Guest, Desired: pact.DesiredRunning, Operator: "operator", ID: h.newID()})
	var next func()
	next = func() {
		c := commands[0]
		h.w.raft.propose(h.node, c, func(v *pact.Verdict) {
			if h.life != life || v == nil || !v.Applied {
				return // the operator is told that it was not done
			}
			if commands = commands[1:]; len(commands) > 0 {
				next()
				return
			}
			h.given(life, len(h.g.history)-1, inconsistent)
		})
	}
	next()
}

// given waits until this host's log has come to where the cluster was when the order was committed.
func (h *host) given(life, at int, inconsistent bool) {
	switch {
	case h.life != life:
	case h.seen < at:
		h.w.after(lookEvery/10, func() { h.given(life, at, inconsistent) })
	default:
		if t := h.g.truth(); t.Term == h.newest().Term || !t.Runs() {
			h.g.ordered = true // of this the operator can know
		}
		h.order = &order{inconsistent: inconsistent}
		h.look()
	}
}

// operators do what people do about a guest that nothing else brings back. One that was stopped is started; where a whole copy is left whose host
// knows of no better one, they have it started. It must be the only way: who waits for a host does not call.
func (w *World) operators() {
	for _, g := range w.guests {
		a := g.truth()
		if a.Mode == pact.Stopped && a.Desired == pact.DesiredStopped {
			w.ids++
			w.raft.propose(w.nodes[0], pact.Command{Kind: pact.SetDesired, Guest: g.name, Desired: pact.DesiredRunning, ID: "again-" + strconv.Itoa(w.ids)}, func(*pact.Verdict) {})
			continue
		}
		if a.Runs() && !(a.IsGone(a.Primary) && (a.Mode == pact.Solo || a.IsGone(a.Replica))) {
			continue
		}
		if a.Desired != pact.DesiredRunning || g.hosts[0].order != nil || g.hosts[1].order != nil {
			continue
		}
		// The pact knows the newest copy. Only where that one is torn to pieces, or never was, must somebody choose.
		for _, h := range g.hosts {
			current := a.CurrentDisk.Host == h.name && len(a.Unproven) == 0
			if current && h.works() && (h.disk.state == "inconsistent" || h.disk.state == "outdated" || h.disk.term < a.CurrentDisk.Term) {
				h.force(true)
				break
			}
		}
	}
}
