package core

import (
	"fmt"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// State is where the replica's side is.
type State string

const (
	Waiting    State = "waiting"    // no stream
	Syncing    State = "syncing"    // a stream fills the image, nobody may take over
	Replica    State = "replica"    // protected, entitled, acknowledging
	Promoting  State = "promoting"  // has asked, acknowledges nothing
	Activating State = "activating" // Raft has given it the guest, which does not run yet
	Primary    State = "primary"    // handed over to the primary's side
	Ended      State = "ended"      // does nothing any more
)

// image is what is known of the copy of the guest in this process's memory.
type image struct {
	touched  bool       // the memory is no longer blank
	from     pact.Party // whose guest it is
	since    pact.Term  // the term in which its stream began
	acked    pact.Epoch // the newest acknowledged epoch, 0 none
	complete bool       // that epoch was whole: memory, state and disk
	final    bool       // that epoch was the last one of a switchover, under the present term
	lost     bool       // pages of the memory can't be read, and the primary has not sent them again yet
}

// stream is the one connection from which epochs are taken.
type stream struct {
	conn Conn
	// term of its Hello. Epochs on it may be older: a primary that has gone solo resumes with those that
	// were not acknowledged before. Who may send is settled by Hello, and what follows what by the chain.
	term     pact.Term
	welcomed bool
}

// Core is the state machine. The zero value is not usable; see New.
type Core struct {
	guest string
	self  pact.Party

	state  State
	a      pact.Assignment // newest from the own log
	have   bool            // there is one
	heard  pact.Term       // the highest term that anybody spoke of
	frozen bool            // has not run for the detection time, and no question put since has an outcome
	fresh  bool            // ask was put after that
	begun  bool            // ColdStart or Activate has gone out
	first  bool            // the primary lives, or has just become it, and has to open a stream
	img    image
	in     stream
	kept   *Staged       // held back
	ask    *pact.Command // Promote or Confirm without an outcome
	asks   int           // numbers the IDs
}

// New returns the state machine of a fresh process: blank memory, no assignment known.
func New(guest string, self pact.Party) *Core {
	return &Core{guest: guest, self: self, state: Waiting}
}

// State returns where it is.
func (c *Core) State() State { return c.state }

// Assignment returns the newest assignment from the own log; false: none yet.
func (c *Core) Assignment() (pact.Assignment, bool) { return c.a, c.have }

// Acked returns the newest acknowledged epoch, and whether the image is complete with it.
func (c *Core) Acked() (pact.Epoch, bool) { return c.img.acked, c.img.complete }

// Asking reports the open question to Raft, if there is one.
func (c *Core) Asking() (pact.Command, bool) {
	if c.ask == nil {
		return pact.Command{}, false
	}
	return *c.ask, true
}

// Term is the highest term known here, from whatever source.
func (c *Core) Term() pact.Term { return max(c.a.Term, c.heard) }

// Step takes one event and returns what to do about it.
func (c *Core) Step(e Event) []Action {
	if c.state == Ended {
		switch e := e.(type) {
		case Opened:
			return []Action{Refuse{Conn: e.Conn, Term: c.Term(), Why: "this process is ending"}}
		case Staged:
			return []Action{Drop{Conn: e.Conn, Epoch: e.Epoch}}
		}
		return nil
	}
	switch e := e.(type) {
	case Applied:
		return c.applied(e.Assignment)
	case Answered:
		return c.answered(e)
	case Again:
		return c.again()
	case Opened:
		return c.opened(e)
	case Prepared:
		return c.prepared(e)
	case Staged:
		return c.staged(e)
	case Lost:
		return c.lost(e)
	case Silent:
		return c.silent()
	case PagesLost:
		return c.pagesLost()
	case HeardTerm:
		return c.hear(e.Term)
	case Gap:
		return c.gap()
	case Activated:
		return c.activated()
	case Abandon:
		if c.state == Primary || c.state == Activating {
			return []Action{Note{Kind: "not-abandoned", Text: "the guest runs here"}}
		}
		return c.end(EndDone, "abandoned by order")
	case Failed:
		return c.end(EndFailed, e.Err)
	}
	return nil
}

// entitled says why this process may not promote now; empty: it may ask.
func (c *Core) entitled() string {
	switch {
	case !c.have:
		return "no assignment has been applied here"
	case c.heard > c.a.Term:
		return fmt.Sprintf("term %d exists, this host's log is at %d", c.heard, c.a.Term)
	case c.a.Mode != pact.Protected || c.a.Replica != c.self:
		return fmt.Sprintf("term %d does not name it as a replica", c.a.Term)
	case !c.img.complete:
		return "the image is not complete"
	case c.img.acked < c.a.Base:
		return fmt.Sprintf("the image is at epoch %d, before the base %d", c.img.acked, c.a.Base)
	case c.a.BaseTerm < c.img.since:
		return fmt.Sprintf("the base is of term %d, the image of a stream from term %d", c.a.BaseTerm, c.img.since)
	}
	return ""
}

// hear takes an authenticated word of a term. A higher one stops: nothing is acknowledged, asked or
// begun until the own log has brought it.
func (c *Core) hear(t pact.Term) []Action {
	if t <= c.heard {
		return nil
	}
	c.heard = t
	switch {
	case !c.have || t <= c.a.Term:
		return nil
	case c.state == Primary:
		return []Action{Heard{Term: t}}
	case c.state == Activating && c.begun:
		return c.end(EndReplaced, fmt.Sprintf("term %d exists", t))
	}
	return nil
}

// detecting says that the silence detector is armed.
func (c *Core) detecting() bool { return c.state == Replica || c.state == Syncing && c.in.welcomed }

// gap notes that this process has not run for the detection time. What was asked before says nothing of
// the time since.
func (c *Core) gap() []Action {
	c.frozen, c.fresh = true, false
	switch {
	case c.detecting():
		return []Action{Arm{FirstContact: c.first}}
	case c.state == Activating && !c.begun && c.ask != nil:
		return c.begin()
	}
	return nil
}

func (c *Core) command(k pact.Kind) *pact.Command {
	c.asks++
	c.fresh = true
	return &pact.Command{
		Kind: k, Guest: c.guest, Term: c.a.Term, By: c.self,
		ID: fmt.Sprintf("%s/%s/r%d", c.guest, c.self, c.asks),
	}
}

func (c *Core) end(how Ending, why string) []Action {
	out := c.dropStream(why)
	c.state, c.ask = Ended, nil
	return append(out, Disarm{}, End{How: how, Why: why})
}

// dropStream closes the accepted connection and forgets what it had not committed.
func (c *Core) dropStream(why string) []Action {
	var out []Action
	if c.kept != nil {
		out = append(out, Drop{Conn: c.kept.Conn, Epoch: c.kept.Epoch})
		c.kept = nil
	}
	if c.in.conn != 0 {
		out = append(out, Close{Conn: c.in.conn, Why: why})
		c.in = stream{}
	}
	return out
}
