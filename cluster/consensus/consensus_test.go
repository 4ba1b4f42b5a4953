package consensus

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

var (
	pa = pact.Party{Host: "a", Incarnation: 1}
	pb = pact.Party{Host: "b", Incarnation: 1}
)

func create(id string) pact.Command {
	return pact.Command{Kind: pact.Create, ID: id, Spec: &pact.Spec{Hosts: []string{"a", "b"}, Kernel: "k", MemoryBytes: 4096, CPUs: 1}}
}

func TestThreeVoters(t *testing.T) {
	w, a, b, wit := trio(t)

	// A proposal goes through from everywhere, and everybody applies it.
	b.must(create("c1"))
	a.must(pact.Command{Kind: pact.Start, ID: "s1", By: pa})
	v := a.must(pact.Command{Kind: pact.Protect, ID: "p1", Term: 1, By: pa, Other: pb, Epoch: 3})
	for _, m := range []*machine{a, b, wit} {
		m.sees("the protected guest", func(g pact.Assignment) bool { return g.Term == 2 && g.Replica == pb })
	}
	// Sent once more, it is the same.
	again, err := a.propose(pact.Command{Kind: pact.Protect, ID: "p1", Term: 1, By: pa, Other: pb, Epoch: 3})
	if err != nil || !again.Applied || again.Index != v.Index {
		t.Errorf("duplicate: %+v %v", again, err)
	}
	// A refusal is a verdict, not an error.
	if v, err := b.propose(pact.Command{Kind: pact.Promote, ID: "x1", Term: 1, By: pb}); err != nil || v.Applied || v.Reason == "" {
		t.Errorf("stale promote: %+v %v", v, err)
	}
	// A host speaks for its own processes only; the witness for none.
	for _, m := range []*machine{b, wit} {
		if _, err := m.propose(pact.Command{Kind: pact.GoSolo, ID: "x2", Term: 2, By: pa}); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s spoke for a: %v", m.name, err)
		}
	}
	if _, err := a.propose(pact.Command{Kind: pact.NoOp, ID: "x3"}); !errors.Is(err, ErrForbidden) {
		t.Errorf("an empty entry from outside: %v", err)
	}

	// b reaches only a, not the leader: its proposal goes through a.
	w.set("b", "w", true)
	b.must(pact.Command{Kind: pact.Disclaim, ID: "d1", Term: 2, By: pb})
	a.sees("b's word", func(g pact.Assignment) bool { return len(g.Gone) == 1 })
	w.set("b", "w", false)
	b.sees("its own word", func(g pact.Assignment) bool { return len(g.Gone) == 1 })

	// The leader is lost: the hosts elect, and go on; back again, it becomes the leader again.
	wit.stop()
	a.must(pact.Command{Kind: pact.GoSolo, ID: "g1", Term: 2, By: pa})
	b.sees("solo", func(g pact.Assignment) bool { return g.Term == 3 })
	wit.start()
	ready(t, wit, a, b, wit)
	wit.sees("solo", func(g pact.Assignment) bool { return g.Term == 3 })

	// A host is lost: no election, since it did not lead.
	term := wit.node.Status().Term
	b.stop()
	a.must(pact.Command{Kind: pact.Mark, ID: "m1", Term: 3, By: pa})
	if now := wit.node.Status(); now.Term != term || now.Leader != "w" {
		t.Errorf("the loss of a host cost an election: term %d, was %d", now.Term, term)
	}
	b.start()
	b.sees("the mark", func(g pact.Assignment) bool { return g.CurrentDisk == pact.DiskCopy{Host: "a", Term: 1} })
}

