package checkpoint

import (
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// BenchmarkEncode sends 1,000 hot pages of which each epoch changes some bytes, and reports the bytes
// on the wire for each dirtied byte beside the time.
func BenchmarkEncode(b *testing.B) {
	for _, changed := range []int{16, 200} {
		b.Run(fmt.Sprintf("%d_bytes", changed), func(b *testing.B) {
			const pages = 1000
			rnd := rand.New(rand.NewPCG(1, 1))
			e := &Epoch{Data: make([]byte, pages*PageSize), State: make([]byte, 8192)}
			for i := range pages {
				e.Pages = append(e.Pages, uint32(i))
			}
			for i := range e.Data {
				e.Data[i] = byte(rnd.Uint32())
			}
			enc, w := NewEncoder(EncoderConfig{DefaultCachePages}), NewWriter(io.Discard)
			encode := func() Stats {
				e.Number++
				st, err := enc.Encode(w, e)
				if err != nil {
					b.Fatal(err)
				}
				return st
			}
			encode()
			b.SetBytes(pages * PageSize)
			var wire uint64
			n := pact.Epoch(0)
			for b.Loop() {
				b.StopTimer()
				for p := range pages {
					at := p*PageSize + rnd.IntN(PageSize-changed)
					for i := range changed {
						e.Data[at+i] = byte(rnd.Uint32())
					}
				}
				b.StartTimer()
				wire += encode().WireBytes
				n++
			}
			b.ReportMetric(float64(wire)/float64(n)/(pages*PageSize), "wire/dirty")
		})
	}
}
