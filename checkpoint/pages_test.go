package checkpoint

import (
	"bytes"
	"errors"
	"testing"
)

// What a peer says of single pages is bounded, in order and as its sender summed it up.
func TestBadPageMessages(t *testing.T) {
	payload := func(m Message) []byte {
		b, err := appendMessage(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	many := make([]uint32, MaxPagesPerMessage+1)
	for i := range many {
		many[i] = uint32(i)
	}
	for _, m := range []Message{&PagesWanted{Pages: many}, &PagesLost{Pages: many}, &PagesWanted{}, &PageSums{}, &PageSums{Pages: []uint32{1}}, &PageCopy{Data: []byte{1}}} {
		if b, err := appendMessage(nil, m); err == nil {
			t.Errorf("%T makes %d bytes", m, len(b))
		}
	}
	long, err := appendIndexes(make([]byte, 8), many, len(many))
	if err != nil {
		t.Fatal(err)
	}
	damaged := payload(&PageCopy{Page: 1, Epoch: 2, Data: bytes.Repeat([]byte{7}, PageSize)})
	damaged[100] ^= 1
	order := payload(&PagesWanted{Epoch: 1, Pages: []uint32{3, 4}})
	order[10], order[14] = 4, 4
	for _, bad := range []struct {
		name string
		kind frameKind
		p    []byte
		want error
	}{
		{"too many pages wanted", kindPagesWanted, long, ErrLimit},
		{"the same page twice", kindPagesWanted, order, ErrCorrupt},
		{"no page", kindPagesWanted, make([]byte, 10), ErrCorrupt},
		{"a copy that was damaged on its way", kindPageCopy, damaged, ErrCorrupt},
		{"half a copy", kindPageCopy, damaged[:2000], ErrCorrupt},
		{"too many pages lost", kindPagesLost, long[7:], ErrLimit},
		{"sums that end early", kindPageSums, payload(&PageSums{Pages: []uint32{1, 2}, Sums: []uint64{3, 4}})[:22], ErrCorrupt},
		{"a kind that is not known", kindPageSums + 1, nil, ErrCorrupt},
	} {
		if m, err := parseMessage(bad.kind, bad.p); !errors.Is(err, bad.want) {
			t.Errorf("%s: %+v, %v, want %v", bad.name, m, err, bad.want)
		}
	}
}
