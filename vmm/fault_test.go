package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// poison makes a page of a machine's RAM behave as if its memory were damaged.
func poison(t *testing.T, ram *memory.RAM, page int) {
	t.Helper()
	err := ram.Poison(page)
	if errors.Is(err, memory.ErrNoPoison) {
		t.Skipf("needs userfaultfd: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// readHeap reads the page whose address is at guestData+0x100 again and again, puts what it saw at
// guestData+8 and counts.
var readHeap = newAsm().ebx(guestData).
	label("again").
	raw(0x48, 0x8b, 0xb3, 0x00, 0x01, 0x00, 0x00). // mov rsi,[rbx+0x100]
	raw(0x48, 0xff, 0x03).                         // inc qword [rbx]
	raw(0x48, 0x8b, 0x06).                         // mov rax,[rsi]
	raw(0x48, 0x89, 0x43, 0x08).                   // mov [rbx+8],rax
	jmp("again").bytes()

func TestHealDamagedPage(t *testing.T) {
	for _, privileged := range []bool{false, true} {
		name := map[bool]string{false: "CPL 3", true: "CPL 0"}[privileged]
		t.Run(name, func(t *testing.T) {
			const page = guestHeap / memory.PageSize
			c := NewCapture(1 << 15)
			faults := make(chan MemoryFault, 10)
			captured := make(chan error)
			m := newMachine(t, Config{
				OnMemoryFault: func(f MemoryFault) { faults <- f },
				OnPause:       func(p *Pause) bool { captured <- p.Capture(c); return true },
			})
			load(t, m, readHeap, nil)
			if privileged {
				e := userEntry()
				e.CS.Selector, e.CS.DPL = selKernelCS, 0
				e.Data = boot.Segment{Selector: selKernelSS, Limit: 0xffffffff, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
				if err := m.vcpus[0].enter(e); err != nil {
					t.Fatal(err)
				}
			}
			content := bytes.Repeat([]byte{0x5a}, memory.PageSize)
			if err := m.RAM().Write(guestData+0x100, binary.LittleEndian.AppendUint64(nil, guestHeap)); err != nil {
				t.Fatal(err)
			}
			if err := m.SetDirtyLogging(true); err != nil {
				t.Fatal(err)
			}
			start(t, m)
			m.RequestPause()
			if err := <-captured; err != nil {
				t.Fatal(err)
			}
			for round := range 20 {
				page := page + round%5 // some of them more than once
				if err := m.RAM().Write(guestData+0x100, binary.LittleEndian.AppendUint64(nil, uint64(page*memory.PageSize))); err != nil {
					t.Fatal(err)
				}
				at := m.peek(guestData)
				eventually(t, "the guest counts", func() bool { return m.peek(guestData) > at+10 })
				m.RequestPause()
				if err := <-captured; err != nil {
					t.Fatal(err)
				}
				poison(t, m.RAM(), page)
				f := <-faults
				if f.Page != page || f.VCPU != 0 || f.Optional {
					t.Fatalf("fault %+v, want page %d of vCPU 0", f, page)
				}
				at = m.peek(guestData)
				// A pause still works; where the access is half done it says that it can't save.
				m.RequestPause()
				if err := <-captured; err != nil && !errors.Is(err, ErrMemoryFault) {
					t.Fatal(err)
				} else if err != nil && !privileged {
					t.Fatalf("the vCPU stands at an instruction boundary: %v", err)
				}
				if now := m.peek(guestData); now != at {
					t.Fatalf("the guest runs on a damaged page: %d, then %d", at, now)
				}
				binary.LittleEndian.PutUint64(content, uint64(round)+1000)
				if err := m.Heal(page, content); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the guest sees the healed page", func() bool { return m.peek(guestData+8) == uint64(round)+1000 })
				m.RequestPause()
				if err := <-captured; err != nil {
					t.Fatal(err)
				}
				if slices.Contains(c.Pages, uint32(page)) {
					t.Fatal("a healed page counts as written")
				}
			}
		})
	}
}

// Damage to a page that has to be copied is an error of the capture, nothing is lost by it, and the
// process lives.
func TestCaptureMeetsDamagedPage(t *testing.T) {
	const page = guestHeap/memory.PageSize + 77
	c := NewCapture(1 << 15)
	faults := make(chan MemoryFault, 10)
	captured := make(chan error)
	m := newMachine(t, Config{
		OnMemoryFault: func(f MemoryFault) { faults <- f },
		OnPause:       func(p *Pause) bool { captured <- p.Capture(c); return true },
	})
	load(t, m, countCode, nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	for i := range 10 {
		m.RequestPause()
		if err := <-captured; err != nil {
			t.Fatal(err)
		}
		victim := page + i
		other := page + 100 + i
		for _, w := range []int{victim, other} {
			if err := m.RAM().Write(uint64(w*memory.PageSize), []byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		poison(t, m.RAM(), victim)
		m.RequestPause()
		if err := <-captured; !errors.Is(err, ErrMemoryFault) {
			t.Fatalf("capture of a damaged page: %v", err)
		}
		if f := <-faults; f.Page != victim || f.VCPU != -1 {
			t.Fatalf("fault %+v, want page %d", f, victim)
		}
		for _, w := range []int{victim, other} { // the twin has an older copy: it must not be taken for this one
			if dirty, err := m.PageDirty(w); err != nil || !dirty {
				t.Errorf("page %d counts as captured by a capture that failed: %v, %v", w, dirty, err)
			}
		}
		content := bytes.Repeat([]byte{byte(i)}, memory.PageSize)
		if err := m.Heal(victim, content); err != nil {
			t.Fatal(err)
		}
		m.RequestPause()
		if err := <-captured; err != nil {
			t.Fatal(err)
		}
		for _, w := range []int{victim, other} {
			if !slices.Contains(c.Pages, uint32(w)) {
				t.Errorf("page %d was lost with the failed capture", w)
			}
		}
	}
}

// A device that meets a damaged page waits for it, and a page that nobody mends is an error to it.
func TestDeviceMeetsDamagedPage(t *testing.T) {
	const page = guestHeap/memory.PageSize + 7
	faults := make(chan MemoryFault, 10)
	m := newMachine(t, Config{OnMemoryFault: func(f MemoryFault) { faults <- f }})
	load(t, m, countCode, nil)
	start(t, m)
	content := bytes.Repeat([]byte{0x77}, memory.PageSize)
	got := make([]byte, 100)
	read := func() chan error {
		done := make(chan error, 1)
		go func() {
			m.Lock()
			defer m.Unlock()
			done <- m.RAM().Read(page*memory.PageSize+5, got)
		}()
		return done
	}
	for range 3 {
		poison(t, m.RAM(), page)
		done := read()
		if f := <-faults; f.Page != page || f.VCPU != -1 || f.Optional || f.Since.IsZero() {
			t.Fatalf("fault %+v, want page %d", f, page)
		}
		if err := m.Heal(page, content); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || !bytes.Equal(got, content[:100]) {
			t.Fatalf("%v, read %v", err, got[:8])
		}
	}
	poison(t, m.RAM(), page)
	done := read()
	<-faults
	m.GiveUpDamage()
	if err := <-done; !errors.Is(err, memory.ErrDamaged) {
		t.Errorf("given up: %v", err)
	}
	if err := <-read(); !errors.Is(err, memory.ErrDamaged) {
		t.Errorf("after that: %v", err)
	}
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
}
