package sim

import (
	"slices"
	"strconv"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// host is a machine as far as one guest is concerned: its copy of the guest's disk, its processes, and the
// daemon's keeper, which is a model of cluster/daemon's.
type host struct {
	*node
	g *guest

	seen  int // index into the guest's history that this machine's log has come to; -1: nothing
	noted pact.Term
	disk  disk

	procs    []*process
	asking   map[string]bool
	saying   map[string]bool
	unwanted map[pact.Party]time.Duration
	startID  string
	startFor pact.Command
	started  pact.Term
	spawning bool
	twins    []twin // what the other host's daemon has told last
	order    *order
}

// twin is a process of the other host, as far as it is known here.
type twin struct {
	party pact.Party
	role  link.Role
}

func newHost(g *guest, n *node) *host {
	h := &host{
		node: n, g: g, seen: -1,
		asking: map[string]bool{}, saying: map[string]bool{}, unwanted: map[pact.Party]time.Duration{},
	}
	n.hosts = append(n.hosts, h)
	return h
}

func (h *host) other() *host { return h.g.hosts[1-h.index] }

func (h *host) works() bool { return h.on && h.daemonUp && h.current && h.seen >= 0 }

// newest is the newest assignment that this host's log has applied.
func (h *host) newest() *pact.Assignment { return &h.g.history[h.seen] }

// forget is what a restart of the daemon does.
func (h *host) forget() {
	clear(h.asking)
	clear(h.saying)
	clear(h.unwanted)
	h.startID, h.spawning, h.twins, h.order = "", false, nil, nil
}

// forward tells a process the newest assignment, and nothing of those in between.
func (h *host) forward(p *process) {
	if !h.works() {
		return
	}
	life := h.life
	p.after(h.w.small(), func() {
		if h.life == life && h.seen >= 0 {
			p.assigned(h.newest()) // the newest: what is said keeps its order
		}
	})
}

// ask passes a process's question on to Raft.
func (h *host) ask(p *process, c pact.Command) {
	if !h.on || !h.daemonUp || h.asking[c.ID] {
		return
	}
	h.asking[c.ID] = true
	life := h.life
	h.w.raft.propose(h.node, c, func(v *pact.Verdict) {
		if h.life != life {
			return
		}
		delete(h.asking, c.ID)
		p.after(h.w.small(), func() {
			if h.life == life {
				p.answered(c.ID, v)
			}
		})
		h.w.after(h.w.small(), h.look)
	})
}

// ended is told of a process's end.
func (h *host) ended(p *process) {
	h.procs = slices.DeleteFunc(h.procs, func(o *process) bool { return o == p })
	h.w.after(h.w.small(), h.look)
}

func (h *host) spawn(cold bool) {
	if h.spawning {
		return
	}
	h.spawning = true
	life := h.life
	h.w.after(20*time.Millisecond+h.w.upTo(100*time.Millisecond), func() {
		if h.life != life || !h.on || h.disk.owner != nil {
			if h.life == life {
				h.spawning = false
			}
			return
		}
		h.spawning = false
		p := newProcess(h, cold)
		h.procs = append(h.procs, p)
		if h.w.tracing {
			h.w.tracef("%s        starts process %s of guest %s", h.name, short(p.party), h.g.name)
		}
		h.forward(p)
		h.look()
		h.tellTwin()
	})
}

// say proposes what only this host can say.
func (h *host) say(key string, c pact.Command, then func(*pact.Verdict)) {
	if h.saying[key] {
		return
	}
	h.saying[key] = true
	life := h.life
	h.w.raft.propose(h.node, c, func(v *pact.Verdict) {
		if h.life != life {
			return
		}
		// A refused one would be refused again at once.
		h.w.after(lookEvery, func() {
			if h.life == life {
				delete(h.saying, key)
			}
		})
		if then != nil {
			then(v)
		}
		h.look()
	})
}

func (h *host) newID() string {
	h.w.ids++
	return h.name + "-d" + strconv.Itoa(h.w.ids)
}

// look compares what is with what should be.
func (h *host) look() {
	if !h.works() {
		return
	}
	a := h.newest()
	if a.Term != h.noted {
		h.noted = a.Term
		h.events.note(h.w, nil, line{kind: lineRole, guest: h.g, term: a.Term})
		if h.order != nil && a.Runs() && (a.Primary.Host == h.name || !h.w.mutant.staleOrder) {
			h.order = nil // carried out, or what it was given for has passed
		}
	}
	h.follow(a)
}

// tellTwin tells the other host's daemon of this one's processes. Such messages are late, lost, and overtake one another.
func (h *host) tellTwin() {
	if !h.on || !h.daemonUp || h.w.disturbed(calmLost, 8) {
		return
	}
	var own []twin
	for _, p := range h.procs {
		own = append(own, twin{p.party, p.role()})
	}
	delay := h.w.latency()
	if h.w.disturbed(calmBusy, 6) {
		delay += h.w.upTo(600 * time.Millisecond)
	}
	h.w.after(delay, func() {
		o := h.other()
		if o.on && o.daemonUp && h.w.linkUp(h.node, o.node) {
			o.twins = own
			o.look()
		}
	})
}

func (h *host) process(p pact.Party) *process {
	for _, o := range h.procs {
		if o.party == p {
			return o
		}
	}
	return nil
}
