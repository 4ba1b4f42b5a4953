package lockstep

import (
	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
)

// Memory that the guest does not use need not be copied. Two things tell of it: holes in the RAM file, which
// are zero pages that nobody has to read (and reading would fill them), and the guest's own hints.
//
// A hint is only worth what the record of written pages says beside it. The record begins before the guest is
// asked; a hinted page that is not in it has not been written since, and its content does not matter to the
// guest. In a pause, where that can't change, such a page is made a hole: it is zero here, and travels as a
// zero page of the next epoch. So both sides hold the same, and a wrong hint costs nothing but work.

// freePages is what a pause can do about the guest's free pages.
type freePages interface {
	Hints(fn func(page, pages int))
	Discard(page, pages int) error
}

// hintEnder is a machine whose guest can be told that nobody wants its hints any more.
type hintEnder interface{ EndHints() }

const (
	hintRuns     = 64 << 10 // that are remembered
	discardPages = 4096     // in one pause: about a millisecond
)

// pageRun is pages [from, to).
type pageRun struct{ from, to int }

// askHints has the guest asked. Called in the pause in which the record of written pages begins.
func (f *fill) askHints(p Pause) {
	if h, ok := p.(freePages); ok {
		h.Hints(f.hinted)
	}
}

// hinted takes a hint. The device lock is held.
func (f *fill) hinted(page, pages int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.over && !f.voided && len(f.free) < hintRuns {
		f.free = append(f.free, pageRun{page, page + pages})
	}
}

// discardFree makes holes of hinted pages that are still to be copied, as many as fit into a pause: what is
// still to be copied has not been written since the record began. The last capture was in this pause.
func (f *fill) discardFree(p Pause) {
	h, ok := p.(freePages)
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for budget := discardPages; budget > 0 && len(f.free) > 0; {
		r := &f.free[0]
		from := f.pages.next(r.from)
		if from < 0 || from >= r.to {
			f.free = f.free[1:]
			continue
		}
		to := from + 1
		for to < r.to && to-from < budget && f.pages.next(to) == to {
			to++
		}
		if err := h.Discard(from, to-from); err != nil {
			f.e.log.Warn("free memory can't be given back to the host", zap.Error(err))
			f.free = nil
			return
		}
		// The next capture has them as zero pages.
		for page := from; page < to; page++ {
			f.pages.remove(page)
		}
		budget -= to - from
		r.from = to
	}
}

// endHints lets the guest have its free pages back.
func (f *fill) endHints() {
	if m, ok := f.e.cfg.Machine.(hintEnder); ok {
		m.EndHints()
	}
}

// content is a page for the copier: nil where the page is zero, which in a hole is known without a look.
// f.mu is held.
func (f *fill) content(page int) []byte {
	if page >= f.hole.from && page < f.hole.to {
		return nil
	}
	if page >= f.used.from && page < f.used.to {
		return nonZero(f.ram.Page(page))
	}
	start, end, err := f.ram.Populated(page)
	if err != nil || start < page {
		start, end = page, page+1 // look at it as it is
	}
	f.hole, f.used = pageRun{page, start}, pageRun{start, end}
	if page < start {
		return nil
	}
	return nonZero(f.ram.Page(page))
}

func nonZero(p []byte) []byte {
	if isZero(p) {
		return nil
	}
	return p
}

// background is the entry of a page that was copied; content nil: it is zero.
func background(page int, content []byte) checkpoint.Page {
	if content == nil {
		content = zeroPage
	}
	return checkpoint.Page{Index: uint32(page), Data: content}
}
