package core

import (
	"fmt"
	"maps"
	"slices"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// maxDamaged is how many pages may be damaged at a time. With more, a takeover is the quicker cure.
const maxDamaged = 64

// damagedPage is a page of guest memory that can't be read.
type damagedPage struct {
	// since is the newest epoch that was captured when it was found clean: what it holds in that epoch it
	// holds in all later ones, for a page that can't be read is not written either.
	since  pact.Epoch
	stream uint64 // which has been asked for it; 0: none
}

// damaged decides about a page: the replica's copy, or somebody else goes on.
func (c *Core) damaged(ev Damaged) {
	if c.fault != "" {
		return
	}
	why := fmt.Sprintf("uncorrectable memory error in page %d", ev.Page)
	_, known := c.pages[ev.Page]
	switch held := c.stream.state == streamUp && c.stream.filled; {
	case c.entitled().IsZero() && !ev.Needed && (ev.Dirty || !held):
		// Nobody has the content, nobody could go on from an earlier one, and the guest may never want it.
		c.detail = why + ", which the guest has not touched since: it goes on, and can't be protected here"
		return
	case known:
		return // it has been asked for
	case !held:
		c.setFault(why + ", and no replica to heal it from")
	case ev.Dirty:
		c.setFault(why + ", written since the last checkpoint")
	case len(c.pages) >= maxDamaged:
		c.setFault(fmt.Sprintf("%s, one of more than %d", why, maxDamaged))
	default:
		if c.pages == nil {
			c.pages = make(map[uint32]damagedPage)
		}
		c.fetch(ev.Page, c.captured)
	}
	c.giveUp = c.fault != ""
}

func (c *Core) fetch(page uint32, since pact.Epoch) {
	c.pages[page] = damagedPage{since: since, stream: c.stream.id}
	c.act(Fetch{Stream: c.stream.id, Page: page, Epoch: since})
}

// fetchAgain asks a replica that goes on where the last stream ended.
func (c *Core) fetchAgain() {
	for _, page := range slices.Sorted(maps.Keys(c.pages)) {
		c.fetch(page, c.pages[page].since)
	}
}

// copied takes the replica's answer.
func (c *Core) copied(ev Copied) {
	p, ok := c.pages[ev.Page]
	if !ok || p.stream != ev.Stream {
		return
	}
	if !ev.Good || ev.Epoch < p.since || ev.Epoch > c.captured {
		c.failPages(fmt.Sprintf("uncorrectable memory error in page %d, and the replica has no copy of epoch %d or later", ev.Page, p.since))
		return
	}
	delete(c.pages, ev.Page)
	c.act(Mend{Page: ev.Page})
}

// loseCopies is for a stream that ends before the replica has answered.
func (c *Core) loseCopies(why string) {
	if len(c.pages) > 0 {
		page := slices.Min(slices.Collect(maps.Keys(c.pages)))
		c.failPages(fmt.Sprintf("uncorrectable memory error in page %d, and %s", page, why))
	}
}

func (c *Core) failPages(why string) {
	clear(c.pages)
	if c.fault != "" {
		return
	}
	c.setFault(why)
	c.giveUp = true
}
