package checkpoint

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestDeltaRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.IntRange(1, 1200).Draw(t, "words")
		old := bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill"), 2, 3, 4, 5, 6, 7, 8}, words)
		new := bytes.Clone(old)
		for range rapid.IntRange(0, 8).Draw(t, "changes") {
			at := rapid.IntRange(0, len(new)-1).Draw(t, "at")
			end := min(len(new), at+rapid.IntRange(1, 3000).Draw(t, "length"))
			for i := at; i < end; i++ {
				new[i]++
			}
		}
		delta, ok := appendDelta(nil, old, new, 1<<20)
		if !ok {
			t.Fatal("gave up below its limit")
		}
		if err := applyDelta(old, delta); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(old, new) {
			t.Fatal("delta leads elsewhere")
		}
	})
}

func TestDeltaGivesUp(t *testing.T) {
	old, new := make([]byte, PageSize), bytes.Repeat([]byte{1}, PageSize)
	dst, ok := appendDelta([]byte("kept"), old, new, maxPageDelta)
	if ok || string(dst) != "kept" {
		t.Errorf("a page changed throughout: %q, %v", dst, ok)
	}
}

func FuzzApplyDelta(f *testing.F) {
	f.Add([]byte{1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 255, 0})
	f.Fuzz(func(t *testing.T, delta []byte) { _ = applyDelta(make([]byte, 256), delta) })
}

func benchmarkDelta(b *testing.B, changed int) {
	old := bytes.Repeat([]byte{3, 1, 4, 1, 5, 9, 2, 6}, PageSize/8)
	new := bytes.Clone(old)
	for i := range changed {
		new[(1000+i)%PageSize] ^= 0x55
	}
	buf := make([]byte, 0, PageSize)
	b.SetBytes(PageSize)
	for b.Loop() {
		if _, ok := appendDelta(buf, old, new, maxPageDelta); !ok {
			b.Fatal("gave up")
		}
	}
}

func BenchmarkDelta16(b *testing.B)  { benchmarkDelta(b, 16) }
func BenchmarkDelta200(b *testing.B) { benchmarkDelta(b, 200) }

func BenchmarkIsZero(b *testing.B) {
	p := make([]byte, PageSize)
	b.SetBytes(PageSize)
	for b.Loop() {
		isZero(p)
	}
}
