package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
)

const (
	kernelBase = 0x10_0000
	resetPort  = 0x510 // what the guest says arrives here
	resetMark  = 0x40_0000
)

// pvhKernel is an ELF image with a PVH entry: 32-bit protected mode, flat, CPL 0.
func pvhKernel(code []byte) []byte {
	le := binary.LittleEndian
	note := le.AppendUint32(nil, 4)
	note = le.AppendUint32(note, 4)
	note = le.AppendUint32(note, 18) // XEN_ELFNOTE_PHYS32_ENTRY
	note = append(note, "Xen\x00"...)
	note = le.AppendUint32(note, kernelBase)
	const headers = 64 + 2*56
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, kernelBase)
	b = le.AppendUint64(b, 64) // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 2, 64, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	segment := func(kind uint32, at, offset int, p []byte) {
		b = le.AppendUint32(b, kind)
		b = le.AppendUint32(b, 7)
		for _, v := range []int{offset, at, at, len(p), len(p), 4} {
			b = le.AppendUint64(b, uint64(v))
		}
	}
	segment(1, kernelBase, headers, code)
	segment(4, 0, headers+len(code), note)
	return append(append(b, code...), note...)
}

// say writes what lies at an address to resetPort.
func (a *asm) say(address uint32) *asm {
	return a.imm32([]byte{0xa1}, address).edx(resetPort).raw(0xef)
}

// resetAtOnce is a guest that says what it finds at resetMark, leaves a mark there and resets; with a second
// vCPU it starts that one first.
func resetAtOnce(cpus int) []byte {
	const icrHigh, icrLow, flag = 0xfee00310, 0xfee00300, 0x6000
	a := newAsm().say(resetMark)
	if cpus > 1 {
		// In real mode: xor ax,ax; mov ds,ax; mov word [0x6000],3; 1: hlt; jmp 1b
		ap := []byte{0x31, 0xc0, 0x8e, 0xd8, 0xc7, 0x06, 0x00, 0x60, 0x03, 0x00, 0xf4, 0xeb, 0xfd, 0, 0, 0}
		for i := 0; i < len(ap); i += 4 {
			a.store32(0x30000+uint32(i), binary.LittleEndian.Uint32(ap[i:]))
		}
		a.store32(0xfee000f0, 0x1ff).
			store32(icrHigh, 1<<24).store32(icrLow, 0x4500).
			store32(icrHigh, 1<<24).store32(icrLow, 0x4630).
			label("wait").imm32([]byte{0xa1}, flag).raw(0x83, 0xf8, 0x03).short(0x75, "wait")
	}
	return a.store32(resetMark, 7).say(resetMark).
		edx(platform.ResetPort).eax(platform.ResetValue).raw(0xee).label("x").jmp("x").bytes()
}

// sayings collects what a guest says.
type sayings struct {
	mu   sync.Mutex
	said []uint32
}

func (s *sayings) Read(uint64, []byte) {}

func (s *sayings) Write(_ uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, binary.LittleEndian.Uint32(data))
}

func (s *sayings) all() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.said)
}

func listen(t *testing.T, m *Machine) *sayings {
	t.Helper()
	s := &sayings{}
	m.Lock()
	defer m.Unlock()
	if err := m.Ports().Map(resetPort, 4, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// twin is a replica's memory: it follows by captures alone.
type twin struct {
	ram   []byte
	state []byte
}

// follow takes a capture and compares the whole memory.
func (w *twin) follow(m *Machine, p *Pause, c *Capture) error {
	if err := p.Capture(c); err != nil {
		return err
	}
	for i, page := range c.Pages {
		copy(w.ram[int(page)*memory.PageSize:], c.Data[i*memory.PageSize:(i+1)*memory.PageSize])
	}
	for _, page := range c.Zero {
		clear(w.ram[int(page)*memory.PageSize:][:memory.PageSize])
	}
	w.state = bytes.Clone(c.State)
	if !bytes.Equal(w.ram, m.RAM().Bytes()) {
		return errors.New("memory that was captured is not the guest's")
	}
	return nil
}

// A guest resets itself over and over, in the middle of checkpoints. Each boot begins with empty memory and a
// second vCPU that waits, and the replica's memory follows.
func TestResetLoop(t *testing.T) {
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d vCPUs", cpus), func(t *testing.T) {
			const size, boots = 16 << 20, 40
			c := NewCapture(16)
			w := &twin{ram: make([]byte, size)}
			paused, resets := make(chan error, 1), make(chan error, 1000)
			var m *Machine
			m = newMachine(t, Config{MemoryBytes: size, CPUs: cpus, Kernel: pvhKernel(resetAtOnce(cpus)),
				OnPause: func(p *Pause) bool { paused <- w.follow(m, p, c); return true },
				OnPower: func(e platform.PowerEvent) {
					if e != platform.Reset {
						resets <- fmt.Errorf("power event %v", e)
						return
					}
					resets <- m.Reset(nil)
				}})
			s := listen(t, m)
			if err := m.Boot(); err != nil {
				t.Fatal(err)
			}
			if err := m.SetDirtyLogging(true); err != nil {
				t.Fatal(err)
			}
			start(t, m)
			for done := 0; done < boots; {
				m.RequestPause()
				if err := <-paused; err != nil {
					t.Fatal(err)
				}
				for more := true; more; {
					select {
					case err := <-resets:
						if err != nil {
							t.Fatal(err)
						}
						done++
					default:
						more = false
					}
				}
			}
			for i, v := range s.all() {
				if want := uint32(7 * (i % 2)); v != want {
					t.Fatalf("saying %d is %d, want %d: %v", i, v, want, s.all())
				}
			}
			if err := m.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := m.Reset(nil); !errors.Is(err, ErrStopped) {
				t.Errorf("a stopped machine is reset: %v", err)
			}
		})
	}
}

