// Package platformtest is a machine without a CPU, for testing device models: it records what leaves
// the guest, and plays the guest's part in port I/O and MMIO.
package platformtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// Patience bounds how long a test waits for what must happen. It is only ever reached by a failure.
const Patience = 20 * time.Second

// Write is a disk write as Output.DiskWritten reported it, or a range as Output.DiskZeroed did.
type Write struct {
	Disk   int
	Offset int64
	Data   []byte
	Zeros  int64
	Unmap  bool
}

// Apply does the same to an image of the disk.
func (w Write) Apply(image []byte) {
	copy(image[w.Offset:], w.Data)
	clear(image[w.Offset : w.Offset+w.Zeros])
}

// Frame is a frame as Output.Transmit reported it.
type Frame struct {
	NIC  int
	Data []byte
}

// Machine implements platform.Platform and platform.Output. The exported fields are guarded by the
// device lock.
type Machine struct {
	mu    sync.Mutex
	ram   *memory.RAM
	ports bus.Space
	mmio  bus.Space

	notify  map[uint64]*notification
	polls   map[*poll]bool
	changed *sync.Cond // something was recorded

	Frames    []Frame
	Writes    []Write
	Text      bytes.Buffer // console output
	AgentText bytes.Buffer // of the agent's channel
	Power     []platform.PowerEvent
	Lines     map[int]bool // levels of interrupt lines
	MSIs      []*MSI
	// Events is all of the above in the order in which it happened, one short word each:
	// "transmit 0", "write 0 4096+512", "msi 3".
	Events []string
	// OnWrite, if set, sees each disk write when it is reported.
	OnWrite func(Write)
	// NoNotify makes Notify fail, so that notifications arrive as MMIO writes.
	NoNotify bool
}

// New makes a machine with size bytes of RAM. It is closed when the test ends.
func New(t testing.TB, size uint64) *Machine {
	t.Helper()
	ram, err := memory.New(size)
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{ram: ram, notify: map[uint64]*notification{}, polls: map[*poll]bool{}, Lines: map[int]bool{}}
	m.changed = sync.NewCond(&m.mu)
	t.Cleanup(func() { ram.Close() })
	return m
}

// Lock implements platform.Platform.
func (m *Machine) Lock() { m.mu.Lock() }

// Unlock implements platform.Platform.
func (m *Machine) Unlock() {
	m.changed.Broadcast()
	m.mu.Unlock()
}

// Do runs fn with the device lock held.
func (m *Machine) Do(fn func()) {
	m.Lock()
	defer m.Unlock()
	fn()
}

// Wait waits until cond, which runs with the device lock held, is true.
func (m *Machine) Wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	expired := false
	timer := time.AfterFunc(Patience, func() { m.Do(func() { expired = true }) })
	defer timer.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for !cond() {
		if expired {
			t.Fatalf("waited %v for %s", Patience, what)
		}
		m.changed.Wait()
	}
}

// RAM implements platform.Platform.
func (m *Machine) RAM() *memory.RAM { return m.ram }

// Ports implements platform.Platform.
func (m *Machine) Ports() *bus.Space { return &m.ports }

// MMIO implements platform.Platform.
func (m *Machine) MMIO() *bus.Space { return &m.mmio }

// Output implements platform.Platform.
func (m *Machine) Output() platform.Output { return m }

type notification struct {
	m    *Machine
	addr uint64
	fn   func()
}

func (n *notification) Close() error {
	if n.m.notify[n.addr] != n {
		return fmt.Errorf("notification at %#x closed twice", n.addr)
	}
	delete(n.m.notify, n.addr)
	return nil
}

// Notify implements platform.Platform.
func (m *Machine) Notify(addr uint64, fn func()) (platform.Registration, error) {
	if m.NoNotify {
		return nil, fmt.Errorf("no notifications")
	}
	if m.notify[addr] != nil {
		return nil, fmt.Errorf("notification at %#x is there already", addr)
	}
	n := &notification{m, addr, fn}
	m.notify[addr] = n
	return n, nil
}

// Notifications is the number of addresses that are registered. The device lock is held.
func (m *Machine) Notifications() int { return len(m.notify) }

type poll struct {
	m  *Machine
	fd int
	fn func()
}

func (p *poll) Close() error {
	if !p.m.polls[p] {
		return fmt.Errorf("poll of descriptor %d closed twice", p.fd)
	}
	delete(p.m.polls, p)
	return nil
}

// Poll implements platform.Platform; callbacks run in RunPolls.
func (m *Machine) Poll(fd int, fn func()) (platform.Registration, error) {
	p := &poll{m, fd, fn}
	m.polls[p] = true
	return p, nil
}

// Polling says whether any descriptor is polled. The device lock is held.
func (m *Machine) Polling() bool { return len(m.polls) > 0 }

