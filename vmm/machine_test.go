package vmm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
)

func TestGuestRuns(t *testing.T) {
	m := newMachine(t, Config{})
	load(t, m, countCode, nil)
	start(t, m)
	eventually(t, "the guest counts", func() bool { return m.peek(guestData) > 1000 })
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	at := m.peek(guestData)
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	if now := m.peek(guestData); now != at {
		t.Errorf("the guest went on after Stop: %d, then %d", at, now)
	}
	if err := m.Start(); err == nil {
		t.Error("a stopped machine starts without having been loaded")
	}
}

// A guest is paused, captured and resumed; each capture has exactly the page that it writes.
func TestPauseCaptureResume(t *testing.T) {
	const n = 200
	c := NewCapture(1 << 15)
	type step struct {
		pages  int
		others int // besides page tables
		count  uint64
		err    error
	}
	steps := make(chan step)
	cfg := Config{OnPause: func(p *Pause) bool {
		err := p.Capture(c)
		s := step{pages: len(c.Pages), others: len(besidesTables(c.Pages)), err: err}
		for i, page := range c.Pages {
			if page == guestData/memory.PageSize {
				s.count = uint64(c.Data[i*memory.PageSize]) | uint64(c.Data[i*memory.PageSize+1])<<8 |
					uint64(c.Data[i*memory.PageSize+2])<<16 | uint64(c.Data[i*memory.PageSize+3])<<24
			}
		}
		steps <- s
		return true
	}}
	m := newMachine(t, cfg)
	load(t, m, countCode, nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	var last uint64
	for i := range n {
		m.RequestPause()
		s := <-steps
		if s.err != nil {
			t.Fatal(s.err)
		}
		if i == 0 && s.pages != m.RAM().Pages() {
			t.Fatalf("the first capture has %d pages of %d", s.pages, m.RAM().Pages())
		}
		// KVM counts a page as written when it maps it writable for a first read, and the accessed
		// and dirty bits of page tables are writes too: so the first captures hold a little more.
		if i > 3 && s.others != 1 {
			t.Fatalf("capture %d has %d pages: %v", i, s.pages, c.Pages)
		}
		if s.count < last {
			t.Fatalf("capture %d: the count went from %d to %d", i, last, s.count)
		}
		last = s.count
		eventually(t, "the guest goes on", func() bool { return m.peek(guestData)&0xffffffff > last })
	}
	t.Logf("last capture: %+v", c.Timings)
}

func TestRestoreIntoNewMachine(t *testing.T) {
	type image struct {
		ram   []byte
		state []byte
	}
	taken := make(chan image, 1)
	c := NewCapture(1 << 15)
	var m *Machine
	m = newMachine(t, Config{OnPause: func(p *Pause) bool {
		if err := p.Capture(c); err != nil {
			t.Error(err)
		}
		taken <- image{bytes.Clone(m.RAM().Bytes()), bytes.Clone(c.State)}
		return false
	}})
	load(t, m, registersCode, nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	eventually(t, "the guest counts", func() bool { return m.peek(guestData) > 1000 })
	m.RequestPause()
	img := <-taken
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}

	other := newMachine(t, Config{})
	copy(other.RAM().Bytes(), img.ram)
	for range 3 {
		if err := other.LoadState(img.state); err != nil {
			t.Fatal(err)
		}
	}
	at := other.peek(guestData)
	start(t, other)
	if err := other.LoadState(img.state); !errors.Is(err, ErrRunning) {
		t.Errorf("state loaded into a running machine: %v", err)
	}
	eventually(t, "the restored guest goes on", func() bool { return other.peek(guestData) > at+1000 })
	// The guest compares its registers with what it set at its start, and says what differed.
	if bad := other.peek(guestData + 8); bad != 0 {
		t.Errorf("registers differ after the restore: mask %#x", bad)
	}
}

// registersCode sets general and XMM registers, then counts and checks them for ever.
var registersCode = func() []byte {
	c := []byte{
		0x48, 0xc7, 0xc3, 0x00, 0x00, 0x02, 0x00, // mov rbx, guestData
		0x49, 0xbf, 1, 2, 3, 4, 5, 6, 7, 8, // mov r15, 0x0807060504030201
		0x66, 0x49, 0x0f, 0x6e, 0xff, // movq xmm7, r15
		0x66, 0x0f, 0x6c, 0xff, // punpcklqdq xmm7, xmm7
	}
	loop := len(c)
	c = append(c,
		0x48, 0xff, 0x03, // inc qword [rbx]
		0x66, 0x0f, 0x6f, 0xc7, // movdqa xmm0, xmm7
		0x66, 0x0f, 0x73, 0xd8, 0x08, // psrldq xmm0, 8
		0x66, 0x48, 0x0f, 0x7e, 0xc1, // movq rcx, xmm0
		0x4c, 0x31, 0xf9, // xor rcx, r15
		0x48, 0x09, 0x4b, 0x08, // or [rbx+8], rcx
		0x48, 0xba, 1, 2, 3, 4, 5, 6, 7, 8, // mov rdx, 0x0807060504030201
		0x4c, 0x31, 0xfa, // xor rdx, r15
		0x48, 0x09, 0x53, 0x08, // or [rbx+8], rdx
	)
	return append(c, 0xeb, byte(loop-len(c)-2))
}()