// Whoever takes over in the middle of a reset begins it anew.
func TestResetInterrupted(t *testing.T) {
	const size = 16 << 20
	kernel := pvhKernel(resetAtOnce(1))
	c := NewCapture(16)
	w := &twin{ram: make([]byte, size)}
	asked, paused := make(chan platform.PowerEvent, 10), make(chan error)
	var m *Machine
	m = newMachine(t, Config{MemoryBytes: size, Kernel: kernel,
		OnPause: func(p *Pause) bool { paused <- w.follow(m, p, c); return true },
		OnPower: func(e platform.PowerEvent) { asked <- e }})
	listen(t, m)
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	<-asked
	// Memory is all zero here, and the vCPU is where it was.
	err := m.Reset(func() {
		m.RequestPause()
		if err := <-paused; err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.ram, make([]byte, size)) {
		t.Error("memory is not cleared")
	}
	<-asked // it has booted, and resets again

	again := make(chan error, 100)
	var other *Machine
	other = newMachine(t, Config{MemoryBytes: size, Kernel: kernel, OnPower: func(e platform.PowerEvent) {
		if e != platform.Reset {
			again <- fmt.Errorf("power event %v", e)
			return
		}
		again <- other.Reset(nil)
	}})
	s := listen(t, other)
	copy(other.RAM().Bytes(), w.ram)
	if err := other.LoadState(w.state); err != nil {
		t.Fatal(err)
	}
	start(t, other)
	for range 3 {
		if err := <-again; err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the guest boots", func() bool { return len(s.all()) >= 4 })
	if got := s.all()[:4]; !slices.Equal(got, []uint32{0, 7, 0, 7}) {
		t.Errorf("the guest says %v", got)
	}
}

// A reset waits for the end of a stay, and for nothing once the machine is stopped.
func TestResetInAStay(t *testing.T) {
	const size = 16 << 20
	stay, asked := make(chan bool), make(chan struct{}, 10)
	staying := true
	m := newMachine(t, Config{MemoryBytes: size, Kernel: pvhKernel(newAsm().say(resetMark).store32(resetMark, 7).label("x").jmp("x").bytes()),
		OnPause: func(*Pause) bool { stay <- true; return !staying },
		OnPower: func(platform.PowerEvent) { asked <- struct{}{} }})
	s := listen(t, m)
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	eventually(t, "the guest boots", func() bool { return len(s.all()) == 1 })
	reset := func() <-chan error {
		done := make(chan error, 1)
		go func() { done <- m.Reset(nil) }()
		eventually(t, "the reset is under way", func() bool {
			m.gate.Lock()
			defer m.gate.Unlock()
			return m.gate.power == platform.Reset && m.gate.claimed
		})
		return done
	}
	m.RequestPause()
	<-stay
	done := reset()
	m.RequestPause() // pauses go on in the stay
	<-stay
	select {
	case err := <-done:
		t.Fatalf("a reset in the middle of a stay: %v", err)
	default:
	}
	m.Resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest boots again", func() bool { return len(s.all()) == 2 })
	m.RequestPause()
	<-stay
	done = reset()
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrStopped) {
		t.Errorf("a reset of a machine that is stopped meanwhile: %v", err)
	}
	if len(asked) != 0 {
		t.Error("a reset from outside is reported as the guest's")
	}
}

// What an operator keeps stays as it is until it is reset; a guest that has switched itself off stays off.
func TestDeadGuests(t *testing.T) {
	for _, c := range []struct {
		event platform.PowerEvent
		err   error
	}{
		{platform.Crashed, nil}, {platform.Panicked, nil}, {platform.WatchdogExpired, nil}, {platform.PowerOff, ErrPoweredOff},
	} {
		t.Run(c.event.String(), func(t *testing.T) {
			asked := make(chan platform.PowerEvent, 10)
			m := newMachine(t, Config{MemoryBytes: 16 << 20, Kernel: pvhKernel(newAsm().say(resetMark).label("x").jmp("x").bytes()),
				OnPower: func(e platform.PowerEvent) { asked <- e }})
			s := listen(t, m)
			if err := m.Boot(); err != nil {
				t.Fatal(err)
			}
			start(t, m)
			for boot := 1; boot <= 3; boot++ {
				eventually(t, "the guest boots", func() bool { return len(s.all()) == boot })
				m.Lock()
				m.PowerEvent(c.event)
				m.PowerEvent(platform.Reset) // the first one counts
				m.Unlock()
				if e := <-asked; e != c.event {
					t.Fatalf("power event %v", e)
				}
				if err := m.Reset(nil); !errors.Is(err, c.err) {
					t.Fatalf("reset: %v", err)
				}
				if c.err != nil {
					return
				}
			}
		})
	}
}

// After a reset vCPUs and interrupt controllers are what they were when the machine was made.
func TestResetIsPowerOn(t *testing.T) {
	out := &transcript{}
	tap, _ := wire(t)
	m := newMachine(t, Config{MemoryBytes: 64 << 20, CPUs: 2, Kernel: ledger.Image(), Cmdline: "ip=10.0.0.2/24", Output: out,
		Disks: []DiskConfig{{File: disk(t, 64<<20)}}, Nets: []NetConfig{{Tap: tap, MAC: guestMAC}}})
	made := make([]vcpuState, len(m.vcpus))
	for i, v := range m.vcpus {
		made[i] = v.powerOn
	}
	chips, pit := m.powerOn.chips, m.powerOn.pit
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	eventually(t, "the guest sets its machine up", func() bool {
		return strings.Contains(out.text(), "ledger: ready")
	})
	m.gate.Lock()
	m.gate.power, m.gate.told = platform.Reset, true
	m.callOut()
	run := m.gate.runs
	m.gate.Unlock()
	err := m.exclusive(run, func() error {
		if err := m.resetDevices(); err != nil {
			return err
		}
		if err := m.bootAgain(); err != nil {
			return err
		}
		// Back from the entry to where a vCPU begins, so that all of it can be compared.
		if err := m.resetVCPUs(); err != nil {
			return err
		}
		m.gate.Lock()
		m.gate.power = platform.Reset
		m.gate.Unlock()
		return m.keepPowerOn()
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range m.vcpus {
		if got, want := v.powerOn.append(nil), made[i].append(nil); !bytes.Equal(got, want) {
			t.Errorf("vCPU %d after a reset:\n%+v\nwhen it was made:\n%+v", i, v.powerOn.msrs.Entries[:v.powerOn.msrs.N], made[i].msrs.Entries[:made[i].msrs.N])
			for at := range got {
				if at < len(want) && got[at] != want[at] {
					t.Errorf("the first difference is at byte %d of its state", at)
					break
				}
			}
		}
	}
	if m.powerOn.chips != chips {
		t.Errorf("interrupt controllers after a reset:\n%x\nwhen they were made:\n%x", m.powerOn.chips, chips)
	}
	// The count's time of loading and the status latched with it differ.
	if pit[4] != m.powerOn.pit[4] {
		t.Errorf("timer after a reset: %x, when it was made: %x", m.powerOn.pit, pit)
	}
}

// A guest with devices boots again and serves its network.
func TestLedgerResets(t *testing.T) {
	requireKVM(t)
	out := &transcript{}
	tap, far := wire(t)
	m := newMachine(t, Config{MemoryBytes: 64 << 20, Kernel: ledger.Image(), Cmdline: "ip=10.0.0.2/24", Output: out,
		Disks: []DiskConfig{{File: disk(t, 64<<20)}}, Nets: []NetConfig{{Tap: tap, MAC: guestMAC}}})
	defer func() { t.Logf("console:\n%s", out.text()) }()
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	for boot := 1; boot <= 3; boot++ {
		eventually(t, "the guest is ready", func() bool { return strings.Count(out.text(), "ledger: ready") == boot })
		if _, err := far.Write(whoHas); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the guest answers", out.answered)
		out.mu.Lock()
		out.frames = nil
		out.mu.Unlock()
		if err := m.Reset(nil); err != nil {
			t.Fatal(err)
		}
	}
}