func TestAMinorityDoesNotKnow(t *testing.T) {
	w, a, b, wit := trio(t)
	a.must(create("c1"))
	a.must(pact.Command{Kind: pact.Start, ID: "s1", By: pa})
	a.must(pact.Command{Kind: pact.Protect, ID: "p1", Term: 1, By: pa, Other: pb})
	a.sees("the protected guest", func(g pact.Assignment) bool { return g.Mode == pact.Protected })

	// The leader itself is alone: what it takes it cannot commit, and what becomes of that nobody knows.
	w.isolate("w", true)
	s, err := wit.id.Sign(purposePropose, mustEncode(t, entry{Command: &pact.Command{Kind: pact.SetDesired, Guest: "g", ID: "lost", Desired: pact.DesiredRunning}}))
	if err != nil {
		t.Fatal(err)
	}
	if wit.node.raft.State() == raft.Leader {
		if _, err := wit.node.apply(t.Context(), s); err == nil {
			t.Error("a leader without a majority committed")
		} else if !errors.Is(err, ErrUnknown) && !errors.Is(err, errNotLeader) {
			t.Errorf("a leader without a majority: %v", err)
		}
	}
	// A host alone: no leader can be reached, so it is certain that nothing was submitted.
	w.isolate("a", true)
	eventually(t, "a has no leader", func() bool { return a.node.Status().Leader == "" })
	_, err = a.propose(pact.Command{Kind: pact.GoSolo, ID: "g1", Term: 2, By: pa})
	if !errors.Is(err, ErrNoQuorum) || errors.Is(err, ErrUnknown) {
		t.Errorf("a alone: %v", err)
	}
	if g, _ := a.node.Guest("g"); g.Mode != pact.Protected {
		t.Errorf("a alone changed its mind: %+v", g)
	}

	// b and the witness are a majority.
	w.set("b", "w", false)
	b.must(pact.Command{Kind: pact.Promote, ID: "t1", Term: 2, By: pb, Epoch: 9})
	// a comes back, learns it, and its late question is refused.
	w.isolate("a", false)
	a.sees("the takeover", func(g pact.Assignment) bool { return g.Primary == pb && g.Term == 3 })
	var v pact.Verdict
	eventually(t, "an answer for a", func() bool {
		v, err = a.propose(pact.Command{Kind: pact.GoSolo, ID: "g1", Term: 2, By: pa})
		return err == nil
	})
	if v.Applied {
		t.Error("both got the guest")
	}
}

