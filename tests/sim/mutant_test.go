package sim

import (
	"slices"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
	primary "github.com/pollux-ha/pollux/lockstep/core"
	replica "github.com/pollux-ha/pollux/replica/core"
)

// mutants are deliberate mistakes. The checks must find each of them.
var mutants = map[string]mutant{
	"output leaves before its epoch is acknowledged": {
		actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
			if c, ok := ev.(primary.Captured); ok {
				return append(slices.Clone(a), primary.Release{UpTo: c.Epoch})
			}
			return a
		},
	},
	"acknowledges after it has asked for a promotion": {
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
	"starts from any disk":                 {staleDisk: true},
	"Raft takes commands of an old term":   {anyTerm: true},
	"acknowledges what it has not applied": {loses: 20},
	"opens the gate while it is protected": {
		actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
			return slices.DeleteFunc(slices.Clone(a), func(a primary.Action) bool {
				_, hold := a.(primary.Hold)
				return hold && !e.core.Over()
			})
		},
	},
	"emits before the marker is durable": {
		ungated: true,
		actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
			if _, ok := ev.(primary.Begin); ok {
				return append(slices.Clone(a), primary.Open{})
			}
			return a
		},
	},
	"takes no notice of its own standstill": {
		events: func(e *engine, ev primary.Event) primary.Event {
			if _, ok := ev.(primary.OwnGap); ok {
				return nil
			}
			return ev
		},
	},
	"goes on after it has lost the guest": {
		actions: func(e *engine, ev primary.Event, a []primary.Action) []primary.Action {
			return slices.DeleteFunc(slices.Clone(a), func(a primary.Action) bool {
				switch a.(type) {
				case primary.Drop, primary.Hold, primary.Pause, primary.End:
					return e.core.Over()
				}
				return false
			})
		},
		ungated: true,
	},
	"takes a refused promotion for a granted one": {
		heard: func(s *side, ev replica.Event) replica.Event {
			a, _ := s.core.Assignment()
			if v, ok := ev.(replica.Answered); ok && !v.Unknown && !v.Verdict.Applied && s.core.State() == replica.Promoting && a.Mode == pact.Protected {
				a.Term, a.Mode, a.Primary, a.Replica = a.Term+1, pact.Solo, s.p.party, pact.Party{}
				return replica.Applied{Assignment: a}
			}
			return ev
		},
	},
	"protects before the replica holds everything": {
		events: func(e *engine, ev primary.Event) primary.Event {
			if c, ok := ev.(primary.Captured); ok {
				c.Complete = true
				return c
			}
			return ev
		},
	},
	"never asks again": {
		events: func(e *engine, ev primary.Event) primary.Event {
			if _, ok := ev.(primary.Retry); ok {
				return nil
			}
			return ev
		},
	},
}

// onlyStuck are mistakes that endanger nobody.
var onlyStuck = map[string]bool{"never asks again": true}

// TestChecksFindMistakes shows that the checks see what they are there to see.
func TestChecksFindMistakes(t *testing.T) {
	const most = 5000
	for name, m := range mutants {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			for seed := range uint64(most) {
				err := NewWorld(seed+1, m, false).Run()
				if err == nil || strings.HasPrefix(err.Error(), "stuck") && !onlyStuck[name] {
					continue // it also does harm that anybody would see
				}
				t.Logf("seed %d: %v", seed+1, err)
				return
			}
			t.Errorf("not found in %d schedules", most)
		})
	}
}
