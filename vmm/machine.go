// Package vmm is a KVM machine: it runs a guest, pauses it, captures what has changed since the last
// capture, and restores it on another host. It knows nothing of replication.
//
// Threads: one for each vCPU, one for I/O (notifications and taps), one worker for each disk. One
// lock, the device lock, serializes the device models; a pause holds it while no vCPU is in the
// guest, so that a capture sees everything at rest.
package vmm

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// Machine is a virtual machine. New makes it; Boot or LoadState gives it something to run; Start
// runs it; Stop ends that, after which it may be loaded and started again; Close frees it.
type Machine struct {
	cfg Config
	log *zap.Logger
	pid int

	ram   *memory.RAM
	vm    *kvm.VM
	vcpus []*vcpu
	dirty dirtyLog

	damage damage

	syncRegs, sregs2 bool
	model            cpu.Model // what the guest sees
	digest           uint64    // of the model
	msrs             []uint32  // what a checkpoint holds of each vCPU, in the order of restoring
	tscKHz           int       // of the guest
	scaledTSC        bool      // it is not the host's

	attention atomic.Bool // vCPU threads come to the gate before they enter the guest
	gate      gate
	spin      bool // there are enough processors for a vCPU's thread to wait awake
	pause     Pause
	threads   sync.WaitGroup

	lock      sync.Mutex // the device lock; it guards all below
	ports     bus.Space
	mmio      bus.Space
	strangers strangers
	io        *ioLoop
	devices   devices
	clock     guestClock
	ready     bool     // booted or loaded, and not run since
	copies    []func() // of disks, that a reset has put off; not nil while there is one
	saveErr   error

	saveOrder    []platform.Stateful
	restoreOrder []platform.Stateful

	powerOn  powerOnState
	stopping sync.Mutex // one Stop at a time
	resets   sync.Mutex // one Reset or Dump at a time
	console  sync.Once
	isClosed atomic.Bool
	closed   chan struct{}
}

// New makes the machine: memory, vCPUs and their threads, devices. Nothing runs yet.
func New(cfg Config) (*Machine, error) {
	if cfg.CPUs < 1 || cfg.CPUs > boot.MaxCPUs {
		return nil, fmt.Errorf("%d vCPUs: must be between 1 and %d", cfg.CPUs, boot.MaxCPUs)
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Output == nil {
		cfg.Output = discard{}
	}
	m := &Machine{cfg: cfg, log: cfg.Log, pid: unix.Getpid(), closed: make(chan struct{})}
	m.pause.m = m
	m.strangers = newStrangers(m.log)
	m.attention.Store(true) // until Start
	if err := m.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("make the machine: %w", err), m.free())
	}
	return m, nil
}

func (m *Machine) build() error {
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	defer sys.Close()
	if err := sys.Check(); err != nil {
		return err
	}
	m.syncRegs, m.sregs2 = sys.HasSyncRegs(), sys.Extension(kvm.CapSregs2) != 0
	if limit := sys.Extension(kvm.CapMaxVCPUs); m.cfg.CPUs > limit {
		return fmt.Errorf("%d vCPUs: this host's KVM allows %d", m.cfg.CPUs, limit)
	}
	if m.ram, err = memory.New(m.cfg.MemoryBytes); err != nil {
		return err
	}
	m.ram.OnDamage(m.mendForDevice)
	m.dirty.init(m.ram.DirtyWords())
	if m.vm, err = sys.CreateVM(); err != nil {
		return err
	}
	if err := m.setUpVM(); err != nil {
		return err
	}
	if m.io, err = newIOLoop(m); err != nil {
		return err
	}
	if err := m.addVCPUs(sys); err != nil {
		return err
	}
	m.Lock()
	err = m.addDevices()
	m.Unlock()
	if err != nil {
		return err
	}
	m.order()
	if err := m.keepPowerOn(); err != nil {
		return err
	}
	return m.startThreads()
}

