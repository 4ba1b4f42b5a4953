package vmm

import (
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// The Machine is its devices' platform. Unless said otherwise the device lock is held.
var _ platform.Platform = (*Machine)(nil)

// Lock takes the device lock.
func (m *Machine) Lock() { m.lock.Lock() }

// Unlock gives it back.
func (m *Machine) Unlock() { m.lock.Unlock() }

// RAM is the guest's memory. Asking for it needs no lock.
func (m *Machine) RAM() *memory.RAM { return m.ram }

// Ports is the space of I/O ports.
func (m *Machine) Ports() *bus.Space { return &m.ports }

// MMIO is guest-physical memory that is not RAM.
func (m *Machine) MMIO() *bus.Space { return &m.mmio }

// Output is where all that leaves the guest goes.
func (m *Machine) Output() platform.Output { return m.cfg.Output }

// Notify implements platform.Platform by an ioeventfd.
func (m *Machine) Notify(addr uint64, fn func()) (platform.Registration, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd for %#x: %w", addr, err)
	}
	if err := m.vm.AddIOEvent(addr, fd); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	r, err := m.io.add(fd, fn)
	if err != nil {
		return nil, errors.Join(err, m.vm.RemoveIOEvent(addr, fd), unix.Close(fd))
	}
	r.notify = true
	r.undo = func() error {
		return errors.Join(m.vm.RemoveIOEvent(addr, fd), unix.Close(fd))
	}
	return r, nil
}

// Poll implements platform.Platform.
func (m *Machine) Poll(fd int, fn func()) (platform.Registration, error) { return m.io.add(fd, fn) }

// NewMSI implements platform.Platform.
func (m *Machine) NewMSI() (platform.MSI, error) { return &msi{m: m}, nil }

// msi is sent by a call into KVM that returns when the interrupt is in the LAPIC. An irqfd costs the
// same, but may leave the delivery to a work queue, behind the back of a checkpoint.
type msi struct {
	m      *Machine
	routed bool
	addr   uint64
	data   uint32
}

func (i *msi) Route(addr uint64, data uint32) error {
	i.addr, i.data, i.routed = addr, data, true
	return nil
}

func (i *msi) Trigger() {
	if !i.routed {
		return
	}
	// A guest can write any address into its table; one that is not a LAPIC's goes nowhere, as it
	// would on a bus.
	if err := i.m.vm.SignalMSI(i.addr, i.data); err != nil {
		i.m.log.Debug("an MSI went nowhere", zap.Error(err))
	}
}

func (i *msi) Close() error {
	i.routed = false
	return nil
}

// SetIRQ implements platform.Platform.
func (m *Machine) SetIRQ(gsi int, level bool) {
	if err := m.vm.SetLine(gsi, level); err != nil {
		m.log.Error("an interrupt line does not move", zap.Int("gsi", gsi), zap.Error(err))
	}
}

// PowerEvent implements platform.Platform. The first event counts.
func (m *Machine) PowerEvent(e platform.PowerEvent) {
	g := &m.gate
	g.Lock()
	defer g.Unlock()
	if g.power == 0 {
		g.power, g.told = e, false
		m.callOut()
	}
}

// discard is the output of a machine without one.
type discard struct{}

func (discard) Transmit(int, []byte)               {}
func (discard) Console([]byte)                     {}
func (discard) Agent([]byte)                       {}
func (discard) DiskWritten(int, int64, []byte)     {}
func (discard) DiskZeroed(int, int64, int64, bool) {}

// kickAll runs what the guest's notifications run. Those that were on their way when a checkpoint
// was taken are not part of it, and one too many does no harm.
func (m *Machine) kickAll() {
	var all []*registration
	for _, r := range m.io.registered {
		if r.notify {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *registration) int { return int(a.token - b.token) })
	for _, r := range all {
		if !r.closed {
			r.fn()
		}
	}
}
