package checkpoint

import (
	"bytes"
	"fmt"
	"testing"
)

// givingImage is an image that notes what was given back.
type givingImage struct {
	mem   []byte
	given []string
	fails bool
}

func (g *givingImage) Pages() int { return len(g.mem) / PageSize }

func (g *givingImage) Page(i int) []byte { return g.mem[i*PageSize : (i+1)*PageSize] }

func (g *givingImage) DiscardPages(first, n int) error {
	if g.fails {
		return fmt.Errorf("not today")
	}
	g.given = append(g.given, fmt.Sprintf("%d+%d", first, n))
	clear(g.mem[first*PageSize : (first+n)*PageSize])
	return nil
}

// TestZeroPagesAreGivenBack: an epoch with many zero pages takes no memory on its way, and leaves none
// behind.
func TestZeroPagesAreGivenBack(t *testing.T) {
	const pages = 4096
	ep := &Epoch{Number: 1, Term: 1, State: []byte("state...")}
	// In a synchronization page 40 was copied with content; then the guest gave it back.
	ep.Background = []Page{{Index: 40, Data: bytes.Repeat([]byte{4}, PageSize)}}
	for p := uint32(32); p < 2000; p++ {
		if p == 1000 {
			ep.Pages, ep.Data = append(ep.Pages, p), append(ep.Data, bytes.Repeat([]byte{7}, PageSize)...)
			continue
		}
		ep.Zero = append(ep.Zero, p)
	}
	ep.Zero = append(ep.Zero, 3000, 3001)
	for _, fails := range []bool{false, true} {
		var wire bytes.Buffer
		e := NewEncoder(EncoderConfig{CachePages: 64})
		if _, err := e.Encode(NewWriter(&wire), ep); err != nil {
			t.Fatal(err)
		}
		if wire.Len() > 16<<10 {
			t.Errorf("%d bytes on the wire", wire.Len())
		}
		image := &givingImage{mem: bytes.Repeat([]byte{1}, pages*PageSize), fails: fails}
		m, err := NewReader(&wire, image, DefaultLimits()).Next()
		if err != nil {
			t.Fatal(err)
		}
		s := m.(*Staged)
		if s.PageCount() != 1971 || len(s.blocks) != 1 {
			t.Errorf("%d pages in %d blocks", s.PageCount(), len(s.blocks))
		}
		s.Apply(image)
		s.Release()
		for p := range pages {
			want := byte(1)
			switch {
			case p == 1000:
				want = 7
			case p >= 32 && p < 2000, p == 3000, p == 3001:
				want = 0
			}
			if n := bytes.Count(image.Page(p), []byte{want}); n != PageSize {
				t.Fatalf("page %d: %d bytes are %d", p, n, want)
			}
		}
		if got := fmt.Sprint(image.given); !fails && got != "[32+968 1001+999]" {
			t.Errorf("given back: %s", got)
		}
	}
}
