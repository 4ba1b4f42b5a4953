package quorum

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// TestVoteWithoutALog: a voter that comes back without its log has another ID, yet Raft asks whoever is at the old
// one's address for its vote. If that is given, what was committed is lost; so it must not be.
func TestVoteWithoutALog(t *testing.T) {
	t.Run("given", func(t *testing.T) {
		c := lostLog(t, true)
		defer c.close()
		// b has never heard of the guest. With the vote of who has forgotten it, it leads.
		limit := time.Now().Add(hangLimit)
		for n := 0; c.r.err() == nil && time.Now().Before(limit); n++ {
			if l, _ := c.voters[1].up(); l.State() == raft.Leader {
				propose(t, l, pact.Command{Kind: pact.Create, Guest: guestName, ID: "another", Spec: spec()})
			}
			time.Sleep(time.Millisecond)
		}
		if c.r.err() == nil {
			t.Error("a vote that was given without a log has done no harm: then nothing shows that withholding it does any good")
		}
	})
	t.Run("withheld", func(t *testing.T) {
		c := lostLog(t, false)
		defer c.close()
		if err := c.voters[0].start(); err != nil {
			t.Fatal(err)
		}
		if !c.admit(c.voters[2], hangLimit) {
			t.Fatal("the voter that has lost its log can't be made a voter again")
		}
		settle(t, c, 0)
		if err := c.r.err(); err != nil {
			t.Error(err)
		}
		if _, m := c.voters[1].up(); m != nil {
			if a, _ := m.guest(); a.Guest != guestName {
				t.Error("what was committed is lost")
			}
		}
	})
}

// lostLog makes a cluster in which b lacks what a and w have committed; a is down, and w has lost its log.
func lostLog(t *testing.T, unguarded bool) *cluster {
	t.Helper()
	c, err := newCluster(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b, w := c.voters[0], c.voters[1], c.voters[2]
	w.unguarded = unguarded
	for _, o := range []*voter{a, w} {
		c.n.set(b.addr(), o.addr(), true)
		c.n.set(o.addr(), b.addr(), true)
	}
	limit := time.Now().Add(hangLimit)
	for done := false; !done; {
		for _, v := range []*voter{a, w} {
			if r, _ := v.up(); r.State() == raft.Leader {
				done = propose(t, r, pact.Command{Kind: pact.Create, Guest: guestName, ID: "create", Spec: spec()}) || done
			}
		}
		if time.Now().After(limit) {
			t.Fatal("a majority commits nothing")
		}
		time.Sleep(time.Millisecond)
	}
	for _, v := range []*voter{a, w} {
		if err := v.crash(); err != nil {
			t.Fatal(err)
		}
	}
	w.blank()
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	c.n.heal()
	return c
}

func spec() *pact.Spec {
	return &pact.Spec{Hosts: []string{"a", "b"}, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1, Disks: []pact.DiskSpec{{SizeBytes: 1 << 20}}}
}

func propose(t *testing.T, l *raft.Raft, cmd pact.Command) bool {
	t.Helper()
	b, err := pact.EncodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return l.Apply(b, time.Second).Error() == nil
}