func mustEncode(t *testing.T, e entry) []byte {
	b, err := encodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An answer that is lost on its way back leaves the proposer without knowledge, though the command was
// committed; asked again, it learns the same verdict.
func TestALostAnswerIsUnknown(t *testing.T) {
	w, a, b, wit := trio(t)
	a.must(create("c1"))
	a.must(pact.Command{Kind: pact.Start, ID: "s1", By: pa})
	var once sync.Once
	wit.mu.Lock()
	wit.onApply = func(g pact.Assignment) {
		if g.Term == 2 {
			once.Do(func() { w.isolate("a", true) }) // after the commit, before the answer
		}
	}
	wit.mu.Unlock()
	c := pact.Command{Kind: pact.GoSolo, ID: "g1", Term: 1, By: pa}
	if _, err := a.propose(c); !errors.Is(err, ErrUnknown) {
		t.Fatalf("the answer was lost: %v", err)
	}
	b.sees("the new term", func(g pact.Assignment) bool { return g.Term == 2 })
	w.isolate("a", false)
	a.must(c)
}

func TestALostLogComesBackAsAnother(t *testing.T) {
	_, a, b, wit := trio(t)
	a.must(create("c1"))
	old := b.node.Self().RaftID
	b.stop()
	if err := os.RemoveAll(filepath.Join(b.dir, "raft")); err != nil {
		t.Fatal(err)
	}
	b.start()
	if b.node.Self().RaftID == old {
		t.Fatal("b came back under its old id without its log")
	}
	ready(t, wit, a, b, wit)
	b.sees("the guest", func(g pact.Assignment) bool { return g.Guest == "g" })
	eventually(t, "the old id is gone", func() bool {
		for _, v := range a.node.Status().Voters {
			if v.RaftID == old {
				return false
			}
		}
		return true
	})
}

func TestARemovedMemberIsTurnedAway(t *testing.T) {
	_, a, b, wit := trio(t)
	v, err := a.node.Remove(t.Context(), "b", "op")
	if err != nil || !v.Applied {
		t.Fatalf("%+v %v", v, err)
	}
	eventually(t, "b is out of Raft's configuration", func() bool { return len(wit.node.Status().Voters) == 2 && len(a.node.Status().Voters) == 2 })
	a.must(create("c1"))
	var s Status
	err = b.client.Call(t.Context(), wire.At("w", wit.address), "raft", struct{}{}, &s)
	if err == nil {
		t.Error("a removed member's call was answered")
	}
	if _, ok := a.node.Member("b"); ok {
		t.Error("b is a member still")
	}
}

func TestNobodyRegistersAsAnother(t *testing.T) {
	_, a, b, _ := trio(t)
	self := a.node.Self()
	if _, err := b.node.submit(t.Context(), entry{Enter: &self}); !errors.Is(err, ErrForbidden) {
		t.Errorf("b registered as a: %v", err)
	}
}

// A restarted member has everything from its own log and a snapshot.
func TestRestartFromASnapshot(t *testing.T) {
	w := newNetwork()
	a := founder(t, w, "a")
	a.must(create("c1"))
	a.must(pact.Command{Kind: pact.Start, ID: "s1", By: pa})
	if err := a.node.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	a.must(pact.Command{Kind: pact.GoSolo, ID: "g1", Term: 1, By: pa})
	a.stop()
	a.start()
	a.sees("the guest", func(g pact.Assignment) bool { return g.Term == 2 && g.Primary == pa })
	eventually(t, "a is current", a.node.Current)
	if m, ok := a.node.Member("a"); !ok || m.Role != pki.RoleHost {
		t.Errorf("the roster: %+v", a.node.Members())
	}
}

// How long a follower takes from the leader's verdict to its own log having applied the entry.
func TestFollowersApplyAtOnce(t *testing.T) {
	_, a, b, _ := trio(t)
	a.must(create("c1"))
	a.must(pact.Command{Kind: pact.Start, ID: "s1", By: pa})
	var worst, sum time.Duration
	const rounds = 20
	for i := range pact.Term(rounds) {
		begun := time.Now()
		a.must(pact.Command{Kind: pact.GoSolo, ID: "g" + string(rune('a'+i)), Term: i + 1, By: pa})
		b.sees("the new term", func(g pact.Assignment) bool { return g.Term == i+2 })
		d := time.Since(begun)
		t.Log(d)
		sum, worst = sum+d, max(worst, d)
	}
	t.Logf("from a proposal on one host to its application on the other: mean %v, worst %v", sum/rounds, worst)
}

// A voter that has forgotten what it promised does not help somebody to lead who never heard of it.
func TestALostLogGivesNoVote(t *testing.T) {
	w, a, b, wit := trio(t)
	a.must(create("c1"))
	b.sees("the guest", func(g pact.Assignment) bool { return g.Guest == "g" })
	w.isolate("b", true)
	a.must(pact.Command{Kind: pact.Start, ID: "s1", By: pa})
	a.stop()
	wit.stop()
	if err := os.RemoveAll(filepath.Join(wit.dir, "raft")); err != nil {
		t.Fatal(err)
	}
	wit.start()
	w.isolate("b", false)
	// b and the witness are two of three addresses, and no majority: b asks for votes in vain.
	eventually(t, "b was refused a vote", func() bool { return wit.node.trans.refused.Load() > 0 })
	if s := b.node.raft.State(); s == raft.Leader {
		t.Fatal("b leads without the entry that a and the witness had committed")
	}
	a.start()
	ready(t, wit, a, b, wit)
	b.sees("the start", func(g pact.Assignment) bool { return g.Primary == pa && g.Term == 1 })
}
