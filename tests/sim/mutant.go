package sim

import (
	"github.com/pollux-ha/pollux/cluster/pact"
	primary "github.com/pollux-ha/pollux/lockstep/core"
	replica "github.com/pollux-ha/pollux/replica/core"
)

// mutant is a deliberate mistake, made between the decisions and their drivers. The zero value makes none.
type mutant struct {
	events    func(*engine, primary.Event) primary.Event
	actions   func(*engine, primary.Event, []primary.Action) []primary.Action
	heard     func(*side, replica.Event) replica.Event
	decisions func(*side, replica.Event, []replica.Action) []replica.Action
	ungated   bool       // emits whatever the core calls blocked
	staleDisk bool       // starts from any disk
	anyTerm   bool       // Raft's state takes commands of any term
	loses     pact.Epoch // every so many epochs one is acknowledged and not applied
}

func (m mutant) toPrimary(e *engine, ev primary.Event) primary.Event {
	if m.events != nil {
		return m.events(e, ev)
	}
	return ev
}

func (m mutant) fromPrimary(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
	if m.actions != nil {
		return m.actions(e, ev, a)
	}
	return a
}

func (m mutant) toReplica(s *side, ev replica.Event) replica.Event {
	if m.heard != nil {
		return m.heard(s, ev)
	}
	return ev
}

func (m mutant) fromReplica(s *side, ev replica.Event, a []replica.Action) []replica.Action {
	if m.decisions != nil {
		return m.decisions(s, ev, a)
	}
	return a
}

func (m mutant) unblocked() bool { return m.ungated }

func (m mutant) losesEpoch(s sent) bool { return m.loses != 0 && s.number%m.loses == 0 }
