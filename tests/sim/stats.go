package sim

import (
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Stats is what a schedule was like.
type Stats struct {
	Steps        int // things that happened: messages, timers, threads that came to something
	Events       int // of those, what the decisions were given: events of the cores, commands of the pact
	Time         time.Duration
	Faults       [32]int // by kind
	Starts       int     // a guest began to run
	Outputs      int     // that were seen outside
	Settled      time.Duration
	SettledSteps int
	Applied      map[pact.Kind]int
	Reached      map[State]int
}

// State is where a guest is: what Raft says, and what its processes on both hosts are.
type State struct {
	Mode          pact.Mode
	First, Second string // the primary's host and the other one
}

func (s *Stats) applied(k pact.Kind) {
	if s.Applied == nil {
		s.Applied = make(map[pact.Kind]int, 16)
	}
	s.Applied[k]++
}

// reach notes in which states the guests are when something goes wrong.
func (s *Stats) reach(w *World) {
	if s.Reached == nil {
		s.Reached = make(map[State]int, 16)
	}
	for _, g := range w.guests {
		t := g.truth()
		x := State{Mode: t.Mode}
		first := g.hosts[0]
		if t.Primary.Host == g.hosts[1].name {
			first = g.hosts[1]
		}
		x.First, x.Second = first.doing(), first.other().doing()
		s.Reached[x]++
	}
}

// doing is what a host does about a guest.
func (h *host) doing() string {
	switch {
	case !h.on:
		return "off"
	case len(h.procs) == 0:
		return "nothing"
	}
	p := h.procs[0]
	if p.frozen() {
		return "frozen"
	}
	if e := p.engine; e != nil && !e.over {
		return e.core.Mode()
	}
	return string(p.side.core.State())
}
