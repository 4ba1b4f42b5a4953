package quorum

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// client proposes in the name of one host's processes what such a host could have a reason for, by what its own
// voter has applied. It knows of nobody's rights: to refuse is the pact's task.
type client struct {
	c     *cluster
	v     *voter
	rng   *rand.Rand
	lives pact.Incarnation
	ids   int
	// last is a command whose outcome is not known: it is put again, as are some others for no good reason.
	last pact.Command
	// Answered and unknown outcomes.
	known, unknown, applied int
}

func newClient(c *cluster, v *voter, seed uint64) *client {
	return &client{c: c, v: v, rng: rand.New(rand.NewPCG(seed, uint64(v.name[0]))), lives: 1}
}

func (c *client) me() pact.Party {
	return pact.Party{Host: c.v.name, Incarnation: c.lives<<8 | pact.Incarnation(c.v.name[0])}
}

// run proposes until it is stopped.
func (c *client) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
			c.once()
		}
	}
}

func (c *client) once() {
	_, m := c.v.up()
	l := c.c.leader(c.v)
	if m == nil || l == nil {
		time.Sleep(time.Millisecond) // nothing to do but to look again
		return
	}
	a, _ := m.guest()
	cmd := c.next(a)
	b, err := pact.EncodeCommand(cmd)
	if err != nil {
		return
	}
	f := l.Apply(b, 50*time.Millisecond)
	err = f.Error()
	if err != nil || !c.c.n.reach(c.v.addr(), c.leaderAddr()) {
		c.unknown++
		c.last = cmd
		return
	}
	c.last = pact.Command{}
	v, ok := f.Response().(pact.Verdict)
	if !ok {
		return
	}
	c.known++
	if v.Applied {
		c.applied++
	}
	if v.Index == f.Index() { // a duplicate's verdict names the index of the first
		c.c.r.answered(cmd, v)
	}
}

func (c *client) leaderAddr() raft.ServerAddress {
	if r, _ := c.v.up(); r != nil {
		at, _ := r.LeaderWithID()
		return at
	}
	return c.v.addr()
}

// next is the next command: as a rule one that makes sense here, now and then any.
func (c *client) next(a pact.Assignment) pact.Command {
	if c.last.ID != "" && c.rng.IntN(4) != 0 {
		return c.last
	}
	c.ids++
	cmd := pact.Command{Guest: guestName, ID: fmt.Sprintf("%s-%d", c.v.name, c.ids), Term: a.Term, By: c.me()}
	if a.Guest == "" {
		spec := pact.Spec{Hosts: []string{"a", "b"}, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1, Disks: []pact.DiskSpec{{SizeBytes: 1 << 20}}}
		cmd.Kind, cmd.ID, cmd.Spec, cmd.Desired = pact.Create, "create", &spec, pact.DesiredRunning
		return cmd
	}
	if c.rng.IntN(40) == 0 {
		c.lives++ // the process has died; its successor is another
		cmd.By = c.me()
	}
	other := pact.Party{Host: "a", Incarnation: c.lives<<8 | 'a'}
	if c.v.name == "a" {
		other = pact.Party{Host: "b", Incarnation: c.lives<<8 | 'b'}
	}
	pick := func(kinds ...pact.Kind) pact.Kind { return kinds[c.rng.IntN(len(kinds))] }
	switch {
	case c.rng.IntN(20) == 0:
		cmd.Kind = pick(pact.Start, pact.Stop, pact.Protect, pact.Promote, pact.GoSolo, pact.Surrender, pact.Switchover, pact.Cancel, pact.Mark, pact.Disclaim, pact.Confirm)
	case a.Mode == pact.Stopped:
		cmd.Kind = pact.Start
	case a.Primary == cmd.By && a.Mode == pact.Solo:
		cmd.Kind = pick(pact.Protect, pact.Protect, pact.Protect, pact.Mark, pact.Mark, pact.GoSolo, pact.Confirm)
	case a.Primary == cmd.By:
		cmd.Kind = pick(pact.GoSolo, pact.Switchover, pact.Switchover, pact.Cancel, pact.Surrender, pact.Confirm)
	case a.Primary.Host == c.v.name || a.Replica.Host == c.v.name && a.Replica != cmd.By:
		cmd.Kind, cmd.NoMarker = pact.Disclaim, true
		if cmd.By = a.Primary; a.Primary.Host != c.v.name {
			cmd.By = a.Replica
		}
		if a.IsGone(cmd.By) {
			cmd.Kind, cmd.By, cmd.NoMarker, cmd.MarkerTerm = pact.Start, c.me(), false, a.CurrentDisk.Term
		}
	case a.Replica == cmd.By:
		cmd.Kind = pact.Promote
	default:
		cmd.Kind, cmd.MarkerTerm = pact.Start, a.CurrentDisk.Term
	}
	cmd.Other, cmd.Epoch = other, a.Base+pact.Epoch(c.rng.IntN(3))
	return cmd
}
