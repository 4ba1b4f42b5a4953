package sim

import (
	"encoding/json"
	"slices"

	"github.com/pollux-ha/pollux/cluster/pact"
	primary "github.com/pollux-ha/pollux/lockstep/core"
	replica "github.com/pollux-ha/pollux/replica/core"
)

// Mutants are deliberate mistakes. The checks must find each of them.
func Mutants() []*Mutant {
	return slices.Concat(primaryMutants(), replicaMutants(), pactMutants(), driverMutants())
}

// without leaves out the actions that a mistaken primary forgets.
func without(forgets func(*engine, primary.Event, primary.Action) bool) func(*engine, primary.Event, []primary.Action) []primary.Action {
	return func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
		return slices.DeleteFunc(slices.Clone(a), func(a primary.Action) bool { return forgets(e, ev, a) })
	}
}

func primaryMutants() []*Mutant {
	return []*Mutant{
		{
			Name: "output leaves before its epoch is acknowledged",
			actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
				if c, ok := ev.(primary.Captured); ok {
					return append(slices.Clone(a), primary.Release{UpTo: c.Epoch})
				}
				return a
			},
		},
		{
			Name: "protects before holding output",
			actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
				_, captured := ev.(primary.Captured)
				if !captured {
					return a
				}
				return slices.DeleteFunc(slices.Clone(a), func(a primary.Action) bool { _, hold := a.(primary.Hold); return hold })
			},
		},
		{
			Name: "opens the gate while it is protected",
			actions: without(func(e *engine, _ primary.Event, a primary.Action) bool {
				_, hold := a.(primary.Hold)
				return hold && !e.core.Over()
			}),
		},
		{
			Name: "takes a lost stream for a lost replica: output leaves before Raft has said solo",
			actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
				if _, ok := ev.(primary.StreamDown); ok && e.core.Assignment().Mode == pact.Protected && !e.core.Blocked() {
					return append(slices.Clone(a), primary.Open{})
				}
				return a
			},
		},
		{
			Name: "takes an unknown outcome for a refusal",
			actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
				if v, ok := ev.(primary.Answered); ok && v.Verdict == nil && e.core.Gated() && !e.core.Blocked() {
					return append(slices.Clone(a), primary.Open{})
				}
				return a
			},
		},
		{
			Name: "runs on when a switchover takes long",
			actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
				if _, ok := ev.(primary.SwitchoverExpired); ok {
					return append(slices.Clone(a), primary.Resume{}, primary.Open{})
				}
				return a
			},
		},
		{
			Name: "emits before the marker is durable", ungated: true,
			actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
				if _, ok := ev.(primary.Begin); ok {
					return append(slices.Clone(a), primary.Open{})
				}
				return a
			},
		},
		{
			Name: "takes no notice of its own standstill",
			events: func(e *engine, ev primary.Event) primary.Event {
				if _, ok := ev.(primary.OwnGap); ok {
					return nil
				}
				return ev
			},
		},
		{
			Name: "goes on after it has lost the guest", ungated: true,
			actions: without(func(e *engine, _ primary.Event, a primary.Action) bool {
				switch a.(type) {
				case primary.Drop, primary.Hold, primary.Pause, primary.End:
					return e.core.Over()
				}
				return false
			}),
		},
		{
			Name: "protects before the replica holds everything",
			events: func(e *engine, ev primary.Event) primary.Event {
				if c, ok := ev.(primary.Captured); ok {
					c.Complete = true
					return c
				}
				return ev
			},
		},
		{
			Name: "believes acknowledgements of epochs that it has not sent",
			events: func(e *engine, ev primary.Event) primary.Event {
				if c, ok := ev.(primary.Acked); ok {
					c.Epoch = e.core.Captured()
					return c
				}
				return ev
			},
		},
		{
			Name: "never asks again", Stuck: true,
			events: func(e *engine, ev primary.Event) primary.Event {
				if _, ok := ev.(primary.Retry); ok {
					return nil
				}
				return ev
			},
		},
	}
}

func replicaMutants() []*Mutant {
	return []*Mutant{
		{
			Name: "acknowledges after it has asked for a promotion",
			decisions: func(s *side, ev replica.Event, a []replica.Action) []replica.Action {
				for i := range a {
					if k, ok := a[i].(replica.Keep); ok && s.core.State() == replica.Promoting {
						if x := s.sessions[k.Conn]; x != nil && x.waiting != nil {
							x.end.send(ack{x.waiting.number, x.waiting.sum})
						}
					}
				}
				return a
			},
		},
		{
			Name: "takes a refused promotion for a granted one",
			heard: func(s *side, ev replica.Event) replica.Event {
				a, _ := s.core.Assignment()
				if v, ok := ev.(replica.Answered); ok && !v.Unknown && !v.Verdict.Applied && s.core.State() == replica.Promoting && a.Mode == pact.Protected {
					a.Term, a.Mode, a.Primary, a.Replica = a.Term+1, pact.Solo, s.p.party, pact.Party{}
					return replica.Applied{Assignment: a}
				}
				return ev
			},
		},
		{
			Name: "acknowledges before it has verified",
			decisions: func(s *side, ev replica.Event, a []replica.Action) []replica.Action {
				// What it says it has before the state machine has looked: an epoch of an older stream, or one that is dropped.
				for i := range a {
					if d, ok := a[i].(replica.Keep); ok {
						if x := s.sessions[d.Conn]; x != nil && x.waiting != nil {
							x.end.send(ack{x.waiting.number, x.waiting.sum})
						}
					}
				}
				return a
			},
		},
		{Name: "acknowledges what it has not applied", loses: 20},
		{Name: "takes over with part of an epoch that did not come whole", tears: true},
	}
}

