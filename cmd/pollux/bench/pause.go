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
	pauseTarget = 1.3
	pauseMemory = 64 << 20 // bytes of the guest that is paused
)

// pauses measures what a checkpoint's pause costs the guest (P1).
func (b *bench) pauses(ctx context.Context) error {
	for _, pages := range []int{100, 1000, 4000} {
		row, err := b.pauseRow(ctx, pages)
		if err != nil {
			return fmt.Errorf("%d pages: %w", pages, err)
		}
		b.add(row)
	}
	return nil
}

// pauser takes pauses of two kinds in turns: checkpoints, and what a checkpoint can't do without. Each
// kind has an arena of its own, and neither finds its one warmer than the other.
type pauser struct {
	guest      *scatter
	full, bare *vmm.Capture
	asked      time.Time
	done       chan error

	plain bool          // the next pause is one for the baseline
	took  time.Duration // of the last checkpoint, from its request until the guest may go on
	base  time.Duration // of the last baseline
}

// onPause runs on the vCPU's thread, as in production.
func (p *pauser) onPause(pause *vmm.Pause) bool {
	if !p.plain {
		err := pause.Capture(p.full)
		p.took = time.Since(p.asked)
		p.done <- err
		return true
	}
	// The pages of the last checkpoint are dirty again. They are copied by whoever knows already which
	// they are; stopping and saving the state are the same in both kinds.
	ram, arena := p.guest.machine.RAM(), p.bare.Data[:cap(p.bare.Data)]
	begin := time.Now()
	for _, page := range p.full.Pages {
		arena = arena[copy(arena, ram.Page(int(page))):]
	}
	copied := time.Since(begin)
	err := pause.Capture(p.bare) // for the other two parts, and so that no page counts twice
	p.base = p.bare.Timings.Stop + p.bare.Timings.State + copied
	p.done <- err
	return true
}

// turn has the guest write and takes a pause.
func (p *pauser) turn(ctx context.Context, plain bool) error {
	if err := p.guest.write(ctx); err != nil {
		return err
	}
	p.plain, p.asked = plain, time.Now()
	p.guest.machine.RequestPause()
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the guest does not pause: %w", context.Cause(ctx))
	}
}

func (b *bench) pauseRow(ctx context.Context, pages int) (_ Row, err error) {
	const all = pauseMemory / memory.PageSize
	p := &pauser{full: vmm.NewCapture(all), bare: vmm.NewCapture(all), done: make(chan error, 1)}
	if p.guest, err = newScatter(pauseMemory, 1, pages, p.onPause); err != nil {
		return Row{}, err
	}
	defer func() { err = errors.Join(err, p.guest.close()) }()
	if err := p.guest.tell(changes{pages: pages, leastBytes: 8, mostBytes: 8}); err != nil {
		return Row{}, err
	}
	for range 5 { // the first finds every page written
		if err := p.turn(ctx, false); err != nil {
			return Row{}, err
		}
	}
	var full, base samples
	split := phases{}
	for i := range b.count(300, 60) {
		for _, plain := range []bool{i%2 == 0, i%2 != 0} {
			if err := p.turn(ctx, plain); err != nil {
				return Row{}, err
			}
		}
		if n := len(p.full.Pages); n < pages || n > pages+8 { // the mailbox is one more
			return Row{}, fmt.Errorf("%d pages are dirty where the guest writes to %d", n, pages)
		}
		full.addTime(p.took)
		base.addTime(p.base)
		t := p.full.Timings
		split.add("stop", t.Stop)
		split.add("harvest", t.Harvest)
		split.add("copy", t.Copy)
		split.add("state", t.State)
		split.add("clear", t.Clear)
	}
	return row("P1", fmt.Sprintf("%d pages", pages), "ms", full).against(base.median()).atMost(pauseTarget).split(split).
		noted("from the request until the vCPU may go on; baseline: stopping it, saving its state and copying the same pages, in turns with the checkpoints"), nil
}
