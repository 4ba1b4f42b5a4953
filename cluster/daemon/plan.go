package daemon

import (
	"fmt"
	"slices"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// view is all that this host knows of one guest at one moment.
type view struct {
	host   string
	guest  pact.Assignment
	exists bool
	// procs are this host's living processes of the guest: one, as a rule.
	procs []procView
	disk  diskView
	// chosen says that, of the guest's hosts, this is where a replica is wanted.
	chosen bool
	// unfit says why this host can't run the guest: its CPU is not one that can show the guest its own.
	unfit string
	order *startOrder
}

type procView struct {
	party pact.Party
	ready bool // it has said hello
	cold  bool // it was started for a cold start, with the CPU that the guest has now, and has never been anything else
}

// diskView is what the marks beside this host's disks say.
type diskView struct {
	state string    // "", "current", "outdated" or "inconsistent", of the worst of them
	term  pact.Term // of the durable marker; 0: none
}

// startOrder is an operator's order to start from this host's disks, whatever is known of them.
type startOrder struct {
	loss, operator string
	inconsistent   bool // even if their blocks are of different moments
}

// plan is what this host should do about the guest now. What is not in it is left as it is.
type plan struct {
	// say are Disclaim and Stop commands: what only this host can say. Nothing else is done before they
	// have become part of the assignment.
	say []pact.Command
	// spawn wants a new process; cold says that it is for a cold start.
	spawn, cold bool
	// start is the cold start to propose, by a process that is ready.
	start *pact.Command
	// abandon are processes that are not wanted; stray are those that act as a primary or its loser though
	// the assignment gives the guest to somebody else, or to nobody. Both end by themselves; whoever does
	// not in time is killed.
	abandon, stray []pact.Party
	// primary is this host's living primary, replica its living replica or would-be replica.
	primary, replica pact.Party
	// blocked says why a guest that should run can't be started here; "" where that is not the question.
	blocked string
}

func (v view) living(p pact.Party) bool {
	return slices.ContainsFunc(v.procs, func(o procView) bool { return o.party == p })
}

// decide is pure.
func decide(v view) plan {
	var p plan
	if !v.exists {
		for _, o := range v.procs {
			p.abandon = append(p.abandon, o.party)
		}
		return p
	}
	a := v.guest
	if p.say = v.disclaims(); len(p.say) > 0 {
		return p
	}
	allGone := a.Runs() && a.IsGone(a.Primary) && (a.Mode == pact.Solo || a.IsGone(a.Replica))
	switch {
	case a.Mode == pact.Stopped || allGone:
		v.idle(&p, allGone)
	case a.Primary.Host == v.host:
		v.runsHere(&p)
	default:
		v.runsElsewhere(&p)
	}
	return p
}

// disclaims are the words that this host owes: that processes of its own which the assignment counts on
// have ended, and that its disk bears no marker of a tenure for which one is looked for.
func (v view) disclaims() []pact.Command {
	a := v.guest
	var say []pact.Command
	unmarked := func(p pact.Party) bool {
		return slices.ContainsFunc(a.Unproven, func(c pact.Claim) bool { return c.Party == p && v.disk.term < c.Term })
	}
	parties := []pact.Party{}
	if a.Runs() {
		parties = append(parties, a.Primary)
	}
	if a.Mode == pact.Protected {
		parties = append(parties, a.Replica)
	}
	for _, c := range a.Unproven {
		if !slices.Contains(parties, c.Party) {
			parties = append(parties, c.Party)
		}
	}
	for _, p := range parties {
		if p.Host != v.host || v.living(p) {
			continue
		}
		role := p == a.Primary && a.Runs() || p == a.Replica && a.Mode == pact.Protected
		if role && !a.IsGone(p) || unmarked(p) {
			say = append(say, pact.Command{Kind: pact.Disclaim, Guest: a.Guest, Term: a.Term, By: p, NoMarker: unmarked(p), Reason: "the process has ended"})
		}
	}
	return say
}

// idle: nobody runs the guest, and nobody is to take over.
func (v view) idle(p *plan, allGone bool) {
	a := v.guest
	others := func(keep func(procView) bool) {
		for _, o := range v.procs {
			if o.party == a.Primary {
				p.stray = append(p.stray, o.party) // it stops, and ends
			} else if !keep(o) {
				p.abandon = append(p.abandon, o.party)
			}
		}
	}
	if a.Desired != pact.DesiredRunning && v.order == nil {
		if allGone && a.Primary.Host == v.host {
			p.say = []pact.Command{{Kind: pact.Stop, Guest: a.Guest, Term: a.Term, By: a.Primary, Reason: "its processes have ended, and it is meant to be stopped"}}
		}
		others(func(procView) bool { return false })
		return
	}
	why := v.entitled()
	if v.unfit != "" && (why == "" || v.order != nil) {
		p.blocked = v.unfit
		others(func(procView) bool { return false })
		return
	}
	if v.order != nil && v.disk.state == "inconsistent" && !v.order.inconsistent {
		p.blocked = why + ": its blocks are of different moments. Restore a backup, or order the start with --accept-inconsistent as well"
		others(func(o procView) bool { return true })
		return
	}
	if why != "" && v.order == nil {
		p.blocked = why
		// Whoever starts it will want a replica: a process without an image may stay for that.
		others(func(o procView) bool { return true })
		return
	}
	others(func(o procView) bool { return o.cold })
	if len(p.stray)+len(p.abandon) > 0 {
		return // one process a guest: the disks have one writer
	}
	i := slices.IndexFunc(v.procs, func(o procView) bool { return o.cold })
	switch {
	case i < 0:
		p.spawn, p.cold = true, true
	case v.procs[i].ready:
		p.start = &pact.Command{Kind: pact.Start, Guest: a.Guest, Term: a.Term, By: v.procs[i].party, MarkerTerm: v.disk.term}
		if v.order != nil {
			p.start.AcceptLoss, p.start.Operator = v.order.loss, v.order.operator
		}
	}
}

// entitled says why this host may not start the guest from its disks; "" if it may.
func (v view) entitled() string {
	a := v.guest
	if !a.Spec.KeepsState() {
		if a.CurrentDisk.Host != v.host {
			return fmt.Sprintf("%s starts it", a.CurrentDisk.Host)
		}
		return ""
	}
	switch v.disk.state {
	case "outdated", "inconsistent":
		return fmt.Sprintf("this host's disk copy is %s", v.disk.state)
	}
	if n := len(a.Unproven); n > 0 {
		c := a.Unproven[n-1]
		if c.Party.Host == v.host && v.disk.term >= c.Term {
			return ""
		}
		return fmt.Sprintf("%s was primary from term %d on and may hold a newer disk; its daemon has to say", c.Party.Host, c.Term)
	}
	switch {
	case a.CurrentDisk.Host != v.host:
		return fmt.Sprintf("the current disk is on %s", a.CurrentDisk.Host)
	case v.disk.term < a.CurrentDisk.Term:
		return fmt.Sprintf("the disk here bears a marker of term %d, the current one bears %d: it was replaced, or restored from an old copy", v.disk.term, a.CurrentDisk.Term)
	}
	return ""
}

// runsHere: the primary is one of this host's processes.
func (v view) runsHere(p *plan) {
	a := v.guest
	for _, o := range v.procs {
		if o.party == a.Primary {
			p.primary = o.party
		} else {
			p.abandon = append(p.abandon, o.party)
		}
	}
}

// runsElsewhere: another host has the primary.
func (v view) runsElsewhere(p *plan) {
	a := v.guest
	named := a.Mode == pact.Protected && a.Replica.Host == v.host
	if !named && v.unfit != "" && a.Mode == pact.Solo {
		p.blocked = v.unfit
	}
	if !named && (a.Mode == pact.Protected || !v.chosen) {
		for _, o := range v.procs {
			p.abandon = append(p.abandon, o.party)
		}
		return
	}
	for _, o := range v.procs {
		switch {
		case named && o.party != a.Replica, !p.replica.IsZero():
			p.abandon = append(p.abandon, o.party)
		default:
			p.replica = o.party
		}
	}
	// One process a guest: before the last one has ended, the next may not touch the disks.
	p.spawn = len(v.procs) == 0
}
