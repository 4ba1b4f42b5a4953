package consensus

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/pki"
)

const (
	leadEvery   = 300 * time.Millisecond
	changeLimit = 10 * time.Second
	// lagMax is how many entries a follower may be behind to count as caught up.
	lagMax = 64
	// patience is how long a member must have been well before leadership goes to it, and the first
	// pause after leadership came back from it; pauses double.
	patience    = 2 * time.Second
	patienceMax = 5 * time.Minute
)

// lead carries out a leader's duties: Raft's configuration follows the roster, and leadership goes to a
// witness, so that the loss of a host costs no election.
func (n *Node) lead(ctx context.Context) {
	t := time.NewTicker(leadEvery)
	defer t.Stop()
	w := wellness{since: map[raft.ServerID]time.Time{}, pause: patience}
	for {
		select {
		case <-ctx.Done():
			return
		case up := <-n.notify:
			n.log.Info("leadership", zap.Bool("mine", up))
			poke(n.nudge) // entries of earlier terms are committed now; let everybody know
			if up {
				w.gained()
			}
		case <-n.wake:
		case <-t.C:
		}
		if n.raft.State() != raft.Leader {
			clear(w.since)
			continue
		}
		n.duties(ctx, &w)
	}
}

// wellness remembers since when members have been well, as the leader sees them.
type wellness struct {
	since map[raft.ServerID]time.Time
	pause time.Duration
	moved time.Time // when leadership was last handed to a witness
}

// gained: leadership has come to this node. If it was handed on not long ago, it came back.
func (w *wellness) gained() {
	if !w.moved.IsZero() && time.Since(w.moved) < 2*w.pause+time.Minute {
		w.pause = min(2*w.pause, patienceMax)
	} else {
		w.pause = patience
	}
}

func (n *Node) duties(ctx context.Context, w *wellness) {
	servers := n.servers()
	if n.follow(servers) {
		return // one change at a time
	}
	well := n.wellServers(ctx, servers, w)
	if n.promote(servers, well) {
		return
	}
	n.preferWitness(servers, w)
}

// follow makes Raft's configuration name whom the roster names. It reports that it has changed it.
func (n *Node) follow(servers []raft.Server) bool {
	removed := n.fsm.removed()
	for _, s := range servers {
		if !slices.Contains(removed, string(s.ID)) {
			continue
		}
		n.log.Info("take out of Raft's configuration", zap.String("server", string(s.ID)))
		n.changed("remove", s.ID, n.raft.RemoveServer(s.ID, 0, changeLimit))
		return true
	}
	for _, m := range n.fsm.members() {
		id := raft.ServerID(m.RaftID)
		i := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == id })
		switch {
		case i < 0:
			n.log.Info("enter in Raft's configuration", zap.String("server", m.RaftID))
			n.changed("add", id, n.raft.AddNonvoter(id, m.at(), 0, changeLimit))
			return true
		case servers[i].Address != m.at():
			n.log.Info("address in Raft's configuration", zap.String("server", m.RaftID), zap.String("address", string(m.at())))
			if servers[i].Suffrage == raft.Voter {
				n.changed("move", id, n.raft.AddVoter(id, m.at(), 0, changeLimit))
			} else {
				n.changed("move", id, n.raft.AddNonvoter(id, m.at(), 0, changeLimit))
			}
			return true
		}
	}
	return false
}

func (n *Node) changed(what string, id raft.ServerID, f raft.IndexFuture) bool {
	if err := f.Error(); err != nil {
		n.log.Warn("change of Raft's configuration", zap.String("change", what), zap.String("server", string(id)), zap.Error(err))
		return false
	}
	poke(n.nudge)
	n.o.Joined()
	return true
}

// wellServers asks the others how they are, side by side, and tells who follows this leader closely.
func (n *Node) wellServers(ctx context.Context, servers []raft.Server, w *wellness) map[raft.ServerID]bool {
	need := false
	for _, s := range servers {
		_, role, _ := splitRaftID(string(s.ID))
		need = need || s.Suffrage != raft.Voter || role == pki.RoleWitness && string(s.ID) != n.o.Self.RaftID
	}
	if !need || n.o.Self.Role == pki.RoleWitness && n.allVote(servers) {
		return nil
	}
	type answer struct {
		id raft.ServerID
		ok bool
	}
	answers := make(chan answer, len(servers))
	asked := 0
	last := n.raft.LastIndex()
	for _, s := range servers {
		if string(s.ID) == n.o.Self.RaftID {
			continue
		}
		asked++
		go func() {
			st, err := n.ask(ctx, "raft", string(s.Address), time.Second)
			answers <- answer{s.ID, err == nil && st.RaftID == string(s.ID) && st.LeaderID == n.o.Self.RaftID && st.Last+lagMax >= last && st.Applied+lagMax >= last}
		}()
	}
	well := map[raft.ServerID]bool{}
	for range asked {
		a := <-answers
		well[a.id] = a.ok
		if !a.ok {
			delete(w.since, a.id)
		} else if w.since[a.id].IsZero() {
			w.since[a.id] = time.Now()
		}
	}
	return well
}

