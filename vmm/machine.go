// Package vmm is a KVM machine: it runs a guest, pauses it, captures what changed and restores
// it somewhere else.
package vmm

import (
	"errors"
	"time"

	"github.com/pollux-ha/pollux/vmm/memory"
)

var errSkeleton = errors.New("not built yet")

type CPUMask interface {
	// Apply changes the registers of one CPUID leaf before the guest sees it.
	Apply(leaf, index uint32, eax, ebx, ecx, edx *uint32)
}

// Machine is a virtual machine.
type Machine struct{ ram *memory.RAM }

func New(Config) (*Machine, error)                          { return nil, errSkeleton }
func (m *Machine) RAM() *memory.RAM                         { return m.ram }
func (m *Machine) Boot() error                              { return errSkeleton }
func (m *Machine) Start() error                             { return errSkeleton }
func (m *Machine) RequestPause()                            {}
func (m *Machine) Resume()                                  {}
func (m *Machine) Stop() error                              { return errSkeleton }
func (m *Machine) Close() error                             { return errSkeleton }
func (m *Machine) SetDirtyLogging(on bool) error            { return errSkeleton }
func (m *Machine) DirtyCount() (int, error)                 { return 0, errSkeleton }
func (m *Machine) LoadState(b []byte) error                 { return errSkeleton }
func (m *Machine) AdvanceClock(d time.Duration)             {}
func (m *Machine) Emit(nic int, frame []byte) error         { return errSkeleton }
func (m *Machine) Inject(nic int, frame []byte)             {}
func (m *Machine) OnReceive(fn func(nic int, frame []byte)) {}
func (m *Machine) CopyDisk(disk int, offset, n int64)       {}
func (m *Machine) PowerButton()                             {}
func (m *Machine) Heal(page int, data []byte) error         { return errSkeleton }

// Pause is a moment in which no vCPU runs and no device moves.
type Pause struct{ m *Machine }

func (p *Pause) Capture(c *Capture) error { return errSkeleton }

// NewCapture makes one with room for so many pages, touched already. It grows when needed.
func NewCapture(arenaPages int) *Capture { return &Capture{} }
