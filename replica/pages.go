package replica

import (
	"errors"
	"fmt"
	"maps"
	"runtime/debug"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/replica/core"
)

// errUnreadable says that a page of the image can't be read.
var errUnreadable = errors.New("the memory is damaged")

// copies answers a primary that has lost pages. Only whole images count: their pages are what they were at the
// epoch that the answer names.
func (x *session) copies(m *checkpoint.PagesWanted) error {
	s := x.s
	_, _, whole := s.State()
	for _, p := range m.Pages {
		if int(p) >= s.cfg.RAM.Pages() {
			return fmt.Errorf("%w: page %d of a guest with %d pages is wanted", checkpoint.ErrCorrupt, p, s.cfg.RAM.Pages())
		}
		answer := &checkpoint.PageCopy{Page: p, Epoch: s.image.Epoch}
		if whole && s.image.Epoch >= m.Epoch {
			data := make([]byte, checkpoint.PageSize)
			if err := readPage(data, s.cfg.RAM, p); err == nil {
				answer.Data = data
			} else {
				s.log.Error("a page that the primary needs can't be read here either", zap.Uint32("page", p), zap.Error(err))
				s.LosePage(p)
			}
		}
		s.log.Info("the primary asks for a page that it can't read", zap.Uint32("page", p), zap.Uint64("epoch", uint64(answer.Epoch)), zap.Bool("have", answer.Data != nil))
		if err := x.write(answer); err != nil {
			return err
		}
	}
	return nil
}

// readPage copies a page of the image that may be damaged.
func readPage(into []byte, image checkpoint.Base, page uint32) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			err = errUnreadable
		}
	}()
	copy(into, image.Page(int(page)))
	return nil
}

// LosePage says that a page of the image is damaged, or does not hold what it should. While a primary is there it
// is asked to send the page again.
func (s *Side) LosePage(page uint32) {
	s.mu.Lock()
	if s.losing == nil {
		s.losing = make(map[uint32]bool)
	}
	s.losing[page] = true
	s.mu.Unlock()
	s.Step(core.PagesLost{})
}

// stepStaged is Step for an epoch. A page that was lost while it was being read counts.
func (s *Side) stepStaged(e core.Staged) {
	s.mu.Lock()
	e.Lost = e.Lost || len(s.losing) > 0
	s.step(e)
	s.mu.Unlock()
}

// takeLosing returns the pages that were lost since the last call.
func (s *Side) takeLosing() map[uint32]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.losing
	s.losing = nil
	return l
}

// askAgain has the primary asked for pages that are of no use here, each once on this stream. It is called with
// every message: while there is a stream they come often.
func (x *session) askAgain() error {
	for p := range x.s.takeLosing() {
		x.reader.Lose(p)
	}
	lost := x.reader.Lost()
	x.s.image.lost = lost // for a stream that goes on where this one ends
	if len(lost) == 0 {
		x.askedFor = nil
		return nil
	}
	var m checkpoint.PagesLost
	for _, p := range lost {
		if !x.askedFor[p] && len(m.Pages) < checkpoint.MaxPagesPerMessage {
			m.Pages = append(m.Pages, p)
		}
	}
	if len(m.Pages) == 0 {
		return nil
	}
	asked := make(map[uint32]bool, len(lost))
	for _, p := range lost { // those that have come may be lost once more
		asked[p] = x.askedFor[p]
	}
	for _, p := range m.Pages {
		asked[p] = true
	}
	x.askedFor = asked
	x.s.log.Error("pages of the image are of no use: the primary is to send them again", zap.Uint32s("pages", m.Pages))
	x.s.Step(core.PagesLost{})
	return x.write(&m)
}

// compare looks whether pages of the image are what the primary says. It speaks of one epoch only.
func (x *session) compare(m *checkpoint.PageSums) error {
	s := x.s
	if _, _, whole := s.State(); !whole || s.image.Epoch != m.Epoch {
		return nil
	}
	differs := &checkpoint.PagesLost{Differs: true}
	content := make([]byte, checkpoint.PageSize)
	for i, p := range m.Pages {
		if int(p) >= s.cfg.RAM.Pages() {
			return fmt.Errorf("%w: the sum of page %d of a guest with %d pages", checkpoint.ErrCorrupt, p, s.cfg.RAM.Pages())
		}
		sum, err := s.pageSum(content, p)
		switch {
		case err != nil:
			s.log.Error("a page of the image can't be read", zap.Uint32("page", p), zap.Error(err))
			s.LosePage(p)
		case sum != m.Sums[i] && len(differs.Pages) < checkpoint.MaxPagesPerMessage && !x.askedFor[p]:
			differs.Pages = append(differs.Pages, p)
		}
	}
	if len(differs.Pages) == 0 {
		return nil
	}
	s.log.Error("pages of the image are not what the primary has: it is to send them again", zap.Uint32s("pages", differs.Pages), zap.Uint64("epoch", uint64(m.Epoch)))
	asked := maps.Clone(x.askedFor)
	if asked == nil {
		asked = make(map[uint32]bool)
	}
	for _, p := range differs.Pages {
		x.reader.Lose(p)
		asked[p] = true
	}
	x.askedFor = asked
	s.Step(core.PagesLost{})
	return x.write(differs)
}

// sparse is an image that knows which of its pages the host keeps memory for.
type sparse interface {
	Populated(from int) (start, end int, err error)
}

func (s *Side) pageSum(buf []byte, page uint32) (uint64, error) {
	if ram, ok := s.cfg.RAM.(sparse); ok {
		if start, _, err := ram.Populated(int(page)); err == nil && start > int(page) {
			return checkpoint.ZeroPageSum, nil
		}
	}
	if err := readPage(buf, s.cfg.RAM, page); err != nil {
		return 0, err
	}
	return checkpoint.PageSum(buf), nil
}
