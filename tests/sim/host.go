package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	lookEvery = 250 * time.Millisecond
	grace     = 15 * time.Second
)

// disk is a host's copy of the guest's disk, with its mark.
type disk struct {
	state string // as in replica/mark: "", "current", "outdated", "inconsistent"
	term  pact.Term
	holds *event
	owner *process // has the lock
}

// host is a machine and its daemon. The daemon's keeper is a model of cluster/daemon's.
type host struct {
	w     *World
	index int
	name  string

	on       bool
	daemonUp bool
	life     int  // of the daemon: answers to an earlier one are lost
	cutOff   bool // from Raft
	current  bool // the log has come to where the cluster was after the daemon's start
	log      int  // index into Raft's history that this host's log has come to
	disk     disk

	procs    []*process
	asking   map[string]bool
	saying   map[string]bool
	unwanted map[pact.Party]time.Duration
	startID  string
	startFor pact.Command
	started  pact.Term
	spawning bool
	twins    []twin // what the other host's daemon has told last
}

// twin is a process of the other host, as far as it is known here.
type twin struct {
	party pact.Party
	role  link.Role
}

func newHost(w *World, index int, name string) *host {
	h := &host{
		w: w, index: index, name: name, on: true, daemonUp: true, current: true, log: -1,
		asking: map[string]bool{}, saying: map[string]bool{}, unwanted: map[pact.Party]time.Duration{},
	}
	w.after(w.small(), h.pulse)
	return h
}

func (h *host) other() *host { return h.w.hosts[1-h.index] }

func (h *host) works() bool { return h.on && h.daemonUp && h.current && h.log >= 0 }

func (h *host) pulse() {
	h.look()
	h.w.after(lookEvery, h.pulse)
}

// applied says that the host's log may have come to an index of the history by now.
func (h *host) applied(at int) {
	if at <= h.log {
		return
	}
	if h.cutOff || !h.on {
		h.w.after(50*time.Millisecond, func() { h.applied(at) })
		return
	}
	h.log = at
	if h.daemonUp {
		for _, p := range h.procs {
			h.forward(p)
		}
		h.w.after(h.w.small(), h.look)
	}
}

// forward tells a process the newest assignment, and nothing of those in between.
func (h *host) forward(p *process) {
	if !h.works() {
		return
	}
	life := h.life
	p.after(h.w.small(), func() {
		if h.life == life {
			p.assigned(h.w.raft.history[h.log]) // the newest: what is said keeps its order
		}
	})
}

// restartDaemon loses what the daemon knew. Its processes live on.
func (h *host) restartDaemon(away time.Duration) {
	h.daemonUp, h.current = false, false
	h.life++
	h.asking, h.saying, h.unwanted = map[string]bool{}, map[string]bool{}, map[pact.Party]time.Duration{}
	h.startID, h.spawning, h.twins = "", false, nil
	life := h.life
	h.w.after(away, func() {
		if h.life != life || !h.on {
			return
		}
		h.daemonUp = true
		h.w.tracef("%s        daemon is back", h.name)
		for _, p := range h.procs {
			p.told = link.Peer{}
			p.after(h.w.small(), p.daemonBack)
		}
		h.catchUp(life)
	})
}

// catchUp waits until the log has come to where the cluster is.
func (h *host) catchUp(life int) {
	h.w.after(h.w.raftDelay(), func() {
		switch {
		case h.life != life:
		case h.cutOff:
			h.catchUp(life)
		default:
			h.current, h.log = true, len(h.w.raft.history)-1
			for _, p := range h.procs {
				h.forward(p)
			}
			h.look()
		}
	})
}

// powerLoss ends all that runs on a host, at once and without a word.
func (h *host) powerLoss(away time.Duration) {
	for _, p := range slices.Clone(h.procs) {
		p.die(true)
	}
	h.on = false
	h.restartDaemon(time.Hour)
	h.w.after(away, h.powerOn)
}

func (h *host) powerOn() {
	if h.on {
		return
	}
	h.w.tracef("%s        is on again", h.name)
	h.on = true
	h.restartDaemon(h.w.upTo(300 * time.Millisecond))
	h.w.pumpAll()
}

// ask passes a process's question on to Raft.
func (h *host) ask(p *process, c pact.Command) {
	if !h.on || !h.daemonUp || h.asking[c.ID] {
		return
	}
	h.asking[c.ID] = true
	life := h.life
	h.w.raft.propose(h, c, func(v *pact.Verdict) {
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
		h.w.tracef("%s        starts process %s", h.name, short(p.party))
		h.forward(p)
		h.look()
	})
}

// say proposes what only this host can say.
func (h *host) say(key string, c pact.Command, then func(*pact.Verdict)) {
	if h.saying[key] {
		return
	}
	h.saying[key] = true
	life := h.life
	h.w.raft.propose(h, c, func(v *pact.Verdict) {
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
	return fmt.Sprintf("%s-d%d", h.name, h.w.ids)
}

// look compares what is with what should be.
func (h *host) look() {
	if !h.works() {
		return
	}
	if o := h.other(); o.on && o.daemonUp && h.w.linkUp(h, o) && h.w.linkUp(o, h) {
		h.twins = h.twins[:0]
		for _, p := range o.procs {
			h.twins = append(h.twins, twin{p.party, p.role()})
		}
	}
	h.follow(h.w.raft.history[h.log])
}

func (h *host) process(p pact.Party) *process {
	for _, o := range h.procs {
		if o.party == p {
			return o
		}
	}
	return nil
}
