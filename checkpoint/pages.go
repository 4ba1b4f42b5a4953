package checkpoint

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	// MaxPagesPerMessage bounds the pages that one PagesWanted or PagesLost names.
	MaxPagesPerMessage = 64
	// MaxPageSums bounds the pages that one PageSums compares.
	MaxPageSums = 1024
)

// PagesWanted asks the replica for its copies of pages that the primary can't read any more, as of an epoch
// or a later one. It is answered with a PageCopy for each.
type PagesWanted struct {
	Epoch pact.Epoch
	Pages []uint32 // page indexes, strictly ascending
}

// PageCopy is a page as of an epoch, the newest that the replica holds.
type PageCopy struct {
	Page  uint32
	Epoch pact.Epoch
	Data  []byte // PageSize bytes; none: the replica can't help
}

// PagesLost asks the primary to send pages whole with one of the next epochs: the replica's copies of them are
// of no use. Until they are there it acknowledges nothing.
type PagesLost struct {
	Pages   []uint32 // strictly ascending
	Differs bool     // they can be read, but are not what the primary has (PageSums)
}

// PageSums says what pages hold as of an epoch, so that a replica whose image has silently changed notices. It
// follows right after that epoch.
type PageSums struct {
	Epoch pact.Epoch
	Pages []uint32 // strictly ascending
	Sums  []uint64 // XXH3-64 of each
}

func (*PagesWanted) kind() frameKind { return kindPagesWanted }
func (*PageCopy) kind() frameKind    { return kindPageCopy }
func (*PagesLost) kind() frameKind   { return kindPagesLost }
func (*PageSums) kind() frameKind    { return kindPageSums }

// PageSum is the sum of a page in PageSums.
func PageSum(page []byte) uint64 { return xxh3.Hash(page) }

// ZeroPageSum is the sum of a page of zeros.
var ZeroPageSum = PageSum(zeroPage[:])

// appendPageMessage is appendMessage for the messages about single pages.
func appendPageMessage(b []byte, m Message) ([]byte, error) {
	le := binary.LittleEndian
	switch m := m.(type) {
	case *PagesWanted:
		return appendIndexes(le.AppendUint64(b, uint64(m.Epoch)), m.Pages, MaxPagesPerMessage)
	case *PageCopy:
		b = le.AppendUint64(le.AppendUint32(b, m.Page), uint64(m.Epoch))
		b = append(b, boolByte(len(m.Data) > 0))
		switch len(m.Data) {
		case 0:
		case PageSize:
			b = append(le.AppendUint64(b, PageSum(m.Data)), m.Data...)
		default:
			return nil, fmt.Errorf("page %d has %d bytes", m.Page, len(m.Data))
		}
	case *PagesLost:
		return appendIndexes(append(b, boolByte(m.Differs)), m.Pages, MaxPagesPerMessage)
	case *PageSums:
		if len(m.Sums) != len(m.Pages) {
			return nil, fmt.Errorf("%d sums of %d pages", len(m.Sums), len(m.Pages))
		}
		b, err := appendIndexes(le.AppendUint64(b, uint64(m.Epoch)), m.Pages, MaxPageSums)
		for _, s := range m.Sums {
			b = le.AppendUint64(b, s)
		}
		return b, err
	}
	return b, nil
}

func appendIndexes(b []byte, pages []uint32, limit int) ([]byte, error) {
	if len(pages) == 0 || len(pages) > limit {
		return nil, fmt.Errorf("%w: %d pages in one message, at most %d", ErrLimit, len(pages), limit)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(pages)))
	for _, p := range pages {
		b = binary.LittleEndian.AppendUint32(b, p)
	}
	return b, nil
}

// parsePageMessage is parseMessage for the messages about single pages.
func parsePageMessage(k frameKind, p []byte) (Message, error) {
	c := &cursor{b: p}
	switch k {
	case kindPagesWanted:
		m := &PagesWanted{Epoch: pact.Epoch(c.u64())}
		if err := c.indexes(&m.Pages, MaxPagesPerMessage); err != nil {
			return nil, err
		}
		return m, c.end("request for pages")
	case kindPageCopy:
		m := &PageCopy{Page: c.u32(), Epoch: pact.Epoch(c.u64())}
		if c.u8() != 0 {
			sum := c.u64()
			m.Data = append([]byte(nil), c.bytes(PageSize)...)
			if !c.short && PageSum(m.Data) != sum {
				return nil, fmt.Errorf("%w: the copy of page %d is not what its sender has summed up", ErrCorrupt, m.Page)
			}
		}
		return m, c.end("copy of a page")
	case kindPagesLost:
		m := &PagesLost{Differs: c.u8() != 0}
		if err := c.indexes(&m.Pages, MaxPagesPerMessage); err != nil {
			return nil, err
		}
		return m, c.end("list of lost pages")
	case kindPageSums:
		m := &PageSums{Epoch: pact.Epoch(c.u64())}
		if err := c.indexes(&m.Pages, MaxPageSums); err != nil {
			return nil, err
		}
		m.Sums = make([]uint64, len(m.Pages))
		for i := range m.Sums {
			m.Sums[i] = c.u64()
		}
		return m, c.end("sums of pages")
	}
	return nil, fmt.Errorf("%w: unknown frame kind %d", ErrCorrupt, k)
}

// indexes reads a list of page indexes.
func (c *cursor) indexes(into *[]uint32, limit int) error {
	n := int(c.u16())
	if n > limit {
		return fmt.Errorf("%w: %d pages in one message, at most %d", ErrLimit, n, limit)
	}
	if n == 0 && !c.short {
		return fmt.Errorf("%w: a message about no pages", ErrCorrupt)
	}
	list := make([]uint32, n)
	for i := range list {
		list[i] = c.u32()
		if i > 0 && list[i] <= list[i-1] && !c.short {
			return fmt.Errorf("%w: page %d is out of order", ErrCorrupt, list[i])
		}
	}
	*into = list
	return nil
}
