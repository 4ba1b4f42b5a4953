package lockstep

import (
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// The scrub compares this host's memory with the replica's, at a low rate, so that a bit that has turned over on
// either side is found before somebody needs it.
//
// Pages are summed up while the guest runs, between two captures. The later one says which of them the guest has
// written meanwhile; all others are, in the epoch that it makes, what they were when they were summed up. Their sums
// follow that epoch on the stream, and the replica compares its own pages as of that very epoch.

const (
	// scrubWindow is how many pages are summed up at a time: some tens of microseconds.
	scrubWindow = 32
	// scrubTries is how often a window is tried between captures that come too fast for it.
	scrubTries = 8
)

// scrub is the scrub's goroutine.
func (e *Engine) scrub() {
	t := time.NewTicker(time.Second * scrubWindow / time.Duration(e.cfg.ScrubPages))
	defer t.Stop()
	cursor, tries := 0, 0
	for {
		select {
		case <-t.C:
		case <-e.ctx.Done():
			return
		}
		next, done := e.scrubFrom(cursor)
		if tries++; done || tries == scrubTries {
			cursor, tries = next, 0
		}
	}
}

// scrubFrom sums up the pages from one on, for the epoch that is running, and returns where to go on. Not done: they
// can't be used.
func (e *Engine) scrubFrom(page int) (next int, done bool) {
	ram := e.cfg.Machine.RAM()
	next = min(page+scrubWindow, ram.Pages())
	usable := func(s *stream) bool {
		return s != nil && s.up && s.fill == nil && s.sums == nil && !e.over && !e.capturing && e.logging
	}
	e.mu.Lock()
	s, from := e.stream, e.core.Captured()
	ok := usable(s)
	e.mu.Unlock()
	if !ok {
		return page, true
	}
	sums := &checkpoint.PageSums{Epoch: from + 1}
	for p := page; p < next; p++ {
		if sum, ok := e.pageSum(ram, p); ok {
			sums.Pages, sums.Sums = append(sums.Pages, uint32(p)), append(sums.Sums, sum)
		}
	}
	if next == ram.Pages() {
		next = 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stream != s || !usable(s) || e.core.Captured() != from {
		return next, false // a page may have been written, and been captured as something else
	}
	s.sums = sums
	return next, true
}

// pageSum sums a page up; a hole in the RAM file is not filled by that.
func (e *Engine) pageSum(ram *memory.RAM, page int) (sum uint64, ok bool) {
	if start, _, err := ram.Populated(page); err == nil && start > page {
		return checkpoint.ZeroPageSum, true
	}
	var content [checkpoint.PageSize]byte
	if err := ram.Try(page, content[:]); err != nil {
		e.log.Debug("scrub", zap.Error(err))
		if m, ok := e.cfg.Machine.(mender); ok {
			m.FoundDamaged(page)
		}
		return 0, false
	}
	return checkpoint.PageSum(content[:]), true
}

// takeSums returns those sums that hold for an epoch that has just been captured: of pages that it does not bring.
// e.mu is held.
func (e *Engine) takeSums(s *stream, ep *epoch) *checkpoint.PageSums {
	all := s.sums
	if s.sums = nil; all == nil || all.Epoch != ep.Number {
		return nil
	}
	m := &checkpoint.PageSums{Epoch: all.Epoch}
	for i, p := range all.Pages {
		_, written := slices.BinarySearch(ep.Pages, p)
		_, discarded := slices.BinarySearch(ep.Zero, p)
		if !written && !discarded {
			m.Pages, m.Sums = append(m.Pages, p), append(m.Sums, all.Sums[i])
		}
	}
	if len(m.Pages) == 0 {
		return nil
	}
	e.stats.scrubbed += uint64(len(m.Pages))
	return m
}
