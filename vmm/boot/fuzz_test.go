package boot

import (
	"errors"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// fuzzLoad holds the loader to its promise for any image: an error of a known kind, or an entry point
// within what it has loaded, and not a byte outside of the RAM (Go would panic).
func fuzzLoad(f *testing.F, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s, uint16(0))
		f.Add(s[:len(s)/2], uint16(100))
	}
	ram, err := memory.New(32 << 20)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ram.Close() })
	f.Fuzz(func(t *testing.T, kernel []byte, initrd uint16) {
		e, err := Load(ram, Params{Kernel: kernel, Initrd: make([]byte, initrd), CPUs: 1})
		if err != nil {
			if !errors.Is(err, ErrKernel) && !errors.Is(err, ErrNoRoom) {
				t.Fatalf("error of no known kind: %v", err)
			}
			return
		}
		if e.RIP < kernelMin || e.RIP >= ram.Size() {
			t.Fatalf("entry at %#x, outside of the kernel", e.RIP)
		}
	})
}

func FuzzELF(f *testing.F) {
	fuzzLoad(f,
		makeELF(0x100000, elfSegment{0x100000, 5000, []byte("code")}),
		makeELF(0x200001, elfSegment{0x100000, 16, nil}, elfSegment{0x200000, 8192, []byte("more")}))
}

func FuzzBzImage(f *testing.F) {
	fuzzLoad(f, makeBzImage([]byte("payload")), makeBzImage(make([]byte, 1024)))
}
