package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/vmm"
)

const (
	pauseTarget = 1.3
	pauseMemory = 64 << 20 // bytes of the guest that is paused

	growTarget = 1.2
	growPages  = 1000
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

	forget bool          // the next pause is the first
	stay   bool          // the guest stands still between its turns
	plain  bool          // the next pause is one for the baseline
	took   time.Duration // of the last checkpoint, from its request until the guest may go on
	base   time.Duration // of the last baseline
}

// newPauser makes one whose guest writes to so many pages a turn.
func newPauser(ctx context.Context, memoryBytes uint64, cpus, pages int) (p *pauser, err error) {
	room := pages + 64 // and what the mailbox needs
	p = &pauser{full: vmm.NewCapture(room), bare: vmm.NewCapture(room), forget: true, done: make(chan error, 1)}
	if p.guest, err = newScatter(memoryBytes, cpus, pages, p.onPause); err != nil {
		return nil, err
	}
	err = p.guest.tell(changes{pages: pages, leastBytes: 8, mostBytes: 8})
	for range 5 {
		if err == nil {
			err = p.turn(ctx, false)
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.guest.close())
	}
	return p, nil
}

// onPause runs on the vCPU's thread, as in production.
func (p *pauser) onPause(pause *vmm.Pause) bool {
	if p.forget { // at first everything counts as written
		p.forget = false
		p.done <- pause.Forget()
		return !p.stay
	}
	if !p.plain {
		err := pause.Capture(p.full)
		p.took = time.Since(p.asked)
		p.done <- err
		return !p.stay
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
	return !p.stay
}

// turn has the guest write and takes a pause.
func (p *pauser) turn(ctx context.Context, plain bool) error {
	p.guest.machine.Resume()
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

// checkpoint takes one and adds how long its parts took.
func (p *pauser) checkpoint(ctx context.Context, pages int, split phases) error {
	if err := p.turn(ctx, false); err != nil {
		return err
	}
	if n := len(p.full.Pages); n < pages || n > pages+8 { // the mailbox is one more
		return fmt.Errorf("%d pages are dirty where the guest writes to %d", n, pages)
	}
	t := p.full.Timings
	split.add("stop", t.Stop)
	split.add("harvest", t.Harvest)
	split.add("copy", t.Copy)
	split.add("state", t.State)
	split.add("clear", t.Clear)
	return nil
}

func (b *bench) pauseRow(ctx context.Context, pages int) (_ Row, err error) {
	p, err := newPauser(ctx, pauseMemory, 1, pages)
	if err != nil {
		return Row{}, err
	}
	defer func() { err = errors.Join(err, p.guest.close()) }()
	var full, base samples
	split := phases{}
	for i := range b.count(300, 60) {
		for _, plain := range []bool{i%2 == 0, i%2 != 0} {
			if plain {
				err = p.turn(ctx, true)
			} else {
				err = p.checkpoint(ctx, pages, split)
			}
			if err != nil {
				return Row{}, err
			}
		}
		full.addTime(p.took)
		base.addTime(p.base)
	}
	return row("P1", fmt.Sprintf("%d pages", pages), "ms", full).against(base.median()).atMost(pauseTarget).split(split).
		noted("from the request until the vCPU may go on; baseline: stopping it, saving its state and copying the same pages, in turns with the checkpoints"), nil
}

// growth measures what the size of a guest adds to the pause for the same dirty pages (P9).
func (b *bench) growth(ctx context.Context) (err error) {
	type size struct {
		name        string
		memoryBytes uint64
		cpus        int
		p           *pauser
		took        samples
		split       phases
	}
	sizes := []*size{
		{name: "64 MiB, 1 vCPU", memoryBytes: 64 << 20, cpus: 1},
		{name: "1 GiB, 1 vCPU", memoryBytes: 1 << 30, cpus: 1},
		{name: "64 MiB, 2 vCPUs", memoryBytes: 64 << 20, cpus: 2},
		{name: "64 MiB, 4 vCPUs", memoryBytes: 64 << 20, cpus: 4},
	}
	for i := range b.count(200, 40) {
		for _, s := range sizes {
			if i == 0 {
				s.split = phases{}
				if s.p, err = newPauser(ctx, s.memoryBytes, s.cpus, growPages); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				defer func() { err = errors.Join(err, s.p.guest.close()) }()
				s.p.stay = true
			}
			if err := s.p.checkpoint(ctx, growPages, s.split); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.took.addTime(s.p.took)
		}
	}
	for i, s := range sizes {
		r := row("P9", fmt.Sprintf("%d pages, %s", growPages, s.name), "ms", s.took).split(s.split)
		if i > 0 {
			r = r.against(sizes[0].took.median()).atMost(growTarget).
				noted("the same pause, of larger guests; vCPUs beyond the first wait for their start-up message. The guests take turns, and stand still in between")
		}
		b.add(r)
	}
	return nil
}
