package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/memory"
)

const (
	dirtyTarget = 0.90
	dirtyRate   = 10_000 // pages a second
	dirtyBytes  = 200    // changed in each
)

// dirtying is P2c: the guest writes to many pages and computes in what time is left.
type dirtying struct {
	b      *bench
	rate   rates
	faults *samples // pages that were dirty in an epoch, a second: each began with a write fault
	wire   *samples // bytes on the wire for each page
	last   map[string]Phase
}

func newDirtying(b *bench, t *tape) probe {
	return &dirtying{b: b, rate: newRates(t), faults: t.samples(), wire: t.samples()}
}

func (p *dirtying) half(ctx context.Context, s *stage, protected bool) (err error) {
	if _, err := s.order("LEDGER.DIRTY", fmt.Sprint(dirtyRate), fmt.Sprint(dirtyBytes)); err != nil {
		return err
	}
	defer func() {
		if _, e := s.order("LEDGER.DIRTY", "0", "0"); err == nil {
			err = e
		}
	}()
	before, then, err := s.counters(ctx)
	if err != nil {
		return err
	}
	if err := p.rate.measure(ctx, s, p.b.count(4, 4), protected); err != nil || !protected {
		return err
	}
	after, now, err := s.counters(ctx)
	if err != nil {
		return err
	}
	if pages := float64(after.DirtyPages - before.DirtyPages); pages > 0 {
		p.faults.add(pages / now.Sub(then).Seconds())
		p.wire.add(float64(after.WireBytes-before.WireBytes) / pages)
	}
	p.last = s.epochs()
	return nil
}

func (p *dirtying) rows() []Row {
	name := fmt.Sprintf("%d pages/s, %d bytes changed", dirtyRate, dirtyBytes)
	measured := p.rate.wall.row("P2c", name+", as measured", "iterations/s").
		noted("iterations of a loop in the time that the writes leave")
	measured.Phases = p.last
	rows := []Row{measured, p.rate.cpu.row("P2c", name+", as measured, by processor time", "iterations/s").noted(byProcessorTime)}
	fault, err := faultCost(p.b.count(60, 20))
	if err != nil {
		p.b.tell("the cost of a write fault: %v", err)
		return rows
	}
	cost, faults, solo := fault.median(), p.faults.median(), p.rate.wall.solo.median()
	rows = append(rows, row("P2c", "write fault of a watched page, alone", "us", fault).
		noted("time of a write to a page that KVM watches, less that of a write to one that it does not: what every user of KVM's dirty log pays"))
	var without samples
	for _, v := range *p.rate.wall.protected {
		without.add(v + solo*faults*cost/1e6)
	}
	rows = append(rows,
		row("P2c", name+", without KVM's write faults", "iterations/s", without).against(solo).toReach(dirtyTarget).
			noted("as measured, and given back what %.0f write faults a second of %.2f us take", faults, cost),
		row("P5", fmt.Sprintf("cluster, %s", name), "bytes/page", *p.wire).against(memory.PageSize).
			noted("from the primary's counters, which do not count TLS; the changed bytes alone are %.3f of the page: for orientation", float64(dirtyBytes)/memory.PageSize))
	return rows
}

// faultCost measures what the first write to a watched page costs, in microseconds.
func faultCost(n int) (s samples, err error) {
	const pages = 2000
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	capture, captured := vmm.NewCapture(wireMemory/memory.PageSize), make(chan error, 1)
	g, err := newScatter(wireMemory, 1, pages, func(p *vmm.Pause) bool {
		captured <- p.Capture(capture)
		return true
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	if err := g.tell(changes{pages: pages, leastBytes: 8, mostBytes: 8}); err != nil {
		return nil, err
	}
	timed := func() (time.Duration, error) {
		begin := time.Now()
		err := g.write(ctx)
		return time.Since(begin), err
	}
	for i := range n + 2 {
		g.machine.RequestPause()
		if err := <-captured; err != nil {
			return nil, err
		}
		watched, err := timed()
		if err != nil {
			return nil, err
		}
		free, err := timed()
		if err != nil {
			return nil, err
		}
		if i >= 2 { // all page tables are there
			s.add(float64(watched-free) / float64(time.Microsecond) / pages)
		}
	}
	return s, nil
}
