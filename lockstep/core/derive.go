package core

import (
	"fmt"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// derive computes from the facts what should be, and returns the differences to what was told. Order
// matters: stopping and holding come before asking.
func (c *Core) derive(again bool) {
	wanted := c.wanted()
	c.asking = len(wanted) > 0
	c.deriveCPU()
	c.deriveGate()
	c.deriveSeal()
	for _, w := range wanted {
		c.ask(w, again)
	}
	c.deriveMarker()
	if c.giveUp {
		c.giveUp = false
		c.act(GiveUp{})
	}
}

func (c *Core) deriveGate() {
	if c.marker < c.since || c.doubtful() || c.killed != "" {
		c.hold()
		return
	}
	if c.a.Mode == pact.Solo && !c.gated() {
		if !c.open {
			c.open = true
			c.act(Open{})
		}
		return
	}
	c.hold()
	limit := c.acked
	if c.final != 0 && c.power == "" {
		limit = min(limit, c.final-1)
	}
	if limit > c.released {
		c.released = limit
		c.act(Release{limit})
	}
}

// hold closes the gate. What was emitted before has left.
func (c *Core) hold() {
	if c.open {
		c.open = false
		c.released = max(c.released, c.captured)
		c.act(Hold{})
	}
}

func (c *Core) deriveCPU() {
	want := cpuRun
	finish := Finish{}
	switch {
	case c.fault != "" || c.killed != "" || c.heard > c.a.Term || c.final != 0:
		want = cpuPause
	case c.power != "" && c.gated() && c.stream.state == streamUp && !c.asked.goSolo:
		want = cpuFinish
	case c.power != "":
		want = cpuPause
	case c.switching && c.a.Mode == pact.Protected && c.stream.state == streamUp && !c.asked.goSolo && !c.gap:
		want, finish.Switchover = cpuFinish, true
	}
	if want == c.cpu {
		return
	}
	c.cpu = want
	switch want {
	case cpuRun:
		c.act(Resume{})
	case cpuPause:
		c.act(Pause{})
	case cpuFinish:
		c.act(finish)
	}
}

// deriveSeal hurries an idle guest to the epoch from which on output will wait.
func (c *Core) deriveSeal() {
	want := c.wantsSeal()
	if want && !c.hurried {
		c.act(EndEpoch{})
	}
	c.hurried = want
}

func (c *Core) deriveMarker() {
	if !c.marked() && c.marker < c.a.Term && c.markerAsked < c.a.Term {
		c.markerAsked = c.a.Term
		c.act(WriteMarker{c.a.Term})
	}
}

// wanted lists the questions that should be open now, and notes which of them can raise the term.
func (c *Core) wanted() []pact.Command {
	var w []pact.Command
	if q, ok := c.decision(); ok {
		w = append(w, q)
	}
	if c.gap || c.word {
		w = append(w, pact.Command{Kind: pact.Confirm})
	}
	if !c.marked() && c.marker == c.a.Term {
		w = append(w, pact.Command{Kind: pact.Mark})
	}
	return w
}

// decision is the one question that can raise the term, if there is one to ask. Once asked it is
// asked until the term has risen, or until another takes its place whose commitment also ends it.
func (c *Core) decision() (pact.Command, bool) {
	protect := func() (pact.Command, bool) {
		return pact.Command{Kind: pact.Protect, Other: c.asked.target, Epoch: c.sealed}, true
	}
	protected := c.a.Mode == pact.Protected
	if c.fault != "" {
		if protected {
			return pact.Command{Kind: pact.Surrender, Reason: c.fault}, true
		}
		return protect() // asked already: otherwise the fault would have been the end
	}
	if c.killed != "" {
		return pact.Command{Kind: pact.Stop, Reason: c.killed}, true
	}
	down := c.stream.state == streamDown
	if protected && down || c.asked.protect && (down || c.asked.refused) {
		c.asked.goSolo = true
	}
	finalAcked := c.final != 0 && c.acked >= c.final
	switch {
	case c.asked.goSolo:
		return pact.Command{Kind: pact.GoSolo, Reason: c.detail}, true
	case c.power != "" && (!c.gated() || finalAcked):
		if c.doubtful() || c.marker < c.since {
			return pact.Command{}, false // first what it still has to say
		}
		return pact.Command{Kind: pact.Stop, Reason: c.power}, true
	case c.asked.cancel || protected && c.final != 0 && !c.switching && c.power == "":
		c.asked.cancel = true
		return pact.Command{Kind: pact.Cancel}, true
	case c.switching && finalAcked:
		c.asked.switchover = true
		return pact.Command{Kind: pact.Switchover, Other: c.a.Replica, Epoch: c.final}, true
	case c.asked.protect:
		return protect()
	case c.sealed != 0 && c.acked >= c.sealed && c.stream.state == streamUp && !c.doubtful():
		c.asked.protect, c.asked.target = true, c.stream.party
		return protect()
	}
	return pact.Command{}, false
}

// ask puts a question, unless it was put already and this is no time to repeat it.
func (c *Core) ask(q pact.Command, again bool) {
	q.Guest, q.Term, q.By = c.guest, c.a.Term, c.self
	doubt := 0
	if q.Kind == pact.Confirm {
		doubt = c.doubt
	}
	kept := c.questions[:0]
	var old *question
	for i := range c.questions {
		o := c.questions[i]
		if o.command.Term < c.a.Term {
			continue // settled by the term
		}
		kept = append(kept, o)
		if o.command.Kind == q.Kind && o.command.Epoch == q.Epoch && o.command.Other == q.Other && o.doubt == doubt {
			old = &kept[len(kept)-1]
		}
	}
	c.questions = kept
	if old != nil && !again {
		return
	}
	if old == nil || old.refused {
		// Whoever remembers that an ID was refused refuses it for ever.
		q.ID = c.newID()
		if old == nil {
			c.questions = append(c.questions, question{})
			old = &c.questions[len(c.questions)-1]
		}
		*old = question{command: q, doubt: doubt}
	}
	c.act(Propose{old.command})
}

// newID makes an ID that no other question has: a process may be the primary several times, in terms
// of its own each time.
func (c *Core) newID() string {
	c.sequence++
	return fmt.Sprintf("%x-%d-%d", uint64(c.self.Incarnation), c.a.Term, c.sequence)
}