// RunPolls calls back for polled descriptors until none of them is readable, and says how often. The
// device lock is not held.
func (m *Machine) RunPolls() int {
	calls := 0
	for {
		ready := 0
		m.Do(func() {
			for p := range m.polls {
				fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
				if n, err := unix.Poll(fds, 0); n == 1 && err == nil {
					p.fn()
					ready++
				}
			}
		})
		if ready == 0 {
			return calls
		}
		calls += ready
	}
}

// MSI is a recorded message source.
type MSI struct {
	m      *Machine
	Number int
	Addr   uint64
	Data   uint32
	Routes int // calls of Route
	Count  int // calls of Trigger
	Closed bool
}

// NewMSI implements platform.Platform.
func (m *Machine) NewMSI() (platform.MSI, error) {
	s := &MSI{m: m, Number: len(m.MSIs)}
	m.MSIs = append(m.MSIs, s)
	return s, nil
}

// Route implements platform.MSI. Only the LAPIC's range takes messages.
func (s *MSI) Route(addr uint64, data uint32) error {
	if addr>>20 != platform.LAPICBase>>20 {
		return fmt.Errorf("no interrupt controller at %#x", addr)
	}
	s.Addr, s.Data = addr, data
	s.Routes++
	return nil
}

// Trigger implements platform.MSI.
func (s *MSI) Trigger() {
	s.Count++
	s.m.record("msi %d", s.Number)
}

// Close implements platform.MSI.
func (s *MSI) Close() error {
	s.Closed = true
	return nil
}

// SetIRQ implements platform.Platform.
func (m *Machine) SetIRQ(gsi int, level bool) { m.Lines[gsi] = level }

// PowerEvent implements platform.Platform.
func (m *Machine) PowerEvent(e platform.PowerEvent) { m.Power = append(m.Power, e) }

// Transmit implements platform.Output.
func (m *Machine) Transmit(nic int, frame []byte) {
	m.Frames = append(m.Frames, Frame{nic, bytes.Clone(frame)})
	m.record("transmit %d", nic)
}

// Console implements platform.Output.
func (m *Machine) Console(p []byte) { m.Text.Write(p) }

// Agent implements platform.Output.
func (m *Machine) Agent(p []byte) { m.AgentText.Write(p) }

// DiskWritten implements platform.Output.
func (m *Machine) DiskWritten(disk int, offset int64, data []byte) {
	m.record("write %d %d+%d", disk, offset, len(data))
	m.written(Write{Disk: disk, Offset: offset, Data: data})
}

// DiskZeroed implements platform.Output.
func (m *Machine) DiskZeroed(disk int, offset, n int64, unmap bool) {
	m.record("zero %d %d+%d", disk, offset, n)
	m.written(Write{Disk: disk, Offset: offset, Zeros: n, Unmap: unmap})
}

func (m *Machine) written(w Write) {
	m.Writes = append(m.Writes, w)
	if m.OnWrite != nil {
		m.OnWrite(w)
	}
}

func (m *Machine) record(format string, args ...any) {
	if len(m.Events) < 1<<16 { // fuzzing must not fill the memory
		m.Events = append(m.Events, fmt.Sprintf(format, args...))
	}
}

// In reads n bytes (1, 2 or 4) from a port, as the guest does.
func (m *Machine) In(port uint16, n int) uint32 {
	var p [4]byte
	m.Do(func() { m.ports.Read(uint64(port), p[:n]) })
	return binary.LittleEndian.Uint32(p[:])
}

// Out writes n bytes to a port, as the guest does.
func (m *Machine) Out(port uint16, n int, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	m.Do(func() { m.ports.Write(uint64(port), p[:n]) })
}

// Load reads n bytes (1, 2, 4 or 8) of MMIO, as the guest does.
func (m *Machine) Load(addr uint64, n int) uint64 {
	var p [8]byte
	m.Do(func() { m.mmio.Read(addr, p[:n]) })
	return binary.LittleEndian.Uint64(p[:])
}

// Store writes n bytes of MMIO, as the guest does; a notification address runs its callback instead.
func (m *Machine) Store(addr uint64, n int, v uint64) {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], v)
	m.Do(func() {
		if r := m.notify[addr]; r != nil && (n == 2 || n == 4) {
			r.fn()
			return
		}
		m.mmio.Write(addr, p[:n])
	})
}

// Activate activates what can be activated among parts, as a machine does when it starts.
func (m *Machine) Activate(t testing.TB, parts ...any) {
	t.Helper()
	m.Do(func() {
		for _, p := range parts {
			if a, ok := p.(platform.Activator); ok {
				if err := a.Activate(); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// Save returns the state of a part.
func (m *Machine) Save(p platform.Stateful) (state []byte) {
	m.Do(func() { state = p.SaveState(nil) })
	return state
}

// Restore restores a part.
func (m *Machine) Restore(p platform.Stateful, state []byte) (err error) {
	m.Do(func() { err = p.RestoreState(p.StateVersion(), state) })
	return err
}

// CopyRAM makes m's memory equal to that of another machine of the same size.
func (m *Machine) CopyRAM(from *Machine) { copy(m.ram.Bytes(), from.ram.Bytes()) }
