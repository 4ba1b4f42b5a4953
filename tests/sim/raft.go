package sim

import (
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

const proposeTimeout = time.Second

// raft is Raft by its contract: commands are late, lost, doubled, or of unknown outcome; those that are
// committed are in one order, and each machine's log follows at its own pace. Without a majority nothing is
// committed, and whoever has proposed something does not know.
type raft struct {
	w       *World
	state   *pact.State
	index   uint64
	log     []logged // all that was ever committed
	without time.Duration
}

// logged is an entry that has changed an assignment: at which index of the guest's history.
type logged struct {
	guest *guest
	at    int
}

func newRaft(w *World) *raft { return &raft{w: w, state: pact.NewState()} }

// stalled says that there is no majority now.
func (r *raft) stalled() bool { return r.without > r.w.now }

// propose passes a command on for a machine. The answer may say that the outcome is not known (nil), or never come.
func (r *raft) propose(n *node, c pact.Command, answer func(*pact.Verdict)) {
	w := r.w
	if n.mute {
		w.after(proposeTimeout, func() { answer(nil) })
		return
	}
	delay := w.raftDelay()
	if w.disturbed(calmLost, 25) {
		w.tracef("raft     loses %s of %s", c.Kind, n.name)
		w.after(proposeTimeout, func() { answer(nil) })
		return
	}
	unknown := w.disturbed(calmLost, 12)
	if r.stalled() {
		// A leader without a majority has it in its log: the next one may have that entry, or not.
		if w.one(2) {
			w.after(r.without-w.now+delay, func() { r.commit(c) })
		}
		w.after(proposeTimeout, func() { answer(nil) })
		return
	}
	w.after(delay, func() {
		v := r.commit(c)
		if unknown || n.deaf {
			w.after(proposeTimeout, func() { answer(nil) })
			return
		}
		w.after(w.raftDelay(), func() { answer(&v) })
	})
	for w.disturbed(calmDouble, 8) {
		w.after(w.upTo(3*time.Second), func() { r.commit(c) })
	}
}

// commit applies a command.
func (r *raft) commit(c pact.Command) pact.Verdict {
	w := r.w
	i := slices.IndexFunc(w.guests, func(g *guest) bool { return g.name == c.Guest })
	g := w.guests[i]
	var before pact.Assignment
	if len(g.history) > 0 {
		before = *g.truth()
	}
	r.index++
	v := w.mutant.apply(r, c, before)
	w.Stats.Events++
	if p := w.processes[c.By]; p != nil {
		p.confirmed = w.now
	}
	if w.tracing && (v.Applied && c.Kind != pact.Confirm || !v.Applied && c.Term == before.Term) {
		w.tracef("raft     %s of guest %s by %s in term %d: %s", c.Kind, g.name, c.By.Host, c.Term, outcome(v))
	}
	if !v.Applied {
		return v
	}
	after, _ := r.state.Guest(g.name)
	if same(&before, &after) {
		return v
	}
	g.history = append(g.history, after)
	w.Stats.applied(c.Kind)
	if after.Term != before.Term {
		if w.tracing {
			w.tracef("raft     guest %s, term %d: %s, primary %s, replica %s, base %d", g.name, after.Term, after.Mode, short(after.Primary), short(after.Replica), after.Base)
		}
		g.checks.committed(c, before, after)
	}
	r.log = append(r.log, logged{g, len(g.history) - 1})
	at := len(r.log)
	for _, n := range w.nodes {
		if n != nil {
			w.after(w.logLag(), func() { n.applied(at) })
		}
	}
	return v
}

// same says that a command has changed nothing of an assignment.
func same(a, b *pact.Assignment) bool {
	return a.Guest == b.Guest && a.Term == b.Term && a.Mode == b.Mode && a.Primary == b.Primary && a.Replica == b.Replica && a.Base == b.Base && a.BaseTerm == b.BaseTerm &&
		a.CurrentDisk == b.CurrentDisk && slices.Equal(a.Unproven, b.Unproven) && a.Tenure == b.Tenure && slices.Equal(a.Gone, b.Gone) && a.Rewound == b.Rewound && a.Desired == b.Desired
}

func outcome(v pact.Verdict) string {
	if v.Applied {
		return "applied"
	}
	return "refused: " + v.Reason
}
