package sim

import (
	"reflect"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	guestName      = "g"
	proposeTimeout = time.Second
)

// raft is Raft by its contract: commands are late, lost, doubled, or of unknown outcome; those that are
// committed are in one order, and each host's log follows at its own pace.
type raft struct {
	w       *World
	state   *pact.State
	index   uint64
	history []pact.Assignment // all that was ever committed; the last is the truth
	applied map[pact.Kind]int
}

func newRaft(w *World) *raft {
	r := &raft{w: w, state: pact.NewState(), applied: map[pact.Kind]int{}}
	spec := pact.Spec{Hosts: []string{"a", "b"}, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1, Disks: []pact.DiskSpec{{SizeBytes: 1 << 20}}}
	r.commit(pact.Command{Kind: pact.Create, Guest: guestName, ID: "create", Spec: &spec, Desired: pact.DesiredRunning})
	return r
}

func (r *raft) truth() pact.Assignment { return r.history[len(r.history)-1] }

// propose passes a command on for a host. The answer may say that the outcome is not known (nil), or never come.
func (r *raft) propose(h *host, c pact.Command, answer func(*pact.Verdict)) {
	w := r.w
	if h.cutOff {
		w.after(proposeTimeout, func() { answer(nil) })
		return
	}
	delay := w.raftDelay()
	if w.hostile && w.one(25) {
		w.tracef("raft     loses %s of %s", c.Kind, h.name)
		w.after(proposeTimeout, func() { answer(nil) })
		return
	}
	unknown := w.hostile && w.one(12)
	w.after(delay, func() {
		v := r.commit(c)
		if unknown || h.cutOff {
			w.after(proposeTimeout, func() { answer(nil) })
			return
		}
		w.after(w.raftDelay(), func() { answer(&v) })
	})
	for w.hostile && w.one(8) {
		w.after(w.upTo(3*time.Second), func() { r.commit(c) })
	}
}

// commit applies a command.
func (r *raft) commit(c pact.Command) pact.Verdict {
	w := r.w
	var before pact.Assignment
	if len(r.history) > 0 {
		before = r.truth()
	}
	r.index++
	if w.mutant.anyTerm && !c.By.IsZero() && c.Term != 0 {
		c.Term, c.ID = before.Term, "" // nor does it know copies
	}
	v := r.state.Apply(c, r.index)
	if p := w.processes[c.By]; p != nil {
		p.confirmed = w.now
	}
	after, _ := r.state.Guest(guestName)
	if v.Applied && c.Kind != pact.Confirm || !v.Applied && c.Term == before.Term {
		w.tracef("raft     %s by %s in term %d: %s", c.Kind, c.By.Host, c.Term, outcome(v))
	}
	if reflect.DeepEqual(before, after) {
		return v
	}
	r.history = append(r.history, after)
	r.applied[c.Kind]++
	if after.Term != before.Term {
		w.tracef("raft     term %d: %s, primary %s, replica %s, base %d", after.Term, after.Mode, short(after.Primary), short(after.Replica), after.Base)
		w.checks.committed(c, before, after)
	}
	at := len(r.history) - 1
	for _, h := range w.hosts {
		w.after(w.logLag(), func() { h.applied(at) })
	}
	return v
}

func outcome(v pact.Verdict) string {
	if v.Applied {
		return "applied"
	}
	return "refused: " + v.Reason
}
