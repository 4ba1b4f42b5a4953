package sim

import (
	"fmt"
	"strings"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// checks is what somebody outside could see, and what must hold of it.
type checks struct {
	w        *World
	failed   error
	frontier *event // the newest that was seen outside
	released int
	// voice is who has emitted anything under a term.
	voice map[pact.Term]pact.Party
	// starts are the times at which a guest began to run.
	starts []started
	// held is what a process holds as a replica.
	held map[pact.Party]*event
}

type started struct {
	party pact.Party
	term  pact.Term
	from  *event
}

func (c *checks) fail(format string, args ...any) {
	if c.failed == nil {
		c.failed = fmt.Errorf(format, args...)
		c.w.tracef("         VIOLATION: %v", c.failed)
	}
}

// acknowledged notes what a replica holds when it has said that it holds more.
func (c *checks) acknowledged(p *process, e *event) { c.held[p.party] = e }

// holds is what a process is known to hold: what it runs, or what it has acknowledged.
func (c *checks) holds(p pact.Party) *event {
	if q := c.w.processes[p]; q != nil && q.machine.state != nil && (q.engine != nil || c.held[p] == nil || q.machine.state.contains(c.held[p])) {
		return q.machine.state
	}
	return c.held[p]
}

// committed looks at every entry that raises the term.
func (c *checks) committed(cmd pact.Command, before, after pact.Assignment) {
	if after.Primary != before.Primary && cmd.Kind != pact.Start {
		if before.Mode != pact.Protected || before.Replica != after.Primary {
			c.fail("%s gives the guest to %s, which was not entitled (%s, replica %s)", cmd.Kind, short(after.Primary), before.Mode, short(before.Replica))
		}
	}
	if after.Mode == pact.Protected && !c.holds(after.Replica).contains(c.frontier) {
		c.fail("%s makes %s a replica that lacks what was seen outside: it holds %d, %d was seen", cmd.Kind, short(after.Replica), c.holds(after.Replica).number(), c.frontier.number())
	}
}

// started looks at every guest that begins to run.
func (c *checks) started(p *process, a pact.Assignment) {
	from := p.machine.state
	c.w.tracef("%-4s     RUNS in term %d from event %d", short(p.party), a.Term, from.number())
	entitled := false
	for _, h := range c.w.raft.history {
		entitled = entitled || h.Term == a.Term && h.Primary == p.party
	}
	if !entitled {
		c.fail("%s runs the guest in term %d, and no committed entry says so", short(p.party), a.Term)
	}
	// One that was beaten before it began may run for a moment; what it then emits is looked at.
	if c.w.raft.truth().Term == a.Term && !from.contains(c.frontier) {
		c.fail("%s goes on from event %d, which lacks event %d that was seen outside", short(p.party), from.number(), c.frontier.number())
	}
	c.starts = append(c.starts, started{p.party, a.Term, from})
}

// emitted looks at everything that leaves a host; a is what the process believes.
func (c *checks) emitted(p *process, a pact.Assignment, f *event) {
	c.released++
	if p.host.disk.owner != p {
		c.fail("%s emits, and does not have the disk", short(p.party))
	}
	if who, ok := c.voice[a.Term]; ok && who != p.party {
		c.fail("%s and %s both emit in term %d", short(who), short(p.party), a.Term)
	}
	c.voice[a.Term] = p.party
	if woke := p.frozenUntil; woke-p.frozenSince > silence+heartbeat && p.confirmed < woke {
		c.fail("%s emits event %d after it was frozen for %v, and has not asked", short(p.party), f.number(), woke-p.frozenSince)
	}
	if d := p.host.disk; d.state != "current" || d.term < a.Tenure {
		c.fail("%s emits in its tenure from term %d on, its disk is %q with a marker of term %d", short(p.party), a.Tenure, d.state, d.term)
	}
	for _, s := range c.starts {
		if s.term > a.Term && s.party != p.party && !s.from.contains(f) {
			c.fail("%s emits event %d in term %d, %s goes on since term %d from event %d", short(p.party), f.number(), a.Term, short(s.party), s.term, s.from.number())
		}
	}
	if t := c.w.raft.truth(); t.Mode == pact.Protected && t.Primary == p.party && !c.holds(t.Replica).contains(f) {
		c.fail("%s emits event %d while protected, the replica %s holds %d", short(p.party), f.number(), short(t.Replica), c.holds(t.Replica).number())
	}
	switch {
	case f.contains(c.frontier):
		c.frontier = f
	case !c.frontier.contains(f):
		c.fail("%s emits event %d, which is of another history than event %d", short(p.party), f.number(), c.frontier.number())
	}
}

// stuck says why the guest is not where it should be, once nothing is in its way; "": it is.
func (c *checks) stuck() string {
	w := c.w
	t := w.raft.truth()
	if t.Mode == pact.Stopped && t.Desired == pact.DesiredStopped {
		return ""
	}
	if t.Mode != pact.Protected {
		return c.story("the guest is " + string(t.Mode))
	}
	p := w.processes[t.Primary]
	switch {
	case p == nil || !p.alive || p.engine == nil:
		return c.story("the primary is not there")
	case p.engine.core.Mode() != "protected":
		return c.story("the primary is " + p.engine.core.Mode())
	case p.machine.off:
		return c.story("the guest is off")
	case p.machine.state.number()-c.frontier.number() > 200:
		return c.story("nothing is heard of the guest")
	}
	return ""
}

func (c *checks) story(what string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (term %d, primary %s, replica %s)", what, c.w.raft.truth().Term, short(c.w.raft.truth().Primary), short(c.w.raft.truth().Replica))
	for _, h := range c.w.hosts {
		fmt.Fprintf(&b, "; %s disk %s %d", h.name, h.disk.state, h.disk.term)
		for _, p := range h.procs {
			fmt.Fprintf(&b, ", %s is %s", short(p.party), p.side.core.State())
			if p.engine != nil {
				fmt.Fprintf(&b, " and %s: %s", p.engine.core.Mode(), p.engine.core.Detail())
			}
		}
	}
	return b.String()
}
