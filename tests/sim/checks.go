package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// The rules that are checked, as they are reported.
const (
	checkOutput   = "output commit"
	checkVoice    = "one voice"
	checkEntitled = "entitled takeover"
	checkStale    = "no stale start"
	checkWrites   = "no acknowledged write lost"
	checkLog      = "event log"
	checkProgress = "progress"
)

// Checks lists them.
func Checks() []string {
	return []string{checkOutput, checkVoice, checkEntitled, checkStale, checkWrites, checkLog, checkProgress}
}

// checks is what somebody outside could see of a guest, and what must hold of it.
type checks struct {
	w        *World
	g        *guest
	frontier *event // the newest that was seen outside
	saved    *event // the newest write that somebody outside was told is on the disk
	// voice is who has emitted anything under a term.
	voice map[pact.Term]pact.Party
	// starts are the times at which the guest began to run.
	starts []started
	// held is what a process holds as a replica.
	held map[pact.Party]*event
}

type started struct {
	party pact.Party
	term  pact.Term
	from  *event
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
	w := c.w
	if after.Term <= before.Term {
		w.fail(checkEntitled, "%s leads from term %d to term %d", cmd.Kind, before.Term, after.Term)
	}
	if after.Primary != before.Primary && cmd.Kind != pact.Start {
		if before.Mode != pact.Protected || before.Replica != after.Primary {
			w.fail(checkEntitled, "%s gives the guest to %s, which was not entitled (%s, replica %s)", cmd.Kind, short(after.Primary), before.Mode, short(before.Replica))
		}
	}
	if after.Mode == pact.Protected && !c.holds(after.Replica).contains(c.frontier) {
		w.fail(checkOutput, "%s makes %s a replica that lacks what was seen outside: it holds %d, %d was seen", cmd.Kind, short(after.Replica), c.holds(after.Replica).number(), c.frontier.number())
	}
	if cmd.Kind == pact.Start && before.Runs() {
		for _, p := range []pact.Party{before.Primary, before.Replica} {
			if q := w.processes[p]; q != nil && q.alive {
				w.fail(checkEntitled, "a cold start, and %s lives, which may have the guest in its memory", short(p))
			}
		}
	}
	if after.Rewound == after.Term {
		if !c.g.ordered {
			w.fail(checkStale, "%s starts the guest from a disk that is not known to be current, and no operator has ordered it", short(after.Primary))
		}
		if n := w.node(after.Primary.Host); !n.events.has(line{kind: lineOperator, guest: c.g}) {
			w.fail(checkLog, "an operator's order is carried out on %s and is in no event log", n.name)
		}
	}
	if after.Runs() {
		c.g.ordered = false // an order is for what the operator has seen: a guest that nobody runs
	}
}

// started looks at every guest that begins to run. cold: from a disk.
func (c *checks) started(p *process, a *pact.Assignment, cold bool) {
	w := c.w
	from := p.machine.state
	if w.tracing {
		w.tracef("%-4s     RUNS in term %d from event %d", short(p.party), a.Term, from.number())
	}
	w.Stats.Starts++
	entitled := false
	for i := range c.g.history {
		entitled = entitled || c.g.history[i].Term == a.Term && c.g.history[i].Primary == p.party
	}
	if !entitled {
		w.fail(checkEntitled, "%s runs the guest in term %d, and no committed entry says so", short(p.party), a.Term)
	}
	// One that was beaten before it began may run for a moment; what it then emits is looked at.
	if c.g.truth().Term == a.Term {
		c.goesOn(p, a, from, cold)
	}
	x := line{kind: lineTakeover, guest: c.g, party: p.party, term: a.Term}
	if cold {
		x.kind = lineStart
		if !p.host.events.has(x) {
			w.fail(checkLog, "%s starts the guest in term %d before the event log says so", short(p.party), a.Term)
		}
	} else {
		w.after(noteLimit, func() {
			if p.alive && !p.frozen() && p.frozenUntil < w.now-noteLimit && !p.ending && !p.host.events.tried(x) {
				w.fail(checkLog, "%s has taken the guest over in term %d, and the event log does not say so", short(p.party), a.Term)
			}
		})
	}
	c.starts = append(c.starts, started{p.party, a.Term, from})
}