func (m *Machine) setUpVM() error {
	if err := m.vm.EnableCap(kvm.CapManualDirtyLog, kvm.DirtyLogManual|kvm.DirtyLogInitiallySet); err != nil {
		return fmt.Errorf("set up dirty page tracking: %w", err)
	}
	if err := m.vm.SetTSSAddr(platform.TSSBase); err != nil {
		return err
	}
	if err := m.vm.SetIdentityMapAddr(platform.IdentityMap); err != nil {
		return err
	}
	for slot, r := range m.ram.Regions() {
		if err := m.vm.SetMemory(uint32(slot), r.GPA, m.ram.Bytes()[r.Offset:r.Offset+r.Size], false); err != nil {
			return err
		}
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return err
	}
	return m.vm.CreatePIT2()
}

func (m *Machine) addVCPUs(sys *kvm.System) error {
	xsave := max(m.vm.Extension(kvm.CapXSAVE2), kvm.XSAVESize)
	if xsave > maxXSAVE {
		return fmt.Errorf("an XSAVE area of %d bytes: this program knows up to %d", xsave, maxXSAVE)
	}
	for id := range m.cfg.CPUs {
		c, err := m.vm.CreateVCPU(id)
		if err != nil {
			return err
		}
		v := &vcpu{m: m, id: id, kvm: c}
		v.state.xsave = make([]byte, xsave)
		m.vcpus = append(m.vcpus, v)
		if id == 0 {
			if err := m.chooseCPU(sys, c); err != nil {
				return err
			}
		}
		if err := v.shape(); err != nil {
			return err
		}
		if m.syncRegs {
			c.SyncRegs()
		}
	}
	m.clock.vcpus = make([]vcpuClock, m.cfg.CPUs)
	return nil
}

// order lists the parts of the machine's state. What can raise an interrupt is saved before what
// receives it: the timer and the IOAPIC run beside a pause, and an interrupt that passes between
// may be saved twice but is never lost. They are restored the other way round.
func (m *Machine) order() {
	pit, irqchip := &pitPart{m: m}, &irqchipPart{m: m}
	var devices, vcpus []platform.Stateful
	for _, d := range m.devices.all {
		if s, ok := d.(platform.Stateful); ok {
			devices = append(devices, s)
		}
	}
	for _, v := range m.vcpus {
		vcpus = append(vcpus, v)
	}
	m.saveOrder = append([]platform.Stateful{machinePart{m}, pit, irqchip}, devices...)
	m.saveOrder = append(m.saveOrder, vcpus...)
	m.restoreOrder = append([]platform.Stateful{machinePart{m}}, vcpus...)
	m.restoreOrder = append(m.restoreOrder, irqchip, pit)
	m.restoreOrder = append(m.restoreOrder, devices...)
}

// startThreads starts the threads. Each vCPU's holds one of Go's processors while it is in the
// guest, and so does the I/O thread now and then, so there have to be more of them.
func (m *Machine) startThreads() error {
	if want := runtime.NumCPU() + len(m.vcpus) + 1; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
	m.spin = runtime.NumCPU() > len(m.vcpus)
	m.io.start(m.log)
	ready := make(chan error, len(m.vcpus))
	for _, v := range m.vcpus {
		m.threads.Go(func() { v.thread(ready) })
	}
	var err error
	for range m.vcpus {
		err = errors.Join(err, <-ready)
	}
	return err
}

// mustBeIdle fails while vCPUs may run. The device lock is held.
func (m *Machine) mustBeIdle() error {
	if m.isClosed.Load() {
		return ErrStopped
	}
	m.gate.Lock()
	defer m.gate.Unlock()
	if m.gate.started {
		return ErrRunning
	}
	return nil
}

