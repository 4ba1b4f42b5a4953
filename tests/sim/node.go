package sim

import (
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
)

const (
	lookEvery = 250 * time.Millisecond
	grace     = 15 * time.Second
)

// node is a machine with its daemon. What the daemon does about each guest is host's.
type node struct {
	w     *World
	index int
	name  string
	hosts []*host // by guest

	on       bool
	daemonUp bool
	life     int  // of the daemon: answers to an earlier one are lost
	mute     bool // can't reach Raft's leader
	deaf     bool // its log does not grow
	current  bool // the log has come to where the cluster was after the daemon's start
	log      int  // how much of Raft's log has come here

	events eventLog

	// The clock of its processes: base at the moment since, and so many thousandths of true time from there on.
	base, since time.Duration
	rate        int
}

func newNode(w *World, index int, name string) *node {
	n := &node{w: w, index: index, name: name, on: true, daemonUp: true, current: true, rate: 1000, base: w.now, since: w.now}
	if rates := []int{1000, 700, 900, 990, 1010, 1100, 1400}; w.plan.Calm&calmRates == 0 {
		n.rate = rates[w.rng.IntN(len(rates))]
	}
	w.after(w.small(), n.pulse)
	return n
}

func (n *node) other() *node { return n.w.nodes[1-n.index] }

// clock is what the machine's own clock says.
func (n *node) clock() time.Duration { return n.base + (n.w.now-n.since)*time.Duration(n.rate)/1000 }

// real is how long a stretch of the machine's time takes.
func (n *node) real(d time.Duration) time.Duration { return d * 1000 / time.Duration(n.rate) }

func (n *node) pulse() {
	for _, h := range n.hosts {
		h.look()
		h.tellTwin()
	}
	n.w.after(lookEvery, n.pulse)
}

// applied says that the machine's log may have come to an index by now.
func (n *node) applied(at int) {
	if at <= n.log {
		return
	}
	if n.deaf || !n.on {
		n.w.after(50*time.Millisecond, func() { n.applied(at) })
		return
	}
	n.learn(at)
}

// learn takes the entries up to an index.
func (n *node) learn(at int) {
	for _, e := range n.w.raft.log[n.log:at] {
		n.hosts[e.guest.index].seen = e.at
	}
	from := n.log
	n.log = at
	if !n.daemonUp {
		return
	}
	for _, h := range n.hosts {
		if !slices.ContainsFunc(n.w.raft.log[from:at], func(e logged) bool { return e.guest == h.g }) {
			continue
		}
		for _, p := range h.procs {
			h.forward(p)
		}
		n.w.after(n.w.small(), h.look)
	}
}

// restartDaemon loses what the daemon knew. Its processes live on.
func (n *node) restartDaemon(away time.Duration) {
	n.daemonUp, n.current = false, false
	n.life++
	for _, h := range n.hosts {
		h.forget()
	}
	life := n.life
	n.w.after(away, func() {
		if n.life != life || !n.on {
			return
		}
		n.daemonUp = true
		n.w.tracef("%s        daemon is back", n.name)
		for _, h := range n.hosts {
			for _, p := range h.procs {
				p.told = link.Peer{}
				p.after(n.w.small(), p.daemonBack)
			}
		}
		n.catchUp(life)
	})
}

// catchUp waits until the log has come to where the cluster is.
func (n *node) catchUp(life int) {
	n.w.after(n.w.raftDelay(), func() {
		switch {
		case n.life != life:
		case n.deaf || n.mute || n.w.raft.stalled():
			n.catchUp(life)
		default:
			n.current = true
			n.log = min(n.log, len(n.w.raft.log))
			n.learn(len(n.w.raft.log))
			for _, h := range n.hosts {
				for _, p := range h.procs {
					h.forward(p)
				}
				h.look()
			}
		}
	})
}

// loseLog has the voter come back without its log, under another ID: it learns everything anew.
func (n *node) loseLog(away time.Duration) {
	n.log = 0
	for _, h := range n.hosts {
		h.seen = -1
	}
	n.restartDaemon(away)
}

// powerLoss ends all that runs on a machine, at once and without a word.
func (n *node) powerLoss(away time.Duration) {
	for _, h := range n.hosts {
		for _, p := range slices.Clone(h.procs) {
			p.die(true)
		}
		h.disk.powerLoss(n.w)
	}
	n.on = false
	n.restartDaemon(time.Hour)
	n.w.after(away, n.powerOn)
}

func (n *node) powerOn() {
	if n.on {
		return
	}
	n.w.tracef("%s        is on again", n.name)
	n.on = true
	n.restartDaemon(n.w.upTo(300 * time.Millisecond))
	n.w.pumpAll()
}