// goesOn looks at what the one who has the guest goes on from.
func (c *checks) goesOn(p *process, a *pact.Assignment, from *event, cold bool) {
	w := c.w
	if a.Rewound == a.Term {
		// The operator has accepted the loss: what was seen of the lost part is of another life.
		c.frontier, c.saved = common(c.frontier, from), common(c.saved, from)
		return
	}
	if !from.contains(c.saved) {
		w.fail(checkWrites, "%s goes on from event %d, and all up to event %d was said to be on the disk", short(p.party), from.number(), c.saved.number())
	}
	if from.contains(c.frontier) {
		return
	}
	if cold && p.host.disk.torn {
		// A power cut of all that had the guest in memory: a computer that was never more than one.
		c.frontier = common(c.frontier, from)
		return
	}
	check := checkOutput
	if cold {
		check = checkStale
	}
	w.fail(check, "%s goes on from event %d, which lacks event %d that was seen outside", short(p.party), from.number(), c.frontier.number())
}

// emitted looks at everything that leaves a host; a is what the process believes.
func (c *checks) emitted(p *process, a pact.Assignment, f *event) {
	w := c.w
	w.Stats.Outputs++
	if p.host.disk.owner != p {
		w.fail(checkVoice, "%s emits, and does not have the disk", short(p.party))
	}
	if who, ok := c.voice[a.Term]; ok && who != p.party {
		w.fail(checkVoice, "%s and %s both emit in term %d", short(who), short(p.party), a.Term)
	}
	c.voice[a.Term] = p.party
	away := (p.frozenUntil - p.frozenSince) * time.Duration(p.host.rate) / 1000
	if away > silence+heartbeat && p.confirmed < p.frozenUntil {
		w.fail(checkVoice, "%s emits event %d after it was frozen for %v, and has not asked", short(p.party), f.number(), p.frozenUntil-p.frozenSince)
	}
	if d := &p.host.disk; d.state != "current" || d.term < a.Tenure {
		w.fail(checkStale, "%s emits in its tenure from term %d on, its disk is %q with a marker of term %d", short(p.party), a.Tenure, d.state, d.term)
	}
	for _, s := range c.starts {
		if s.term > a.Term && s.party != p.party && !s.from.contains(f) {
			w.fail(checkVoice, "%s emits event %d in term %d, %s goes on since term %d from event %d", short(p.party), f.number(), a.Term, short(s.party), s.term, s.from.number())
		}
	}
	if t := c.g.truth(); t.Mode == pact.Protected && t.Primary == p.party && !c.holds(t.Replica).contains(f) {
		w.fail(checkOutput, "%s emits event %d while protected, the replica %s holds %d", short(p.party), f.number(), short(t.Replica), c.holds(t.Replica).number())
	}
	switch {
	case f.contains(c.frontier):
		c.frontier = f
	case !c.frontier.contains(f):
		w.fail(checkOutput, "%s emits event %d, which is of another history than event %d", short(p.party), f.number(), c.frontier.number())
	}
	if f.saves.number() > c.saved.number() && f.contains(f.saves) {
		c.saved = f.saves
	}
}

// final looks at what is left when all is over.
func (c *checks) final() {
	t := c.g.truth()
	for _, h := range c.g.hosts {
		if !h.events.tried(line{kind: lineRole, guest: c.g, term: t.Term}) {
			c.w.fail(checkLog, "term %d came, and the event log of %s does not say so", t.Term, h.name)
		}
	}
}

// stuck says why the guest is not where it should be, once nothing is in its way; "": it is.
func (c *checks) stuck() string {
	w := c.w
	t := c.g.truth()
	for _, h := range c.g.hosts {
		if !h.works() || h.seen < len(c.g.history)-1 {
			return "a host does not know the newest assignment"
		}
	}
	if t.Mode == pact.Stopped && t.Desired == pact.DesiredStopped {
		return "the guest is stopped"
	}
	if t.Mode != pact.Protected {
		return "the guest is not protected"
	}
	p := w.processes[t.Primary]
	switch {
	case p == nil || !p.alive || p.engine == nil:
		return "the primary is not there"
	case p.engine.core.Mode() != "protected":
		return "the primary is not protected"
	case p.machine.off:
		return "the guest is off"
	case p.machine.state.number()-c.frontier.number() > 200:
		return "nothing is heard of the guest"
	}
	return ""
}

func (c *checks) story(what string) string {
	var b strings.Builder
	t := c.g.truth()
	fmt.Fprintf(&b, "%s: guest %s is %s in term %d, primary %s, replica %s", what, c.g.name, t.Mode, t.Term, short(t.Primary), short(t.Replica))
	for _, h := range c.g.hosts {
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
