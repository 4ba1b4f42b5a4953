package lockstep

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/vmm"
)

// mender is what a machine can do about a page that can't be read.
type mender interface {
	// PageDirty says whether a page has been written since the last capture.
	PageDirty(page int) (bool, error)
	Heal(page int, data []byte) error
	// GiveUpDamage fails whoever waits for a page.
	GiveUpDamage()
	// FoundDamaged says that a page can't be read, and that the guest has not asked for it.
	FoundDamaged(page int)
}

// repair is a page that is to be mended.
type repair struct {
	since time.Duration // on the clock of Config.Now
	copy  []byte        // that the replica has sent
}

// want is a page that the replica is to be asked for, once it has been sent all epochs up to one.
type want struct {
	page  uint32
	epoch pact.Epoch
}

// Damaged takes a page of guest memory that can't be read, from Config.OnMemoryFault of the machine.
func (e *Engine) Damaged(f vmm.MemoryFault) {
	now := e.cfg.Now()
	e.mu.Lock()
	for {
		if e.over || !e.begun {
			e.unlock()
			return
		}
		if e.capturing {
			// Which epoch the page is of is known when the capture is over.
			done := e.settled
			e.unlock()
			<-done
			e.mu.Lock()
			continue
		}
		from := e.core.Captured()
		e.unlock()
		dirty := e.dirty(f.Page)
		e.mu.Lock()
		if e.capturing || e.core.Captured() != from {
			continue // the answer is of another epoch than the question
		}
		page := uint32(f.Page)
		if e.repairs == nil {
			e.repairs = make(map[uint32]*repair)
		}
		if e.repairs[page] == nil {
			e.repairs[page] = &repair{since: now}
		}
		e.step(core.Damaged{Page: page, Dirty: dirty, Needed: !f.Optional})
		e.unlock()
		return
	}
}

// dirty says whether a page may have been written since the newest captured epoch.
func (e *Engine) dirty(page int) bool {
	m, ok := e.cfg.Machine.(mender)
	if !ok {
		return true
	}
	dirty, err := m.PageDirty(page)
	if err != nil {
		e.log.Debug("ask for a damaged page's state", zap.Int("page", page), zap.Error(err))
	}
	return dirty || err != nil
}

// fetch is core.Fetch; e.mu is held.
func (e *Engine) fetch(a core.Fetch) {
	if s := e.stream; s != nil && s.id == a.Stream {
		s.wants = append(s.wants, want{a.Page, a.Epoch})
		s.poke()
	}
}

// takeWanted returns the next request for pages; e.mu is held. Whatever it refers to has been sent.
func (e *Engine) takeWanted(s *stream) *checkpoint.PagesWanted {
	var m checkpoint.PagesWanted
	kept := s.wants[:0]
	for _, w := range s.wants {
		if w.epoch > s.sentUpTo || len(m.Pages) == checkpoint.MaxPagesPerMessage {
			kept = append(kept, w)
			continue
		}
		m.Epoch = max(m.Epoch, w.epoch)
		m.Pages = append(m.Pages, w.page)
	}
	s.wants = kept
	if len(m.Pages) == 0 {
		return nil
	}
	slices.SortFunc(m.Pages, cmp.Compare[uint32])
	m.Pages = slices.Compact(m.Pages)
	return &m
}

// copied takes the replica's copy of a page; e.mu is held.
func (e *Engine) copied(s *stream, m *checkpoint.PageCopy) {
	if r := e.repairs[m.Page]; r != nil {
		r.copy = m.Data
	}
	e.step(core.Copied{Stream: s.id, Page: m.Page, Epoch: m.Epoch, Good: len(m.Data) > 0})
}

// mend is core.Mend; e.mu is held.
func (e *Engine) mend(page uint32) {
	r := e.repairs[page]
	m, ok := e.cfg.Machine.(mender)
	if r == nil || !ok {
		return
	}
	delete(e.repairs, page)
	e.blocked = false
	e.later = append(e.later, func() {
		if err := m.Heal(int(page), r.copy); err != nil {
			e.Fault(err.Error())
			return
		}
		took := e.cfg.Now() - r.since
		e.mu.Lock()
		e.stats.heals++
		e.stats.add(phaseHeal, took)
		e.kick() // a checkpoint may have waited for it
		e.mu.Unlock()
		e.log.Warn("a damaged page of guest memory has been healed", zap.Uint32("page", page), zap.Duration("took", took))
		e.cfg.Host.Healed(int(page), took)
	})
}

// giveUp is core.GiveUp; e.mu is held.
func (e *Engine) giveUp() {
	clear(e.repairs)
	if m, ok := e.cfg.Machine.(mender); ok {
		e.later = append(e.later, m.GiveUpDamage)
	}
}

// sendAgain has pages sent whole with the next epoch, because the replica's copies are of no use. Until they are
// there it acknowledges nothing, so that epoch is captured also where as many are in flight as may be. e.mu is held.
func (e *Engine) sendAgain(s *stream, m *checkpoint.PagesLost) error {
	ram := e.cfg.Machine.RAM()
	for _, p := range m.Pages {
		if err := ram.MarkDirty(int(p)); err != nil {
			return fmt.Errorf("%w: the replica has lost a page that it can't have: %w", checkpoint.ErrCorrupt, err)
		}
	}
	s.forget = append(s.forget, m.Pages...)
	e.stats.resent += uint64(len(m.Pages))
	if m.Differs {
		e.stats.diverged += uint64(len(m.Pages))
	}
	e.endEpoch, e.extra = true, 1
	e.kick()
	e.log.Error("the replica's copies of pages are of no use: they are sent again", zap.Uint32s("pages", m.Pages), zap.Bool("differs", m.Differs))
	e.later = append(e.later, func() { e.cfg.Host.ReplicaLost(m.Pages, m.Differs) })
	return nil
}

// full reports that no more epochs may be in flight. e.mu is held.
func (e *Engine) full() bool { return len(e.inflight) >= e.cfg.InFlight+e.extra }