func (n *Node) allVote(servers []raft.Server) bool {
	return !slices.ContainsFunc(servers, func(s raft.Server) bool { return s.Suffrage != raft.Voter })
}

// voterTarget is how many of n members should vote: an odd number, since an even one tolerates no more
// losses than the odd one below it and needs one more vote.
func voterTarget(n int) int {
	switch {
	case n >= 5:
		return 5
	case n >= 3:
		return 3
	}
	return 1
}

// promote gives the vote to members that follow closely. It reports that it has changed something.
func (n *Node) promote(servers []raft.Server, well map[raft.ServerID]bool) bool {
	voters := 0
	var ready []raft.Server
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters++
		} else if well[s.ID] {
			ready = append(ready, s)
		}
	}
	want := voterTarget(len(servers))
	if voters >= want || len(ready) == 0 {
		return false
	}
	// From one odd number to the next, not half the way: the step between is less safe than either.
	if voters%2 == 1 && len(ready) < 2 {
		return false
	}
	slices.SortFunc(ready, func(a, b raft.Server) int {
		_, ra, _ := splitRaftID(string(a.ID))
		_, rb, _ := splitRaftID(string(b.ID))
		if ra == rb {
			return 0
		}
		if ra == pki.RoleWitness {
			return -1
		}
		return 1
	})
	s := ready[0]
	n.log.Info("give the vote", zap.String("server", string(s.ID)))
	return n.changed("promote", s.ID, n.raft.AddVoter(s.ID, s.Address, 0, changeLimit))
}

// preferWitness hands leadership to a witness that has been well for a while.
func (n *Node) preferWitness(servers []raft.Server, w *wellness) {
	if n.o.Self.Role == pki.RoleWitness {
		return
	}
	for _, s := range servers {
		_, role, _ := splitRaftID(string(s.ID))
		since := w.since[s.ID]
		if role != pki.RoleWitness || s.Suffrage != raft.Voter || since.IsZero() || time.Since(since) < w.pause {
			continue
		}
		w.moved = time.Now()
		delete(w.since, s.ID)
		if err := n.raft.LeadershipTransferToServer(s.ID, s.Address).Error(); err != nil {
			n.log.Info("leadership could not be handed to the witness", zap.Error(err))
			w.pause = min(2*w.pause, patienceMax)
			return
		}
		n.log.Info("leadership handed to the witness", zap.String("server", string(s.ID)))
		return
	}
}

// register enters this member in the roster, and again when something of it has changed.
func (n *Node) register(ctx context.Context) {
	for {
		self := n.Self()
		if m, ok := n.fsm.member(self.Name); ok && m == self {
			select {
			case <-ctx.Done():
				return
			case <-n.renewed:
				continue
			}
		}
		v, err := n.submit(ctx, entry{Enter: &self})
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && v.Applied:
			n.log.Info("registered with the cluster", zap.String("raft_id", self.RaftID), zap.String("serial", self.Serial))
			if n.WaitApplied(ctx, v.Index) == nil {
				continue
			}
		case err == nil:
			n.log.Error("the cluster does not take this member", zap.String("reason", v.Reason))
		default:
			n.log.Warn("register with the cluster", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// catchUp finds out when the log has been applied up to where the cluster is.
func (n *Node) catchUp(ctx context.Context) {
	for {
		if n.caughtUp(ctx) {
			n.mu.Lock()
			n.current = true
			n.mu.Unlock()
			for _, a := range n.fsm.guests() {
				n.o.Changed(a, true)
			}
			n.o.Joined()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

func (n *Node) caughtUp(ctx context.Context) bool {
	if n.raft.State() == raft.Leader {
		return n.raft.Barrier(time.Second).Error() == nil
	}
	_, leader := n.raft.LeaderWithID()
	if leader == "" {
		return false
	}
	for _, s := range n.servers() {
		if s.ID != leader {
			continue
		}
		// What the leader has applied after a barrier of now; when it is applied here, so is all that was
		// decided before.
		st, err := n.ask(ctx, "barrier", string(s.Address), 2*time.Second)
		if err != nil {
			return false
		}
		for n.raft.AppliedIndex() < st.Applied || !n.fsm.has(st.Decided) {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(retry):
			}
			if _, now := n.raft.LeaderWithID(); now != leader {
				return false
			}
		}
		return true
	}
	return false
}
