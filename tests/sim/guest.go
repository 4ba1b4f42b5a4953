package sim

import "github.com/pollux-ha/pollux/cluster/pact"

// event is something that a guest did. A guest's whole state, in memory and on disk alike, is the chain of
// all that it has done: its last event.
type event struct {
	parent *event
	saves  *event // seen with it: that all up to there was flushed to the disk
	depth  int
	output bool // seen outside, if it gets out
}

// contains says whether a guest in state e has done o. Every guest has done nothing at all.
func (e *event) contains(o *event) bool {
	if o == nil {
		return true
	}
	for e != nil && e.depth > o.depth {
		e = e.parent
	}
	return e == o
}

func (e *event) number() int {
	if e == nil {
		return 0
	}
	return e.depth
}

// then is the guest's state after one more event.
func (e *event) then(output bool) *event {
	return &event{parent: e, depth: e.number() + 1, output: output}
}

// common is the newest event that both have done.
func common(a, b *event) *event {
	for a != b {
		if a.number() >= b.number() {
			a = a.parent
		} else {
			b = b.parent
		}
	}
	return a
}

// guest is a protected guest: its copies on the two hosts, what Raft has said of it, and what was seen of it.
type guest struct {
	w       *World
	index   int
	name    string
	hosts   [2]*host
	history []pact.Assignment // all that was ever committed; the last is the truth
	checks  *checks
	// ordered: the operator has ordered a start from a disk that may be stale, and nobody has run the guest since.
	ordered bool
}

func (g *guest) truth() *pact.Assignment { return &g.history[len(g.history)-1] }

// newGuest makes a guest that is meant to run, on the first host rather than on the other one.
func newGuest(w *World, index int, name string, first int) *guest {
	g := &guest{w: w, index: index, name: name}
	g.checks = &checks{w: w, g: g, voice: map[pact.Term]pact.Party{}, held: map[pact.Party]*event{}}
	for i, n := range w.nodes {
		g.hosts[i] = newHost(g, n)
	}
	order := []string{w.nodes[first].name, w.nodes[1-first].name}
	w.guests = append(w.guests, g)
	spec := pact.Spec{Hosts: order, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1, Disks: []pact.DiskSpec{{SizeBytes: 1 << 20}}}
	w.raft.commit(pact.Command{Kind: pact.Create, Guest: name, ID: "create-" + name, Spec: &spec, Desired: pact.DesiredRunning})
	return g
}