func pactMutants() []*Mutant {
	return []*Mutant{
		{
			Name: "Raft's state takes commands of an old term",
			commands: func(r *raft, c pact.Command, before pact.Assignment) pact.Verdict {
				if !c.By.IsZero() && c.Term != 0 {
					c.Term, c.ID = before.Term, "" // nor does it know copies
				}
				return r.state.Apply(c, r.index)
			},
		},
		{
			Name: "a process is known by its host, without an incarnation",
			commands: func(r *raft, c pact.Command, before pact.Assignment) pact.Verdict {
				switch c.Kind {
				case pact.Promote:
					if c.By.Host == before.Replica.Host {
						c.By = before.Replica
					}
				case pact.GoSolo, pact.Protect, pact.Switchover, pact.Confirm:
					if c.By.Host == before.Primary.Host {
						c.By = before.Primary
					}
				}
				c.Term, c.ID = before.Term, ""
				return r.state.Apply(c, r.index)
			},
		},
		{
			Name: "a promotion forgets to raise the term",
			commands: func(r *raft, c pact.Command, before pact.Assignment) pact.Verdict {
				v := r.state.Apply(c, r.index)
				if v.Applied && c.Kind == pact.Promote && v.Assignment.Term == before.Term+1 {
					r.edit(c.Guest, func(a *pact.Assignment) {
						a.Term, a.Tenure = before.Term, before.Term
						a.Unproven = nil
					})
				}
				return v
			},
		},
		{
			Name: "the second of two that ask wins too",
			commands: func(r *raft, c pact.Command, before pact.Assignment) pact.Verdict {
				if c.Kind == pact.Promote && before.Mode == pact.Solo && before.Primary != c.By {
					r.edit(c.Guest, func(a *pact.Assignment) {
						a.Term++
						a.Primary, a.Tenure, a.Base, a.BaseTerm, a.Gone = c.By, a.Term, c.Epoch, c.Term, nil
					})
					after, _ := r.state.Guest(c.Guest)
					return pact.Verdict{Applied: true, Assignment: after, Index: r.index}
				}
				return r.state.Apply(c, r.index)
			},
		},
	}
}

// edit changes the state behind the pact's back.
func (r *raft) edit(name string, change func(*pact.Assignment)) {
	b, err := r.state.Snapshot()
	if err != nil {
		panic(err)
	}
	var snap struct {
		Version json.RawMessage   `json:"version"`
		Index   json.RawMessage   `json:"index"`
		Floor   json.RawMessage   `json:"floor"`
		Guests  []json.RawMessage `json:"guests"`
		Lives   json.RawMessage   `json:"lives,omitempty"`
	}
	if err := json.Unmarshal(b, &snap); err != nil {
		panic(err)
	}
	for i, g := range snap.Guests {
		var rec struct {
			Assignment pact.Assignment `json:"assignment"`
			Recent     json.RawMessage `json:"recent,omitempty"`
		}
		if err := json.Unmarshal(g, &rec); err != nil {
			panic(err)
		}
		if rec.Assignment.Guest == name {
			change(&rec.Assignment)
		}
		if snap.Guests[i], err = json.Marshal(rec); err != nil {
			panic(err)
		}
	}
	if b, err = json.Marshal(snap); err != nil {
		panic(err)
	}
	if r.state, err = pact.Restore(b); err != nil {
		panic(err)
	}
}

func driverMutants() []*Mutant {
	return []*Mutant{
		{Name: "resumes from any disk", staleDisk: true},
		{Name: "says of processes that they have ended, and does not look", disclaimsLiving: true},
		{Name: "writes the marker before the journal is on the disk", unflushed: true},
		{Name: "tells the guest that its writes are durable when they are not", flushLies: true},
		{Name: "starts a guest without a word in the event log", silentStart: true},
		{Name: "takes a guest over without a word in the event log", silentTakeover: true},
		{Name: "follows an operator's order of long ago, though the guest has run elsewhere since", staleOrder: true},
		{Name: "follows an operator's order that it could not log", unlogged: true},
	}
}
