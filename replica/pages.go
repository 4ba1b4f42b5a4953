package replica

import (
	"errors"
	"fmt"
	"runtime/debug"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
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
