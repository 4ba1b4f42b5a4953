package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/memory"
)

const (
	wireTarget = 0.04
	wireMemory = 64 << 20 // bytes of the guest whose epochs are sent
)

// wire measures how many bytes travel for each dirtied one (P5).
func (b *bench) wire(ctx context.Context) error {
	for _, c := range []struct {
		changes
		name   string
		target bool
	}{
		{changes{1000, 16, 200}, "1000 pages, 16 to 200 bytes changed", true},
		{changes{100, 16, 200}, "100 pages, 16 to 200 bytes changed", true},
		{changes{1000, 16, 16}, "1000 pages, 16 bytes changed", true},
		{changes{1000, 200, 200}, "1000 pages, 200 bytes changed", false},
	} {
		r, err := b.wireRow(ctx, c.name, c.changes)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		const what = "all bytes that TCP is given: pages, machine state, framing, TLS; what is written is random and starts at any byte of a page"
		if c.target {
			r = r.atMost(wireTarget).noted(what)
		} else {
			r = r.noted("%s, so that the changed bytes alone are %.3f of the page and the target is out of reach: for orientation", what,
				float64(c.leastBytes)/memory.PageSize)
		}
		b.add(r)
	}
	return nil
}

func (b *bench) wireRow(ctx context.Context, name string, c changes) (_ Row, err error) {
	capture, captured := vmm.NewCapture(wireMemory/memory.PageSize), make(chan error, 1)
	guest, err := newScatter(wireMemory, 1, c.pages, func(p *vmm.Pause) bool {
		captured <- p.Capture(capture)
		return true
	})
	if err != nil {
		return Row{}, err
	}
	defer func() { err = errors.Join(err, guest.close()) }()
	s, err := newStream(ctx, wireMemory/memory.PageSize)
	if err != nil {
		return Row{}, err
	}
	end := sync.OnceValue(s.close)
	defer func() { err = errors.Join(err, end()) }()
	if err := guest.tell(c); err != nil {
		return Row{}, err
	}
	const warmUp = 3
	var perPage samples
	split := phases{}
	for i := range warmUp + b.count(100, 20) {
		if err := guest.write(ctx); err != nil {
			return Row{}, err
		}
		guest.machine.RequestPause()
		select {
		case err := <-captured:
			if err != nil {
				return Row{}, err
			}
		case <-ctx.Done():
			return Row{}, fmt.Errorf("the guest does not pause: %w", context.Cause(ctx))
		}
		sent, err := s.send(&checkpoint.Epoch{Number: pact.Epoch(i + 1), Term: 1, Pages: capture.Pages, Data: capture.Data, Zero: capture.Zero, State: capture.State})
		if err != nil {
			return Row{}, err
		}
		if i < warmUp { // everything counted as written, and then the first deltas
			continue
		}
		perPage.add(float64(sent.wireBytes) / float64(len(capture.Pages)))
		split.add("encode", sent.stats.Encode)
		split.add("send", sent.stats.Send)
		split.add("ack", sent.ack)
	}
	// A figure about bytes that did not arrive would be worth nothing.
	last := capture.Pages
	if err := end(); err != nil {
		return Row{}, err
	}
	for _, page := range last {
		if !bytes.Equal(s.replica.Page(int(page)), guest.machine.RAM().Page(int(page))) {
			return Row{}, fmt.Errorf("page %d is not what was sent", page)
		}
	}
	return row("P5", name, "bytes/page", perPage).against(memory.PageSize).split(split), nil
}
