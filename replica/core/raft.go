package core

import (
	"fmt"
	"slices"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// applied takes an assignment from the own Raft log.
func (c *Core) applied(a pact.Assignment) []Action {
	if a.Guest != c.guest || c.have && a.Term < c.a.Term {
		return nil // a daemon that replays its log
	}
	raised := !c.have || a.Term > c.a.Term
	// By its epoch an own promotion is told from a gift of the primary's, which may be of long ago.
	promoted := c.ask != nil && c.fresh && a.Mode == pact.Solo && a.Primary == c.self && a.Base == c.ask.Epoch && a.Base > c.a.Base
	c.a, c.have = a, true
	c.heard = max(c.heard, a.Term)

	var out []Action
	if promoted {
		c.frozen = false
	}
	if raised {
		c.img.final = false
		if c.ask != nil && c.ask.Term < a.Term {
			c.ask = nil // settled, one way or the other
		}
	}
	if h := a.CurrentDisk.Host; h != "" && h != c.self.Host && a.Primary.Host != c.self.Host {
		out = append(out, Outdated{Term: a.CurrentDisk.Term})
	}
	switch {
	case c.blocksStart():
		return append(out, c.end(EndDiscarded, fmt.Sprintf("the primary of term %d is gone, and only this process's end lets its host say that its disk bears no marker", a.Term))...)
	case a.Mode == pact.Stopped:
		return append(out, c.appliedStopped()...)
	case a.Primary == c.self:
		return append(out, c.appliedPrimary()...)
	case a.Mode == pact.Protected && a.Replica == c.self:
		return append(out, c.appliedReplica(raised)...)
	}
	return append(out, c.appliedOther(raised)...)
}

// blocksStart says that nobody is left who could go on, and that a cold start waits for a word on a tenure
// of this very process, which came and went before it ran. Its host has none for it while it lives.
func (c *Core) blocksStart() bool {
	return c.a.Mode == pact.Solo && c.a.Primary != c.self && c.a.IsGone(c.a.Primary) &&
		slices.ContainsFunc(c.a.Unproven, func(u pact.Claim) bool { return u.Party == c.self })
}

func (c *Core) appliedStopped() []Action {
	switch {
	case c.state == Primary || c.state == Activating:
		return c.end(EndDone, fmt.Sprintf("the guest is stopped in term %d", c.a.Term))
	case c.img.touched:
		return c.end(EndDiscarded, fmt.Sprintf("the guest is stopped in term %d, its image is of no use any more", c.a.Term))
	}
	return nil
}

// appliedPrimary: the assignment names this process as the primary.
func (c *Core) appliedPrimary() []Action {
	switch c.state {
	case Primary:
		return nil
	case Activating:
		if c.begun || c.ask != nil {
			return c.again()
		}
		return c.begin()
	}
	if !c.img.touched {
		if c.a.Mode != pact.Solo {
			return c.end(EndFailed, fmt.Sprintf("term %d gives it a protected guest of which it holds nothing", c.a.Term))
		}
		return c.begin()
	}
	// Promote, Surrender or Switchover: it must hold what the entry promises. A stream's end or a
	// refused question before does not matter: the image is still there.
	switch {
	case c.a.BaseTerm == 0:
		// A Start is from the disks, by a process with blank memory: an image of before is not the guest.
		return c.end(EndDiscarded, fmt.Sprintf("term %d starts the guest from its disks, this process holds an image", c.a.Term))
	case !c.img.complete:
		return c.end(EndDiscarded, fmt.Sprintf("term %d gives it the guest, its image is incomplete", c.a.Term))
	case c.img.lost:
		return c.end(EndFailed, fmt.Sprintf("term %d gives it the guest: %s", c.a.Term, lostPages))
	case c.img.acked < c.a.Base:
		return c.end(EndFailed, fmt.Sprintf("term %d gives it the guest as of epoch %d, its image is at %d", c.a.Term, c.a.Base, c.img.acked))
	}
	out := c.dropStream(fmt.Sprintf("took over in term %d", c.a.Term))
	out = append(out, Disarm{})
	c.state, c.ask = Activating, nil
	return append(out, c.begin()...)
}

// begin starts what Raft has given, unless this process was frozen: then it asks once more.
func (c *Core) begin() []Action {
	c.state = Activating
	if c.heard > c.a.Term {
		return []Action{Note{Kind: "not-begun", Text: fmt.Sprintf("term %d exists, this host's log is at %d", c.heard, c.a.Term)}}
	}
	if c.frozen {
		c.ask = c.command(pact.Confirm)
		c.ask.Reason = "was frozen before it could begin"
		return []Action{Propose{*c.ask}, AskLater{}, Note{Kind: "confirmation-asked", Text: c.ask.Reason}}
	}
	c.begun = true
	if !c.img.touched {
		return []Action{ColdStart{Assignment: c.a}}
	}
	return []Action{Activate{Assignment: c.a, From: c.img.acked}}
}

// appliedReplica: protected, and this process may take over.
func (c *Core) appliedReplica(raised bool) []Action {
	switch c.state {
	case Activating:
		return c.end(EndReplaced, fmt.Sprintf("term %d makes %v the primary before this one ran", c.a.Term, c.a.Primary))
	case Primary:
		// A switchover: its own stopped machine is the image, at the final epoch.
		c.state = Replica
		c.img = image{touched: true, from: c.a.Primary, since: c.a.BaseTerm, acked: c.a.Base, complete: true}
		c.begun, c.first = false, true
		return []Action{TakeReplica{Assignment: c.a, Base: c.a.Base}, Arm{FirstContact: true}}
	}
	if !raised {
		return nil
	}
	if no := c.entitled(); no != "" {
		return []Action{Note{Kind: "replica-not-entitled", Text: no}}
	}
	was := c.state
	c.state = Replica
	if c.in.welcomed {
		out := []Action{Arm{}}
		if was == Syncing || was == Waiting {
			out = append(out, Note{Kind: "replica-entitled", Text: fmt.Sprintf("term %d, base %d", c.a.Term, c.a.Base)})
		}
		return append(out, c.release()...)
	}
	return c.promote("the stream had ended before the entry was applied")
}

// appliedOther: somebody else's guest, and this process has no right to it.
func (c *Core) appliedOther(raised bool) []Action {
	if !raised {
		return nil
	}
	switch c.state {
	case Primary, Activating:
		return c.end(EndReplaced, fmt.Sprintf("term %d gives the guest to %v", c.a.Term, c.a.Primary))
	}
	// Streams of an older term are over. The image stays as it is: where its primary goes on, and has
	// kept what it needs, a stream may go on after the epoch that the image holds.
	out := c.dropStream(fmt.Sprintf("term %d", c.a.Term))
	if c.state != Waiting {
		out = append(out, Note{Kind: "no-right", Text: fmt.Sprintf("term %d, mode %s, primary %v", c.a.Term, c.a.Mode, c.a.Primary)})
	}
	c.state, c.first = Waiting, false
	if c.img.from != c.a.Primary {
		c.img = image{touched: c.img.touched}
	}
	return append(out, Disarm{})
}

// answered takes the outcome of a proposal. Only a refusal says something new: what was applied
// comes through the own log.
func (c *Core) answered(e Answered) []Action {
	var out []Action
	// Where this process has the guest, a term that leaves it the guest stops nothing: the primary's side has
	// asked for it, or is about to hear of it from the own log.
	runs := c.state == Primary || c.state == Activating && c.begun
	if v := e.Verdict.Assignment; !e.Unknown && !(runs && v.Runs() && v.Primary == c.self) {
		out = c.hear(v.Term)
		if c.state == Ended {
			return out
		}
	}
	if c.ask == nil || e.ID != c.ask.ID {
		return out
	}
	if !e.Unknown && c.fresh {
		c.frozen = false
	}
	switch {
	case e.Unknown:
		return append(out, AskLater{})
	case c.ask.Kind == pact.Confirm && e.Verdict.Applied:
		c.ask = nil
		return append(out, c.begin()...)
	case e.Verdict.Applied, c.heard > c.a.Term:
		return out // the own log will bring it
	}
	// Refused, and the assignment is still what it was. A refusal is no verdict on the right.
	out = append(out, Note{Kind: string(c.ask.Kind) + "-refused", Text: e.Verdict.Reason})
	if c.ask.Kind == pact.Confirm {
		return append(out, AskLater{})
	}
	c.ask = nil
	c.state = Replica
	if c.in.welcomed {
		return append(append(out, Arm{}), c.release()...)
	}
	return append(out, AskLater{})
}

// again repeats every question without an answer.
func (c *Core) again() []Action {
	var out []Action
	if c.ask != nil && c.heard <= c.a.Term {
		out = append(out, Propose{*c.ask})
	}
	if c.state == Replica && !c.in.welcomed && !c.first {
		return append(out, c.promote("there is no stream")...)
	}
	if len(out) > 0 {
		out = append(out, AskLater{})
	}
	return out
}

func (c *Core) activated() []Action {
	if c.state == Activating {
		c.state = Primary
	}
	return nil
}
