package core

import (
	"fmt"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Config names the process that the core decides for.
type Config struct {
	Guest string
	Self  pact.Party
}

// Core is the state of one primary. Make it with New; it does nothing before Begin.
type Core struct {
	guest string
	self  pact.Party

	begun, over bool

	a     pact.Assignment // the newest that the host's own log has applied
	since pact.Term       // in which this process became the primary

	heard pact.Term // highest that any authenticated word named
	word  bool      // heard came from a peer, and neither an assignment nor a Confirm has settled it
	gap   bool      // an own gap, not settled by a Confirm asked after it
	doubt int       // counts words and gaps: each needs a Confirm of its own

	marker      pact.Term // of this host's newest durable disk marker, as far as this process wrote it
	markerAsked pact.Term

	stream stream
	pages  map[uint32]damagedPage // damaged, and asked for
	giveUp bool                   // they will not be mended, and the driver has not been told

	captured pact.Epoch // newest
	acked    pact.Epoch // newest that the stream's replica holds
	sealed   pact.Epoch // k of this term: output of later epochs waits; 0 while there is none
	final    pact.Epoch // captured last, the vCPUs stand still after it; 0 while there is none

	asked     asked // in this term
	switching bool  // ordered, and not given up
	power     string
	killed    string
	fault     string

	// What the driver was told.
	open      bool       // the gate
	released  pact.Epoch // everything up to here has left
	cpu       cpu
	hurried   bool // EndEpoch, for the seal that is wanted now
	questions []question
	asking    bool
	sequence  uint64

	detail  string
	actions []Action
}

// stream is what is known of the checkpoint stream.
type stream struct {
	id     uint64
	state  streamState
	party  pact.Party
	filled bool // the replica has been sent everything, at least up to some captured epoch
}

type streamState int

const (
	streamDown    streamState = iota
	streamPending             // after a switchover: the twin has not been reached yet
	streamUp
)

// asked are the questions of the current term that can raise it. They stay asked until it has risen.
type asked struct {
	protect    bool
	refused    bool // a copy of Protect was refused; another may still be committed
	target     pact.Party
	goSolo     bool
	cancel     bool
	switchover bool
}

type cpu int

const (
	cpuRun cpu = iota
	cpuPause
	cpuFinish
)

// question is one that was put to Raft.
type question struct {
	command pact.Command // with its ID
	doubt   int          // of a Confirm: which doubt it settles
	refused bool
}

// New makes the core of a process that is not a primary yet.
func New(cfg Config) *Core { return &Core{guest: cfg.Guest, self: cfg.Self} }

// Step takes an event and returns what to do about it, in order. The slice is valid until the next Step.
func (c *Core) Step(ev Event) []Action {
	c.actions = c.actions[:0]
	if b, ok := ev.(Begin); ok && !c.begun && b.Assignment.Primary == c.self {
		c.begin(b)
		c.derive(false)
		return c.actions
	}
	if up, ok := ev.(StreamUp); ok && (!c.begun || c.over) {
		c.act(CloseStream{up.Stream, "this process is not the primary"})
	}
	if !c.begun || c.over {
		return c.actions
	}
	c.absorb(ev)
	if !c.over {
		_, again := ev.(Retry)
		c.derive(again)
	}
	return c.actions
}

func (c *Core) act(a Action) { c.actions = append(c.actions, a) }

func (c *Core) begin(b Begin) {
	c.begun = true
	c.a, c.since, c.heard = b.Assignment, tenure(b.Assignment), b.Assignment.Term
	c.captured, c.acked = b.Last, b.Last
	c.marker = b.Marker
	if c.a.Mode == pact.Protected {
		// The twin holds the final epoch and waits for this process to call.
		c.stream = stream{state: streamPending, party: c.a.Replica, filled: true}
	}
}

// tenure is the term in which the assignment's primary became the primary.
func tenure(a pact.Assignment) pact.Term {
	if a.Tenure != 0 {
		return a.Tenure
	}
	return a.Term
}

// absorb takes an event into the facts.
func (c *Core) absorb(ev Event) {
	switch ev := ev.(type) {
	case Assigned:
		c.adopt(ev.Assignment)
	case Answered:
		c.answered(ev)
	case StreamUp:
		c.streamUp(ev)
	case StreamDown:
		c.streamDown(ev)
	case Captured:
		c.capturedEpoch(ev)
	case Acked:
		if c.stream.state == streamUp && ev.Stream == c.stream.id && ev.Epoch <= c.captured {
			c.acked = max(c.acked, ev.Epoch)
		}
	case Word:
		if ev.Term > c.heard {
			c.heard, c.word = ev.Term, true
			c.doubt++
			c.detail = fmt.Sprintf("somebody speaks of term %d", ev.Term)
		}
	case OwnGap:
		c.gap = true
		c.doubt++
		c.detail = "this process stood still for the detection time"
	case MarkerDurable:
		c.marker = max(c.marker, ev.Term)
	case SwitchoverOrdered:
		if why := c.refuseSwitchover(); why != "" {
			c.act(Refuse{why})
		} else {
			c.switching = true
		}
	case SwitchoverExpired:
		c.switching = false
	case Faulty:
		c.setFault(ev.Why)
	case Damaged:
		c.damaged(ev)
	case Copied:
		c.copied(ev)
	case PoweredOff:
		if c.power == "" {
			c.power = reason(ev.Why, "the guest switched itself off")
			c.abandonSeal()
			c.switching = false
		}
	case Killed:
		if c.killed == "" {
			c.killed = reason(ev.Why, "the operator stopped the guest")
			c.abandonSeal()
			c.switching = false
		}
	}
}

func reason(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (c *Core) setFault(why string) {
	if c.fault != "" {
		return
	}
	c.fault = reason(why, "a fault of this host")
	c.detail = c.fault
	c.switching = false
	c.abandonSeal()
	if c.a.Mode != pact.Protected && !c.asked.protect {
		c.end(Failed, c.fault)
	}
}

// abandonSeal gives up a k for which Protect was not asked: nobody can be entitled by it.
func (c *Core) abandonSeal() {
	if !c.asked.protect {
		c.sealed = 0
	}
}

// adopt takes an assignment that the host's own log has applied.
func (c *Core) adopt(a pact.Assignment) {
	if a.Guest != c.guest || a.Term < c.a.Term {
		return
	}
	if a.Term == c.a.Term {
		if a.Primary == c.a.Primary && a.Mode == c.a.Mode {
			c.a = a // what changes within a term: the current disk, the operator's will
		}
		return
	}
	old := c.a
	c.a = a
	c.heard = max(c.heard, a.Term)
	if a.Primary != c.self {
		if a.Mode == pact.Protected && a.Replica == c.self && c.asked.switchover && c.final != 0 && a.Base == c.final && c.fault == "" {
			c.end(Exchanged, "switchover")
		} else {
			c.end(Lost, fmt.Sprintf("%s runs the guest", a.Primary))
		}
		return
	}
	if a.Mode == pact.Stopped {
		c.end(Stopped, reason(c.power, c.killed))
		return
	}
	if a.Term > old.Term+1 {
		// This process asks one question at a time that raises the term, and adopts the outcome
		// before the next: in a term that it has not seen somebody else may have run the guest.
		// Only one who exchanged the roles and got them back before the guest moved did not.
		if !c.asked.switchover || c.final == 0 || a.Base != c.final {
			c.end(Lost, fmt.Sprintf("the term rose from %d to %d without this process", old.Term, a.Term))
			return
		}
		c.since = tenure(a)
	}
	// This process goes on, under a new term that settles all questions of the old one.
	if a.Term >= c.heard {
		c.word = false
	}
	c.asked = asked{}
	c.sealed = 0
	c.switching = false
	c.detail = ""
	c.hurried = false
	if c.power == "" {
		c.final = 0
	}
	if c.fault != "" && a.Mode == pact.Solo {
		c.end(Failed, c.fault)
	}
}

// answered takes a verdict. It settles what concerns the question alone; who may go on is read from
// assignments, save for Confirm, which changes none.
func (c *Core) answered(ev Answered) {
	if ev.Verdict == nil {
		return // Retry puts it again
	}
	v := ev.Verdict
	if v.Assignment.Guest != c.guest {
		return
	}
	if v.Assignment.Term > c.a.Term {
		if v.Assignment.Primary != c.self && v.Assignment.Term > c.heard {
			c.heard = v.Assignment.Term
			c.doubt++ // a Confirm asked before does not speak of this
			c.detail = fmt.Sprintf("%s runs the guest in term %d", v.Assignment.Primary, v.Assignment.Term)
		}
		return
	}
	if v.Assignment.Term < c.a.Term {
		return
	}
	for i := range c.questions {
		q := &c.questions[i]
		if q.command.ID != ev.ID || q.command.Term != c.a.Term {
			continue
		}
		q.refused = !v.Applied
		switch kind := q.command.Kind; {
		case kind == pact.Confirm && v.Applied && q.doubt == c.doubt:
			c.gap, c.word, c.heard = false, false, c.a.Term
			c.detail = ""
		case v.Applied || kind == pact.Confirm || kind == pact.Mark:
			// An applied one shows as an assignment.
		default:
			c.detail = fmt.Sprintf("%s was refused: %s", kind, v.Reason)
			switch kind {
			case pact.Protect:
				c.asked.refused = true
				c.dropStream(c.detail)
				if c.fault != "" {
					c.end(Failed, c.fault)
					return
				}
			case pact.Surrender:
				c.end(Failed, c.fault+"; "+c.detail)
				return
			case pact.Switchover:
				c.switching = false
			case pact.Cancel:
				c.asked.goSolo = true
			}
		}
	}
}

// entitled is the only party that may be entitled to take over, or nobody.
func (c *Core) entitled() pact.Party {
	if c.a.Mode == pact.Protected {
		return c.a.Replica
	}
	return c.asked.target
}

// MayFill reports whether a replica may be filled from nothing now. Telling a replica to forget its
// image is not allowed while it may be entitled to promote it, nor to have its disk overwritten, which may be the
// only one with a marker, before this host's disk bears one that outlives its power.
func (c *Core) MayFill() bool {
	return c.begun && !c.over && c.a.Mode == pact.Solo && c.entitled().IsZero() && !c.asked.goSolo &&
		(c.marked() || c.marker == c.a.Term) &&
		!c.doubtful() && c.power == "" && c.killed == "" && c.fault == ""
}

func (c *Core) streamUp(ev StreamUp) {
	refuse := ""
	switch e := c.entitled(); {
	case ev.Resumed && ev.Last > c.captured:
		refuse = fmt.Sprintf("it holds epoch %d, which was never captured here", ev.Last)
	case ev.Resumed && ev.Last < c.acked:
		refuse = fmt.Sprintf("it holds epoch %d only and has acknowledged %d", ev.Last, c.acked)
	case e.IsZero():
	case e != ev.Party:
		refuse = fmt.Sprintf("%s may be entitled to take over", e)
	case !ev.Resumed:
		refuse = "it may be entitled to take over, and has lost its image"
	case c.asked.refused:
		refuse = "protection was refused in this term"
	}
	if refuse != "" {
		c.act(CloseStream{ev.Stream, refuse})
		if c.stream.state == streamPending {
			c.streamLost(refuse) // the twin of a switchover does not hold what it should
		}
		return
	}
	c.stream = stream{id: ev.Stream, state: streamUp, party: ev.Party, filled: ev.Resumed}
	c.hurried = false
	if ev.Resumed {
		c.acked = max(c.acked, ev.Last)
		c.fetchAgain()
	} else {
		c.acked = 0
		c.sealed = 0
		c.loseCopies("the replica has lost its image")
	}
}

func (c *Core) streamDown(ev StreamDown) {
	if ev.Stream == 0 && c.stream.state == streamPending || c.stream.state == streamUp && ev.Stream == c.stream.id {
		c.streamLost(ev.Why)
	}
}

func (c *Core) streamLost(why string) {
	c.stream.state, c.stream.filled = streamDown, false
	c.detail = "no stream to the replica: " + why
	c.abandonSeal()
	c.loseCopies(c.detail)
}

// dropStream closes the stream from this side.
func (c *Core) dropStream(why string) {
	if c.stream.state == streamUp {
		c.act(CloseStream{c.stream.id, why})
		c.stream.state, c.stream.filled = streamDown, false
		c.loseCopies("the stream is closed: " + why)
	}
}

func (c *Core) capturedEpoch(ev Captured) {
	c.captured = max(c.captured, ev.Epoch)
	if c.stream.state != streamUp {
		ev.Complete = false
	}
	if ev.Complete {
		c.stream.filled = true
	}
	switch {
	case ev.Final && (c.cpu == cpuFinish || c.a.Mode == pact.Protected):
		// Also when it was taken back meanwhile: a replica that knows of a final epoch is told
		// otherwise by a higher term only.
		c.final = ev.Epoch
	case ev.Complete && c.wantsSeal():
		c.sealed = ev.Epoch
	}
}

// wantsSeal reports that the end of the next complete epoch is where holding should start.
func (c *Core) wantsSeal() bool {
	return c.a.Mode == pact.Solo && c.stream.state == streamUp && c.stream.filled && c.sealed == 0 && !c.asked.protect &&
		!c.asked.goSolo && c.marked() && !c.doubtful() && c.power == "" && c.killed == "" && c.fault == ""
}

func (c *Core) refuseSwitchover() string {
	switch {
	case c.a.Mode != pact.Protected:
		return "the guest is not protected: there is no replica that could take it over"
	case c.stream.state == streamDown:
		return "there is no stream to the replica"
	case c.asked.goSolo || c.doubtful() || c.fault != "":
		return "a decision is awaited: " + c.detail
	case c.power != "" || c.killed != "":
		return "the guest is being stopped"
	case c.switching || c.final != 0:
		return "a switchover is under way"
	}
	return ""
}

// doubtful reports that somebody else may run the guest, for all this process knows.
func (c *Core) doubtful() bool { return c.gap || c.heard > c.a.Term }

// marked reports that the pact knows this host's disk as the current one, from this primacy.
func (c *Core) marked() bool {
	return c.a.CurrentDisk.Host == c.self.Host && c.a.CurrentDisk.Term >= c.since
}

// gated reports that output waits for acknowledgements.
func (c *Core) gated() bool {
	return c.a.Mode == pact.Protected || c.asked.protect || c.sealed != 0
}

// end is the last thing that happens.
func (c *Core) end(o Outcome, why string) {
	c.over = true
	if c.cpu != cpuPause {
		c.act(Pause{})
		c.cpu = cpuPause
	}
	if c.open {
		c.act(Hold{})
		c.open = false
	}
	c.act(Drop{})
	c.detail = why
	c.act(End{Outcome: o, Assignment: c.a, Why: why})
}
