package sim

import (
	"github.com/pollux-ha/pollux/cluster/pact"
	primary "github.com/pollux-ha/pollux/lockstep/core"
	replica "github.com/pollux-ha/pollux/replica/core"
)

// Mutant is a deliberate mistake, made between the decisions and their drivers, or in a driver. The zero value
// makes none.
type Mutant struct {
	Name string
	// Stuck: it endangers nobody, the guest just does not come back.
	Stuck bool

	events    func(*engine, primary.Event) primary.Event
	actions   func(*engine, primary.Event, []primary.Action) []primary.Action
	heard     func(*side, replica.Event) replica.Event
	decisions func(*side, replica.Event, []replica.Action) []replica.Action
	commands  func(*raft, pact.Command, pact.Assignment) pact.Verdict

	ungated         bool       // emits whatever the core calls blocked
	staleDisk       bool       // starts from any disk
	disclaimsLiving bool       // says of processes that they have ended, and does not look
	loses           pact.Epoch // every so many epochs one is acknowledged and not applied
	tears           bool       // takes over with half of the epoch that was on its way
	unflushed       bool       // writes the marker before the journal is on the disk
	flushLies       bool       // tells the guest that its writes are durable at once
	silentStart     bool       // starts a guest without a word in the event log
	silentTakeover  bool
	staleOrder      bool // follows an operator's order that was given before the guest ran again elsewhere
	unlogged        bool // follows an operator's order that it could not log
}

func (m *Mutant) toPrimary(e *engine, ev primary.Event) primary.Event {
	if m.events != nil {
		return m.events(e, ev)
	}
	return ev
}

func (m *Mutant) fromPrimary(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
	if m.actions != nil {
		return m.actions(e, ev, a)
	}
	return a
}

func (m *Mutant) toReplica(s *side, ev replica.Event) replica.Event {
	if m.heard != nil {
		return m.heard(s, ev)
	}
	return ev
}

func (m *Mutant) fromReplica(s *side, ev replica.Event, a []replica.Action) []replica.Action {
	if m.decisions != nil {
		return m.decisions(s, ev, a)
	}
	return a
}

func (m *Mutant) apply(r *raft, c pact.Command, before pact.Assignment) pact.Verdict {
	if m.commands != nil {
		return m.commands(r, c, before)
	}
	return r.state.Apply(c, r.index)
}

func (m *Mutant) losesEpoch(s *sent) bool { return m.loses != 0 && s.number%m.loses == 0 }
