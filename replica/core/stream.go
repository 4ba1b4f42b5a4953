package core

import (
	"fmt"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// opened decides whether a stream is accepted.
func (c *Core) opened(e Opened) []Action {
	var out []Action
	refuse := func(format string, a ...any) []Action {
		r := Refuse{Conn: e.Conn, Why: fmt.Sprintf(format, a...)}
		if t := c.Term(); t > e.Term {
			r.Term = t
		}
		return append(out, r)
	}
	if e.Host == e.Primary.Host {
		out = c.hear(e.Term)
	}
	switch {
	case !c.have:
		return refuse("no assignment has been applied here yet: try again")
	case e.Host != e.Primary.Host:
		return refuse("the certificate says %q, the stream says %v", e.Host, e.Primary)
	case e.Term < c.Term():
		return refuse("term %d is over", e.Term)
	case e.Term > c.a.Term:
		return refuse("term %d has not been applied here yet: try again", e.Term)
	case e.Primary != c.a.Primary:
		return refuse("the primary of term %d is %v", c.a.Term, c.a.Primary)
	case e.Replica != c.self:
		return refuse("this is %v", c.self)
	case c.a.Mode == pact.Stopped:
		return refuse("the guest is stopped in term %d", c.a.Term)
	case c.state == Promoting:
		return refuse("a promotion has been asked for and is not settled yet: try again")
	case c.state != Waiting && c.state != Syncing && c.state != Replica:
		return refuse("this process is %s", c.state)
	}
	if e.Resume {
		if !c.img.touched || c.img.from != e.Primary || c.img.acked == 0 {
			r := Refuse{Conn: e.Conn, Why: "there is no image of this primary to go on from", Blank: true}
			return append(out, r)
		}
		out = c.dropStream("replaced by a newer stream of the same primary")
		c.in = stream{conn: e.Conn, term: e.Term}
		return append(out, c.welcome()...)
	}
	switch {
	case c.a.Mode == pact.Protected:
		return refuse("protected: only a stream that goes on after epoch %d is accepted", c.img.acked)
	case c.a.CurrentDisk.Host == c.self.Host:
		return refuse("this host's disk is the current one until the primary has marked its own: try again")
	}
	out = c.dropStream("replaced by a newer stream of the same primary")
	c.state = Waiting
	c.img = image{touched: true, from: e.Primary, since: e.Term}
	c.in = stream{conn: e.Conn, term: e.Term}
	return append(out, Disarm{}, Prepare{Conn: e.Conn})
}

func (c *Core) prepared(e Prepared) []Action {
	if e.Conn != c.in.conn || c.in.welcomed {
		return nil
	}
	if e.Err != "" {
		out := []Action{Refuse{Conn: e.Conn, Why: e.Err}, Note{Kind: "replica-not-ready", Text: e.Err}}
		c.in = stream{}
		return out
	}
	return c.welcome()
}

// welcome accepts the stream c.in.
func (c *Core) welcome() []Action {
	c.in.welcomed, c.first = true, false
	if c.state == Waiting {
		c.state = Syncing
	}
	return []Action{Welcome{Conn: c.in.conn, Last: c.img.acked}, Arm{}}
}

// staged decides on an epoch that is here, whole and verified.
func (c *Core) staged(e Staged) []Action {
	drop := Drop{Conn: e.Conn, Epoch: e.Epoch}
	if e.Conn != c.in.conn || !c.in.welcomed || c.kept != nil {
		return []Action{drop}
	}
	violation := func(format string, a ...any) []Action {
		why := fmt.Sprintf(format, a...)
		out := []Action{drop, Note{Kind: "stream-violation", Text: why}, Close{Conn: e.Conn, Why: why}}
		return append(out, c.lost(Lost{Conn: e.Conn, Why: why, Alive: true})...)
	}
	switch {
	case c.img.acked != 0 && e.Epoch != c.img.acked+1:
		return violation("epoch %d after epoch %d", e.Epoch, c.img.acked)
	case e.Epoch == 0:
		return violation("an epoch numbered 0")
	case e.Syncing && c.img.complete:
		return violation("epoch %d is incomplete, epoch %d was whole", e.Epoch, c.img.acked)
	}
	out := c.hear(e.Term)
	switch {
	case c.state == Promoting, c.state == Activating:
		// Acknowledges nothing until the question is settled.
	case c.heard > c.a.Term:
		// Somebody knows of a higher term: the own log has to say which.
	case c.img.final:
		// Only a higher term lets anybody run after a final epoch, and the own log has not said so yet.
	case c.state == Syncing, c.state == Replica:
		return append(out, c.commit(e)...)
	default:
		return append(out, drop)
	}
	c.kept = &e
	return append(out, Keep{Conn: e.Conn, Epoch: e.Epoch})
}

func (c *Core) commit(e Staged) []Action {
	// A final epoch that a resumed stream brings from an older term is none any more.
	c.img.acked, c.img.complete, c.img.final = e.Epoch, !e.Syncing, e.Final && e.Term == c.a.Term
	c.img.lost = e.Lost
	if e.Lost {
		return []Action{Take{Conn: e.Conn, Epoch: e.Epoch}}
	}
	return []Action{Ack{Conn: e.Conn, Epoch: e.Epoch}}
}

// pagesLost notes that the image can't be run from for now.
func (c *Core) pagesLost() []Action {
	if !c.img.touched || c.state == Primary || c.img.lost {
		return nil
	}
	c.img.lost = true
	if c.kept != nil {
		c.kept.Lost = true
	}
	switch {
	case c.state == Promoting:
		return c.end(EndDiscarded, lostPages) // it asks no more, and does not run where it was heard
	case c.state == Activating && !c.begun:
		return c.end(EndFailed, lostPages)
	}
	return nil
}

const lostPages = "pages of its memory are damaged, and the primary is not there to send them again"

// release acknowledges what was kept, now that the question is settled and the stream lives.
func (c *Core) release() []Action {
	if c.kept == nil {
		return nil
	}
	e := *c.kept
	c.kept = nil
	return c.staged(e)
}

// lost handles the end of a connection.
func (c *Core) lost(e Lost) []Action {
	if e.Conn == 0 || e.Conn != c.in.conn {
		return nil
	}
	var out []Action
	if c.kept != nil {
		out = append(out, Drop{Conn: c.kept.Conn, Epoch: c.kept.Epoch})
		c.kept = nil
	}
	c.in = stream{}
	switch c.state {
	case Syncing:
		c.state = Waiting
		return append(out, Disarm{}, Note{Kind: "stream-lost", Text: e.Why})
	case Replica:
		if e.Alive {
			// It has some time to come back or to go solo before anybody asks for the guest.
			c.first = true
			return append(out, Arm{FirstContact: true}, Note{Kind: "stream-lost", Text: e.Why})
		}
		return append(out, c.promote("the stream ended: "+e.Why)...)
	}
	return out
}

// silent handles the detector's word.
func (c *Core) silent() []Action {
	switch c.state {
	case Syncing:
		out := c.dropStream("silence")
		c.state = Waiting
		return append(out, Disarm{}, Note{Kind: "stream-lost", Text: "silence"})
	case Replica:
		if c.first {
			c.first = false
			return c.promote("the primary did not open a stream")
		}
		return c.promote("silence on the stream")
	}
	return nil
}

// promote asks Raft for the guest. From here on nothing is acknowledged.
func (c *Core) promote(why string) []Action {
	if c.img.lost {
		return c.end(EndDiscarded, why+"; "+lostPages)
	}
	if no := c.entitled(); no != "" {
		return []Action{Note{Kind: "promotion-not-asked", Text: why + "; " + no}, AskLater{}}
	}
	c.state = Promoting
	c.ask = c.command(pact.Promote)
	c.ask.Epoch, c.ask.Reason = c.img.acked, why
	return []Action{Disarm{}, Propose{*c.ask}, AskLater{}, Note{Kind: "promotion-asked", Text: why}}
}
