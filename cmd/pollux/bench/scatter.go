package bench

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

//go:embed scatter/scatter.elf
var scatterImage []byte

// Where the scatter guest has its mailbox (scatter/scatter.S says what is in it), and the pages that
// it writes to. Guest-physical.
const (
	mailbox = 0x200000
	heap    = 0x400000

	// strideBytes keeps dirty pages apart: copying them is not copying one stretch of memory.
	strideBytes = 2 * memory.PageSize
)

// scatter is a guest that writes to as many pages as it is told.
type scatter struct {
	machine *vmm.Machine
	turn    uint64
	crashed chan platform.PowerEvent
}

// changes say what the guest writes in a turn.
type changes struct {
	pages                 int
	leastBytes, mostBytes int // changed in each page, multiples of 8
}

// newScatter boots one. onPause is the machine's.
func newScatter(memoryBytes uint64, cpus, maxPages int, onPause func(*vmm.Pause) bool) (*scatter, error) {
	g := &scatter{crashed: make(chan platform.PowerEvent, 1)}
	var err error
	g.machine, err = vmm.New(vmm.Config{
		MemoryBytes: memoryBytes, CPUs: cpus, Kernel: scatterImage, OnPause: onPause,
		OnPower: func(e platform.PowerEvent) { g.crashed <- e },
	})
	if err != nil {
		return nil, err
	}
	if err := g.start(maxPages); err != nil {
		return nil, errors.Join(err, g.machine.Close())
	}
	return g, nil
}

func (g *scatter) start(maxPages int) error {
	m := g.machine
	if err := m.Boot(); err != nil {
		return err
	}
	// Memory that was used holds something, and not what compresses away.
	random := rand.NewChaCha8([32]byte{1})
	for i := range maxPages {
		gpa := uint64(heap + i*strideBytes)
		if err := m.RAM().Fill(gpa, memory.PageSize, func(p []byte) error {
			_, err := random.Read(p)
			return err
		}); err != nil {
			return fmt.Errorf("fill the guest's memory: %w", err)
		}
	}
	if err := m.SetDirtyLogging(true); err != nil {
		return err
	}
	return m.Start()
}

func (g *scatter) close() error { return g.machine.Close() }

// tell says what the following turns write.
func (g *scatter) tell(c changes) error {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, heap)
	b = le.AppendUint64(b, strideBytes)
	b = le.AppendUint64(b, uint64(c.pages))
	b = le.AppendUint64(b, uint64(memory.PageSize-c.mostBytes+1))
	b = le.AppendUint64(b, uint64(c.leastBytes/8))
	b = le.AppendUint64(b, uint64((c.mostBytes-c.leastBytes)/8+1))
	if err := g.machine.RAM().Write(mailbox+16, b); err != nil {
		return fmt.Errorf("fill in the guest's mailbox: %w", err)
	}
	return nil
}

// write has the guest write once to each page, and waits until it has.
func (g *scatter) write(ctx context.Context) error {
	g.turn++
	if err := g.machine.RAM().Write(mailbox, binary.LittleEndian.AppendUint64(nil, g.turn)); err != nil {
		return fmt.Errorf("fill in the guest's mailbox: %w", err)
	}
	for {
		v, err := g.machine.RAM().View(mailbox+8, 8)
		if err != nil {
			return err
		}
		if binary.LittleEndian.Uint64(v) == g.turn {
			return nil
		}
		// The guest says nothing of its own accord: it has no device, so as to have no costs but its writes.
		select {
		case e := <-g.crashed:
			return fmt.Errorf("the guest has stopped: %s", e)
		case <-ctx.Done():
			return fmt.Errorf("the guest does not write: %w", context.Cause(ctx))
		case <-time.After(100 * time.Microsecond):
		}
	}
}
