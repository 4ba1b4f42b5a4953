package bench

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/tests/history"
	"github.com/pollux-ha/pollux/vmm/memory"
)

const (
	healTarget  = 2 // milliseconds
	healClients = 6
	// untouched is when a page counts as one that the guest does not use.
	untouched = 500 * time.Millisecond
)

// programPages are the pages of our guest's program: it never writes them, and runs in them.
func programPages() (pages []int, err error) {
	f, err := elf.NewFile(bytes.NewReader(ledger.Image()))
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 {
			for at := p.Paddr &^ (memory.PageSize - 1); at < p.Paddr+p.Filesz; at += memory.PageSize {
				pages = append(pages, int(at/memory.PageSize))
			}
		}
	}
	return pages, nil
}

// heals measures how long a guest stands still whose next instruction lies in a damaged page, until it goes on
// with the replica's copy (P4h).
func (b *bench) heals(ctx context.Context) error {
	pages, err := programPages()
	if err != nil {
		return fmt.Errorf("find the guest's program: %w", err)
	}
	return b.besideClients(ctx, healClients, "heal", func(s *demo.Stage, recorder *history.Recorder) error {
		return b.heal(ctx, s, recorder, pages)
	})
}

func (b *bench) heal(ctx context.Context, s *demo.Stage, recorder *history.Recorder, pages []int) error {
	var waits samples
	healed := func(more uint64) func(*link.Status) bool {
		return func(p *link.Status) bool { return p.Heals >= more }
	}
	last := uint64(0)
	for i, wanted, tries := 0, b.count(60, 15), 0; i < wanted; tries++ {
		if tries > 4*wanted {
			return errors.New("the guest uses too little of its program")
		}
		if err := recorder.AwaitReplies(ctx, recorder.Now(), healClients); err != nil {
			return err
		}
		page := pages[tries%len(pages)]
		begin := recorder.Now()
		if err := s.Damage(ctx, console.FaultRequest{Fault: "memory", Page: &page, Quiet: true}); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, untouched)
		err := s.Await(waiting, "the page was healed", healed(last+1))
		cancel()
		if err == nil {
			waits.addTime(recorder.LongestWait(begin, recorder.Now()))
			last, i = last+1, i+1
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// Nobody has touched it. It is healed all the same, before the next one.
		if err := s.Damage(ctx, console.FaultRequest{Fault: "memory", Page: &page}); err != nil {
			return err
		}
		waiting, cancel = context.WithTimeout(ctx, 10*time.Second)
		err = s.Await(waiting, "the page was healed", healed(last+1))
		cancel()
		if err != nil {
			return err
		}
		last++
	}
	if p := s.Primary(); p != nil {
		h := p.TimingsUs["heal"]
		b.add(Row{
			ID: "P4h", Case: "a page of the running program", Unit: "ms", Value: round(h.P50 / 1000),
			P50: round(h.P50 / 1000), P90: round(h.P90 / 1000), P99: round(h.P99 / 1000), Samples: h.Samples,
		}.atMost(healTarget).noted("from the page's discovery until it can be read again, with the content of the last checkpoint, fetched from the replica"))
	}
	b.add(row("P4h", fmt.Sprintf("%d clients, the longest wait of any of them", healClients), "ms", waits).
		noted("the longest time between two replies on one connection around a heal, from the order to damage the page on, what the client pauses between them included"))
	return nil
}
