package bench

import (
	"context"
	"time"
)

const burnTarget = 0.98

// burning is P2a: a guest that does nothing but compute in a few pages.
type burning struct {
	b    *bench
	rate rates
	last map[string]Phase
}

func newBurning(b *bench, t *tape) probe { return &burning{b: b, rate: newRates(t)} }

func (p *burning) half(ctx context.Context, s *stage, protected bool) error {
	err := p.rate.measure(ctx, s, p.b.count(4, 4), protected)
	if protected {
		p.last = s.epochs()
	}
	return err
}

func (p *burning) rows() []Row {
	const name = "computing, small working set"
	r := p.rate.wall.row("P2a", name, "iterations/s").toReach(burnTarget).
		noted("one vCPU in a loop; the replica, the daemons and the other processes of this machine share its processors")
	r.Phases = p.last
	return []Row{r, p.rate.cpu.row("P2a", name+", by processor time", "iterations/s").noted(byProcessorTime)}
}

const byProcessorTime = "for each second that the primary's data-plane process was on a processor: what protection takes from the guest's side, " +
	"where other processes leave that side less than a processor of its own"

// rates are how fast the guest computes.
type rates struct {
	wall *pair // iterations a second
	cpu  *pair // iterations a second of the primary's processor time
}

func newRates(t *tape) rates { return rates{wall: t.pair(), cpu: t.pair()} }

// measure has the guest compute and takes so many samples of how fast.
func (r *rates) measure(ctx context.Context, s *stage, n int, protected bool) (err error) {
	if _, err := s.order("LEDGER.BURN", "1"); err != nil {
		return err
	}
	defer func() {
		if _, e := s.order("LEDGER.BURN", "0"); err == nil {
			err = e
		}
	}()
	type point struct {
		count int64
		at    time.Time
		cpu   time.Duration
	}
	look := func() (p point, err error) {
		reply, err := s.order("LEDGER.COUNT")
		if err != nil {
			return p, err
		}
		p.count, p.at = reply.Number, time.Now()
		p.cpu, err = s.CPUTime(s.primary)
		return p, err
	}
	if err := wait(ctx, 300*time.Millisecond); err != nil { // for the scheduler to find a place for it
		return err
	}
	before, err := look()
	if err != nil {
		return err
	}
	for range n {
		if err := wait(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		now, err := look()
		if err != nil {
			return err
		}
		count := float64(now.count - before.count)
		r.wall.of(protected).add(count / now.at.Sub(before.at).Seconds())
		if on := now.cpu - before.cpu; on > 0 {
			r.cpu.of(protected).add(count / on.Seconds())
		}
		before = now
	}
	return nil
}
