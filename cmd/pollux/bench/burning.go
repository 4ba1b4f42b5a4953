package bench

import (
	"context"
	"time"

	"github.com/pollux-ha/pollux/tests/history"
)

const burnTarget = 0.98

// burning is P2a: a guest that does nothing but compute in a few pages.
type burning struct {
	b    *bench
	rate pair // iterations a second
	last map[string]Phase
}

func newBurning(b *bench) probe { return &burning{b: b} }

func (p *burning) half(ctx context.Context, s *stage, protected bool) error {
	err := countRate(ctx, s, p.b.count(8, 4), p.rate.of(protected))
	if protected {
		p.last = s.epochs()
	}
	return err
}

func (p *burning) rows() []Row {
	r := row("P2a", "computing, small working set", "iterations/s", p.rate.protected).against(p.rate.solo.median()).toReach(burnTarget).
		noted("one vCPU in a loop; the replica, the daemons and the other processes of this machine share its processors")
	r.Phases = p.last
	return []Row{r}
}

// countRate has the guest compute and takes so many samples of how fast.
func countRate(ctx context.Context, s *stage, n int, into *samples) (err error) {
	if _, err := s.order("LEDGER.BURN", "1"); err != nil {
		return err
	}
	defer func() {
		if _, e := s.order("LEDGER.BURN", "0"); err == nil {
			err = e
		}
	}()
	count := func() (int64, time.Time, error) {
		var r history.Reply
		r, err := s.order("LEDGER.COUNT")
		return r.Number, time.Now(), err
	}
	if err := wait(ctx, 300*time.Millisecond); err != nil { // for the scheduler to find a place for it
		return err
	}
	before, then, err := count()
	if err != nil {
		return err
	}
	for range n {
		if err := wait(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		after, now, err := count()
		if err != nil {
			return err
		}
		into.add(float64(after-before) / now.Sub(then).Seconds())
		before, then = after, now
	}
	return nil
}
