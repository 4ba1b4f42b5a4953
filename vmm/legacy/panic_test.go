package legacy

import (
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
)

func TestPVPanic(t *testing.T) {
	m := newPC(t)
	loaded := 0
	m.Do(func() {
		if _, err := NewPVPanic(m, func() { loaded++ }); err != nil {
			t.Fatal(err)
		}
	})
	if got := m.In(platform.PanicPort, 1); got != 3 {
		t.Errorf("events %#x, want both", got)
	}
	m.Out(platform.PanicPort, 1, 0xf4) // nothing that is known
	if len(m.Power) != 0 || loaded != 0 {
		t.Fatalf("power events %v, %d crash kernels", m.Power, loaded)
	}
	m.Out(platform.PanicPort, 1, panicCrashLoaded)
	if len(m.Power) != 0 || loaded != 1 {
		t.Fatalf("power events %v, %d crash kernels: a guest that dumps by itself goes on", m.Power, loaded)
	}
	for range 3 {
		m.Out(platform.PanicPort, 1, panicCrashLoaded)
	}
	if loaded != 1 {
		t.Fatalf("%d crash kernels: a guest must not fill the log", loaded)
	}
	m.Out(platform.PanicPort, 1, panicPanicked)
	if len(m.Power) != 1 || m.Power[0] != platform.Panicked {
		t.Fatalf("power events %v", m.Power)
	}
}

func TestGeneration(t *testing.T) {
	const gpe = platform.PMBase + platform.GPE0Offset
	make1 := func(m *pc, id GenerationID) (g *Generation) {
		m.Do(func() {
			var err error
			if g, err = NewGeneration(m, m.acpi, id); err != nil {
				t.Fatal(err)
			}
		})
		return g
	}
	shown := func(m *pc) (id GenerationID) {
		m.Do(func() { m.RAM().Read(platform.GenerationPage, id[:]) })
		return id
	}
	dirty := func(m *pc) bool {
		words := make([]uint64, m.RAM().DirtyWords())
		m.RAM().HarvestDirty(words, nil)
		const page = platform.GenerationPage >> 12
		return words[page/64]&(1<<(page%64)) != 0
	}
	first, second, third := GenerationID{1, 2}, GenerationID{3}, GenerationID{4}

	m := newPC(t)
	g := make1(m, first)
	m.Do(func() { g.Set(second) }) // before the guest runs
	m.activate(t)
	m.Machine.Activate(t, g)
	if shown(m) != second || !dirty(m) || m.In(gpe, 2) != 0 {
		t.Fatalf("the guest reads %x, events %#x", shown(m), m.In(gpe, 2))
	}
	m.Machine.Activate(t, g)
	if dirty(m) {
		t.Error("what does not change makes a dirty page")
	}

	m.Out(gpe+2, 2, 1<<platform.GPEGeneration)
	m.Do(func() { g.Set(third) })
	if shown(m) != third || !dirty(m) || !m.Lines[platform.SCIIRQ] || m.In(gpe, 2) != 1 {
		t.Fatalf("the guest reads %x, SCI %v", shown(m), m.Lines[platform.SCIIRQ])
	}
	m = m.move(t)
	m.activate(t)
	if !m.Lines[platform.SCIIRQ] {
		t.Fatal("a takeover loses the event")
	}
	m.Out(gpe, 2, 1)
	if m.Lines[platform.SCIIRQ] {
		t.Fatal("the event stays after it was cleared")
	}

	// A takeover keeps the ID, whatever the other host would have begun with.
	to := newPC(t)
	other := make1(to, first)
	state := m.Save(g)
	if err := to.Restore(other, state); err != nil {
		t.Fatal(err)
	}
	to.Machine.Activate(t, other)
	if shown(to) != third {
		t.Errorf("the guest reads %x after a takeover", shown(to))
	}
	for n := range state {
		if to.Restore(other, state[:n]) == nil {
			t.Errorf("%d of %d bytes were taken", n, len(state))
		}
	}

	// A reset of the guest: RAM is cleared, and the ID is there again before it runs.
	to.Do(func() { other.Reset(); to.RAM().Write(platform.GenerationPage, make([]byte, 16)) })
	to.Machine.Activate(t, other)
	if shown(to) != third {
		t.Errorf("the guest reads %x after a reset", shown(to))
	}
}