// LoadState puts the state of a capture into the machine, whose RAM the caller has brought to the
// same checkpoint. It may be repeated, with a later checkpoint each time, and after a Stop. Bad
// bytes are an error that wraps ErrState; the machine can't be started then until a later call
// succeeds.
func (m *Machine) LoadState(b []byte) error {
	m.Lock()
	defer m.Unlock()
	if err := m.mustBeIdle(); err != nil {
		return fmt.Errorf("load the machine's state: %w", err)
	}
	m.ready = false
	if err := platform.RestoreState(b, m.restoreOrder); err != nil {
		return err
	}
	m.clock.loaded, m.clock.advance = true, 0
	m.ready = true
	return nil
}

// Start runs what Boot or LoadState has put into the machine. A loaded machine whose guest had
// asked for power-off does not run; OnPower is called instead.
func (m *Machine) Start() error {
	m.Lock()
	defer m.Unlock()
	if err := m.mustBeIdle(); err != nil {
		return fmt.Errorf("start the guest: %w", err)
	}
	if !m.ready {
		return errors.New("start the guest: nothing is loaded: Boot or LoadState comes first")
	}
	m.forgetDamage()
	if m.clock.loaded && m.clock.advance > 0 {
		m.advanceDevices(m.clock.advance)
	}
	if err := m.setClock(); err != nil {
		return fmt.Errorf("set the guest's clocks: %w", err)
	}
	if err := m.activate(); err != nil {
		return fmt.Errorf("start the guest's devices: %w", err)
	}
	m.kickAll()
	m.ready = false
	if m.cfg.ConsoleIn != nil {
		m.console.Do(func() { go m.feedConsole() })
	}
	m.gate.Lock()
	defer m.gate.Unlock()
	m.gate.started, m.gate.staying = true, false
	m.gate.broken = false
	m.gate.runs++
	m.gate.broadcast()
	return nil
}

// ErrInPause says that Stop was called by OnPause itself. The vCPUs will not run any more and the
// devices stand still, but disk workers have not drained: Stop has to be called again from
// another goroutine.
var ErrInPause = errors.New("stop was called inside of a pause")

// Stop ends the run: when it returns no vCPU is in the guest or will be, the disk workers have
// drained, taps are not read. It may be called at any time, from any goroutine that does not hold
// the device lock, more than once. A stopped machine runs again only after LoadState.
func (m *Machine) Stop() error {
	g := &m.gate
	g.Lock()
	inPause := g.pausing && g.pauser == unix.Gettid()
	g.started, g.staying, g.requested = false, false, false
	m.callOut()
	g.Unlock()
	m.GiveUpDamage() // a device that waits for a page holds the lock
	if inPause {
		m.suspend()
		return ErrInPause
	}
	m.stopping.Lock()
	defer m.stopping.Unlock()
	g.Lock()
	for (g.arrived < len(m.vcpus) || g.pausing || g.saving > 0 || g.busy) && !g.closing {
		g.wait(false)
	}
	g.staying, g.saved = false, 0
	g.round++
	g.Unlock()
	m.Lock()
	m.suspend()
	m.Unlock()
	m.drain()
	return nil
}

// Close stops the machine and frees it. Nothing may use it afterwards, its RAM included.
func (m *Machine) Close() error {
	if m.isClosed.Swap(true) {
		return nil
	}
	err := m.Stop()
	close(m.closed)
	return errors.Join(err, m.free())
}

// free gives back what build has got, all of it or a part.
func (m *Machine) free() error {
	m.gate.Lock()
	m.gate.closing = true
	m.callOut()
	m.gate.Unlock()
	m.threads.Wait()
	var err error
	if m.io != nil {
		m.io.stop()
	}
	m.Lock()
	err = errors.Join(err, m.closeDevices())
	m.Unlock()
	if m.io != nil {
		err = errors.Join(err, m.io.free())
	}
	for _, v := range m.vcpus {
		err = errors.Join(err, v.kvm.Close())
	}
	if m.vm != nil {
		err = errors.Join(err, m.vm.Close())
	}
	if m.ram != nil {
		err = errors.Join(err, m.ram.Close())
	}
	return err
}
