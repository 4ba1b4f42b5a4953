package sim

import (
	"slices"
	"strconv"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// order is an operator's order to start from this host's disk, whatever is known of it.
type order struct {
	inconsistent bool
}

// follow is what cluster/daemon's plan and keeper do about an assignment.
func (h *host) follow(a *pact.Assignment) {
	if h.disclaim(a) {
		return
	}
	allGone := a.Runs() && a.IsGone(a.Primary) && (a.Mode == pact.Solo || a.IsGone(a.Replica))
	var abandon []*process
	switch {
	case a.Mode == pact.Stopped || allGone:
		abandon = h.idle(a, allGone)
	case a.Primary.Host == h.name:
		for _, o := range h.procs {
			if o.party != a.Primary {
				abandon = append(abandon, o)
			} else {
				h.meet(o, a)
			}
		}
	default:
		abandon = h.elsewhere(a)
	}
	h.dismiss(a, abandon)
}

// disclaim says that processes have ended, and that the disk bears no marker that is looked for.
func (h *host) disclaim(a *pact.Assignment) bool {
	said := false
	owe := func(p pact.Party) {
		if p.Host != h.name || h.process(p) != nil && !h.w.mutant.disclaimsLiving {
			return
		}
		unmarked := slices.ContainsFunc(a.Unproven, func(c pact.Claim) bool { return c.Party == p && h.disk.term < c.Term })
		role := p == a.Primary && a.Runs() || p == a.Replica && a.Mode == pact.Protected
		if role && !a.IsGone(p) || unmarked {
			said = true
			c := pact.Command{Kind: pact.Disclaim, Guest: a.Guest, Term: a.Term, By: p, NoMarker: unmarked, ID: h.newID()}
			h.say("disclaim/"+strconv.Itoa(int(p.Incarnation))+"/"+strconv.Itoa(int(a.Term))+strconv.FormatBool(unmarked), c, nil)
		}
	}
	if a.Runs() {
		owe(a.Primary)
	}
	if a.Mode == pact.Protected {
		owe(a.Replica)
	}
	for _, c := range a.Unproven {
		if !(a.Runs() && c.Party == a.Primary) && !(a.Mode == pact.Protected && c.Party == a.Replica) {
			owe(c.Party)
		}
	}
	return said
}

// idle: nobody runs the guest, and nobody is to take over.
func (h *host) idle(a *pact.Assignment, allGone bool) (abandon []*process) {
	wanted := a.Desired == pact.DesiredRunning || h.order != nil
	mayStart := wanted && h.mayStart(a)
	if o := h.order; o != nil {
		mayStart = h.disk.state != "inconsistent" || o.inconsistent
	}
	for _, o := range h.procs {
		if o.party != a.Primary && !(wanted && (!mayStart || o.cold)) {
			abandon = append(abandon, o)
		}
	}
	if !wanted && allGone && a.Primary.Host == h.name {
		h.say("stop/"+strconv.Itoa(int(a.Term)), pact.Command{Kind: pact.Stop, Guest: a.Guest, Term: a.Term, By: a.Primary, ID: h.newID()}, nil)
	}
	if !mayStart || len(abandon) > 0 || h.process(a.Primary) != nil {
		return abandon
	}
	i := slices.IndexFunc(h.procs, func(o *process) bool { return o.cold })
	if i < 0 {
		h.spawn(true)
		return nil
	}
	c := pact.Command{Kind: pact.Start, Guest: a.Guest, Term: a.Term, By: h.procs[i].party, MarkerTerm: h.disk.term}
	if h.order != nil || h.w.mutant.staleDisk {
		c.AcceptLoss, c.Operator = "all of it", "operator"
	}
	if h.saying["start"] || c.Term < h.started {
		return nil
	}
	if h.startID == "" || h.startFor.By != c.By || h.startFor.Term != c.Term {
		h.startID, h.startFor = h.newID(), c
		h.procs[i].accepts = h.order != nil && h.disk.state == "inconsistent"
	}
	c = h.startFor
	c.ID = h.startID
	h.say("start", c, func(v *pact.Verdict) {
		if v == nil {
			return
		}
		h.startID = ""
		if v.Applied {
			h.started = v.Assignment.Term
		}
	})
	return nil
}

// mayStart says whether this host's disk is known to be the current one.
func (h *host) mayStart(a *pact.Assignment) bool {
	if h.w.mutant.staleDisk {
		return true
	}
	if h.disk.state == "outdated" || h.disk.state == "inconsistent" {
		return false
	}
	if n := len(a.Unproven); n > 0 {
		c := a.Unproven[n-1]
		return c.Party.Host == h.name && h.disk.term >= c.Term
	}
	return a.CurrentDisk.Host == h.name && h.disk.term >= a.CurrentDisk.Term
}

// elsewhere: the other host has the primary.
func (h *host) elsewhere(a *pact.Assignment) (abandon []*process) {
	named := a.Mode == pact.Protected && a.Replica.Host == h.name
	if !named && a.Mode == pact.Protected {
		return slices.Clone(h.procs)
	}
	kept := false
	for _, o := range h.procs {
		if named && o.party != a.Replica || kept {
			abandon = append(abandon, o)
		} else {
			kept = true
		}
	}
	if len(h.procs) == 0 {
		h.spawn(false)
	}
	return abandon
}

// dismiss ends processes that are not wanted: by order first, by force after a while.
func (h *host) dismiss(a *pact.Assignment, abandon []*process) {
	for i := len(h.procs) - 1; i >= 0; i-- {
		o := h.procs[i]
		asked := slices.Contains(abandon, o)
		acts := o.role() == link.RolePrimary || o.role() == link.RoleLoser
		if !asked && !(acts && !(a.Runs() && a.Primary == o.party)) {
			delete(h.unwanted, o.party)
			continue
		}
		since, known := h.unwanted[o.party]
		switch {
		case !known:
			h.unwanted[o.party] = h.w.now
			if asked {
				o.after(h.w.small(), o.abandon)
			}
		case h.w.now-since > grace:
			h.w.tracef("%s        kills %s, which is not wanted", h.name, short(o.party))
			o.die(false)
		}
	}
}

// meet tells a primary where its twin is.
func (h *host) meet(p *process, a *pact.Assignment) {
	var peer link.Peer
	for _, t := range h.twins {
		switch {
		case a.Mode == pact.Protected && t.party != a.Replica:
		case a.Mode == pact.Solo && t.role != link.RoleWaiting && t.role != link.RoleReplica:
		case peer.Party.IsZero():
			peer = link.Peer{Party: t.party, Address: t.party.Host}
		}
	}
	if p.told == peer {
		return
	}
	p.told = peer
	p.after(h.w.small(), func() { p.meet(p.told) })
}
