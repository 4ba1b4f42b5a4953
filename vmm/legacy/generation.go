package legacy

import (
	"bytes"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// GenerationID tells a guest which life of itself this is (Microsoft, Virtual Machine Generation ID,
// 2012). It is 16 random-looking bytes, in the layout of a GUID, that stay the same for as long as the
// guest's memory and disks go on, and differ in every copy that has gone another way. Linux mixes a
// changed one into its random numbers, Windows domain controllers give up their USNs for it.
type GenerationID [16]byte

// Generation shows the guest its generation ID: in guest memory at platform.GenerationPage, where the
// ACPI device's ADDR points. It is part of the machine's state, so that a takeover or a switchover
// changes nothing.
type Generation struct {
	p    platform.Platform
	acpi *ACPI
	id   GenerationID
	// runs is between Activate and the next load: a change is told to the guest.
	runs bool
}

// NewGeneration makes the device. The device lock is held.
func NewGeneration(p platform.Platform, acpi *ACPI, id GenerationID) (*Generation, error) {
	if !p.RAM().Contains(platform.GenerationPage, uint64(len(id))) {
		return nil, fmt.Errorf("place the generation ID: %w", memory.ErrRange)
	}
	return &Generation{p: p, acpi: acpi, id: id}, nil
}

// Set changes the ID. A guest that runs hears of it by a general-purpose event. The device lock is held.
func (g *Generation) Set(id GenerationID) {
	if id == g.id {
		return
	}
	g.id = id
	if g.runs {
		g.show()
		g.acpi.RaiseGPE(platform.GPEGeneration)
	}
}

// show writes the ID where the guest looks for it, unless it is there: a page that is as it should be
// must not become a dirty one.
func (g *Generation) show() {
	var now GenerationID
	// The page was there when the device was made, and RAM never shrinks.
	if g.p.RAM().Read(platform.GenerationPage, now[:]) == nil && now != g.id {
		_ = g.p.RAM().Write(platform.GenerationPage, g.id[:])
	}
}

// Activate implements platform.Activator.
func (g *Generation) Activate() error {
	g.show()
	g.runs = true
	return nil
}

// Reset implements platform.Resetter. The ID stays: a guest that boots again is the same.
func (g *Generation) Reset() { g.runs = false }

// StateID implements platform.Stateful.
func (g *Generation) StateID() string { return "generation0" }

// StateVersion implements platform.Stateful.
func (g *Generation) StateVersion() uint16 { return 1 }

// SaveState implements platform.Stateful.
func (g *Generation) SaveState(b []byte) []byte { return append(b, g.id[:]...) }

// RestoreState implements platform.Stateful.
func (g *Generation) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	var id GenerationID
	r.Fill(id[:])
	if err := r.Done(); err != nil {
		return err
	}
	g.id, g.runs = id, false
	return nil
}

// IsZero says that the ID was never set.
func (id GenerationID) IsZero() bool { return bytes.Equal(id[:], make([]byte, len(id))) }
