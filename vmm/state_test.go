package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// snapshot runs the code until cond holds and returns memory and state of that moment.
func snapshot(t testing.TB, cfg Config, code []byte, cond func(*Machine) bool) (*Machine, []byte, []byte) {
	t.Helper()
	c := NewCapture(1 << 14)
	type image struct{ ram, state []byte }
	images := make(chan image, 1)
	var m *Machine
	cfg.OnPause = func(p *Pause) bool {
		if err := p.Capture(c); err != nil {
			t.Error(err)
		}
		images <- image{bytes.Clone(m.RAM().Bytes()), bytes.Clone(c.State)}
		return false
	}
	m = newMachine(t, cfg)
	load(t, m, code, nil)
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	eventually(t, "the guest gets there", func() bool { return cond(m) })
	m.RequestPause()
	img := <-images
	return m, img.ram, img.state
}

func counts(m *Machine) bool { return m.peek(guestData) > 100 }

func TestStateHasEveryPart(t *testing.T) {
	m, _, state := snapshot(t, Config{CPUs: 2}, countCode, counts)
	for _, p := range m.saveOrder {
		if !bytes.Contains(state, []byte(p.StateID())) {
			t.Errorf("no section %q", p.StateID())
		}
	}
	if len(m.saveOrder) != len(m.restoreOrder) {
		t.Errorf("%d parts are saved, %d restored", len(m.saveOrder), len(m.restoreOrder))
	}
	t.Logf("%d parts, %d bytes", len(m.saveOrder), len(state))
}

// What is restored is what was saved: a capture of a restored machine that has not run is the same
// but for its clocks.
func TestRestoredStateIsTheSame(t *testing.T) {
	_, ram, state := snapshot(t, Config{}, registersCode, counts)
	other := newMachine(t, Config{})
	copy(other.RAM().Bytes(), ram)
	if err := other.LoadState(state); err != nil {
		t.Fatal(err)
	}
	var want, got vcpuState
	if err := want.decode(section(t, state, "vcpu0"), len(other.vcpus[0].state.xsave)); err != nil {
		t.Fatal(err)
	}
	v := other.vcpus[0]
	v.state.msrs.N = want.msrs.N
	for i := range want.msrs.Entries {
		v.state.msrs.Entries[i].Index = want.msrs.Entries[i].Index
	}
	v.synced = true // never enter KVM: read everything by calls
	other.syncRegs = false
	if err := v.state.read(v); err != nil {
		t.Fatal(err)
	}
	got = v.state
	if got.regs != want.regs {
		t.Errorf("registers: %+v, want %+v", got.regs, want.regs)
	}
	if got.sregs != want.sregs {
		t.Errorf("special registers: %+v, want %+v", got.sregs, want.sregs)
	}
	if got.events != want.events || got.debug != want.debug || got.mp != want.mp {
		t.Error("events, debug registers or MP state differ")
	}
	if !bytes.Equal(got.xsave, want.xsave) {
		t.Error("XSAVE areas differ")
	}
	for i := range want.msrs.Entries[:want.msrs.N] {
		w, g := want.msrs.Entries[i], got.msrs.Entries[i]
		if w.Index != msrTSC && w.Index != msrTSCDeadline && w != g {
			t.Errorf("MSR %#x: %#x, want %#x", w.Index, g.Value, w.Value)
		}
	}
}

// section finds a part's payload in a machine's state.
func section(t testing.TB, state []byte, id string) []byte {
	t.Helper()
	for r := state[8 : len(state)-4]; len(r) > 0; {
		n := int(r[0])
		size := binary.LittleEndian.Uint32(r[1+n+2:])
		payload := r[1+n+6:][:size]
		if string(r[1:1+n]) == id {
			return payload
		}
		r = r[1+n+6+int(size):]
	}
	t.Fatalf("no section %q", id)
	return nil
}

func seal(state []byte) []byte {
	body := state[:len(state)-4]
	return binary.LittleEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
}

// Damaged and hostile states are refused or harmless; a good one still loads after them.
func TestHostileState(t *testing.T) {
	_, ram, state := snapshot(t, Config{}, countCode, counts)
	other := newMachine(t, Config{})
	copy(other.RAM().Bytes(), ram)
	rng := rand.New(rand.NewPCG(1, 2))
	refused := 0
	for range 1500 {
		bad := bytes.Clone(state)
		switch rng.IntN(3) {
		case 0:
			bad = bad[:rng.IntN(len(bad))+1]
		default:
			for range 1 + rng.IntN(8) {
				bad[8+rng.IntN(len(bad)-12)] = byte(rng.Uint32())
			}
		}
		if len(bad) > 12 {
			bad = seal(bad)
		}
		if err := other.LoadState(bad); err != nil {
			refused++
			if !errors.Is(err, ErrState) {
				t.Fatalf("an error of another kind: %v", err)
			}
			if err := other.Start(); err == nil {
				t.Fatal("a machine starts after its state was refused")
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	if err := other.LoadState(state); err != nil {
		t.Fatal(err)
	}
	at := other.peek(guestData)
	start(t, other)
	eventually(t, "the guest goes on", func() bool { return other.peek(guestData) > at })
}

func FuzzVCPUState(f *testing.F) {
	s := vcpuState{xsave: make([]byte, kvm.XSAVESize)}
	s.msrs.N = 2
	s.msrs.Entries[0].Index, s.msrs.Entries[1].Index = msrTSC, 0x277
	s.xsave[0], s.xsave[600] = 1, 2
	f.Add(s.append(nil))
	s.wide = true
	f.Add(s.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d vcpuState
		if d.decode(b, kvm.XSAVESize) != nil {
			return
		}
		again := d.append(nil)
		var e vcpuState
		if err := e.decode(again, kvm.XSAVESize); err != nil {
			t.Fatalf("a state that was read can't be read again: %v", err)
		}
		if !bytes.Equal(again, e.append(nil)) {
			t.Fatal("a state changes by being written and read")
		}
	})
}

// rdtscCode keeps the time stamp counter in memory and counts how often it went backwards.
var rdtscCode = newAsm().
	ebx(guestData).
	label("again").
	raw(0x0f, 0x31).             // rdtsc
	raw(0x48, 0xc1, 0xe2, 0x20). // shl rdx,32
	raw(0x48, 0x09, 0xd0).       // or rax,rdx
	raw(0x48, 0x3b, 0x43, 0x10). // cmp rax,[rbx+16]
	short(0x73, "forward").      // jae
	raw(0x48, 0xff, 0x43, 0x18). // inc qword [rbx+24]
	label("forward").
	raw(0x48, 0x89, 0x43, 0x10). // mov [rbx+16],rax
	raw(0x48, 0xff, 0x03).       // inc qword [rbx]
	jmp("again").bytes()

func savedClocks(t *testing.T, state []byte) (tsc uint64, clock time.Duration) {
	var s vcpuState
	if err := s.decode(section(t, state, "vcpu0"), maxXSAVE); err != nil {
		t.Fatal(err)
	}
	tsc, _ = s.take(msrTSC)
	return tsc, time.Duration(binary.LittleEndian.Uint64(section(t, state, "machine")))
}

func TestGuestTime(t *testing.T) {
	for _, advance := range []time.Duration{-time.Hour, 0, 300 * time.Millisecond, 5 * time.Second, 90 * 24 * time.Hour} {
		t.Run(advance.String(), func(t *testing.T) {
			_, ram, state := snapshot(t, Config{CPUs: 1}, rdtscCode, counts)
			tsc0, clock0 := savedClocks(t, state)

			c := NewCapture(1 << 14)
			done := make(chan error)
			other := newMachine(t, Config{OnPause: func(p *Pause) bool { done <- p.Capture(c); return false }})
			copy(other.RAM().Bytes(), ram)
			before := binary.LittleEndian.Uint64(ram[guestData:])
			if err := other.SetDirtyLogging(true); err != nil {
				t.Fatal(err)
			}
			// As a replica does: many checkpoints are loaded, the last one counts, also where it is
			// older than what the machine's clocks have made of the others meanwhile.
			for range 5 {
				if err := other.LoadState(state); err != nil {
					t.Fatal(err)
				}
			}
			other.AdvanceClock(advance)
			begin := time.Now()
			start(t, other)
			other.RequestPause()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			took := time.Since(begin)
			tsc1, clock1 := savedClocks(t, c.State)
			want := max(advance, 0)
			if d := clock1 - clock0; d < want || d > want+took+time.Millisecond {
				t.Errorf("kvmclock moved by %v, want %v to %v", d, want, want+took)
			}
			ns := func(ticks uint64) time.Duration {
				return time.Duration(float64(ticks) / float64(other.tscKHz) * 1e6)
			}
			if !movesTSC(t) {
				t.Log("this KVM gives guests the host's TSC as it is: what it was set to can't be checked")
			} else if d := ns(tsc1 - tsc0); d < want-want/1e6 || d > want+want/1e6+took+time.Millisecond {
				t.Errorf("the TSC moved by %v, want %v to %v", d, want, want+took)
			}
			other.Resume()
			eventually(t, "the guest goes on", func() bool { return other.peek(guestData) > before+1000 })
			if n := other.peek(guestData + 0x18); n != 0 {
				t.Errorf("the guest saw its TSC go backwards %d times", n)
			}
		})
	}
}

// movesTSC says whether KVM has a TSC offset for guests.
func movesTSC(t *testing.T) bool {
	fresh := newMachine(t, Config{})
	c := fresh.vcpus[0].kvm
	if err := setMSR(c, msrTSC, 1<<60); err != nil {
		t.Fatal(err)
	}
	one := kvm.MSRs{N: 1}
	one.Entries[0].Index = msrTSC
	if _, err := c.GetMSRs(&one); err != nil {
		t.Fatal(err)
	}
	return one.Entries[0].Value >= 1<<60
}

// The processor that a guest sees is the configured one, on every start and every host.
func TestOtherCPUsAreRefused(t *testing.T) {
	_, _, state := snapshot(t, Config{}, countCode, counts)
	host, err := HostCPU()
	if err != nil {
		t.Fatal(err)
	}
	if !host.Features.Has("cx16") {
		t.Fatal("the test takes a feature away that this host does not have")
	}
	less := withoutCX16(t, host)
	other := newMachine(t, Config{CPU: &less})
	if err := other.LoadState(state); !errors.Is(err, ErrState) || !errors.Is(err, ErrCPU) {
		t.Errorf("state of another CPU: %v", err)
	}
	same := newMachine(t, Config{CPU: &host.Model})
	if err := same.LoadState(state); err != nil {
		t.Errorf("state of the CPU that this host has: %v", err)
	}
	three := newMachine(t, Config{CPUs: 3})
	if err := three.LoadState(state); !errors.Is(err, ErrState) {
		t.Errorf("state of another number of vCPUs: %v", err)
	}
	more := host.Model
	more.PhysBits++
	if m, err := New(Config{MemoryBytes: 64 << 20, CPUs: 1, CPU: &more}); !errors.Is(err, ErrCPU) {
		t.Errorf("a CPU that this host can't be: %v", err)
		if err == nil {
			m.Close()
		}
	}
}

// withoutCX16 is the host's model without one feature.
func withoutCX16(t *testing.T, host cpu.Host) cpu.Model {
	leaves := host.Leaves(0, 1)
	for i := range leaves {
		if leaves[i].Function == 1 {
			leaves[i].ECX &^= 1 << 13
		}
	}
	less, err := cpu.FromLeaves(leaves, cpu.Facts{Brand: host.Brand, TSCKHz: host.TSCKHz, ArchCaps: host.ArchCaps, Events: host.Events})
	if err != nil {
		t.Fatal(err)
	}
	return less.Model
}

// What KVM tells a vCPU's owner it would show is what the model says, so far as KVM does not fill in what
// changes while the guest runs.
func TestKVMShowsTheModel(t *testing.T) {
	m := newMachine(t, Config{CPUs: 4})
	if shows, err := m.vcpus[0].kvm.CPUID(); err != nil {
		t.Fatal(err)
	} else if one := shows[slices.IndexFunc(shows, func(e kvm.CPUIDEntry) bool { return e.Function == 1 })]; !m.model.Features.Has("xsave") && one.ECX&(1<<26) != 0 {
		t.Skip("needs a KVM that shows what it is told: this one (kvm-pvm) shows XSAVE, which it does not support")
	}
	for id, v := range m.vcpus {
		got, err := v.kvm.CPUID()
		if err != nil {
			t.Fatal(err)
		}
		want := m.model.Leaves(id, 4)
		for _, w := range want {
			i := slices.IndexFunc(got, func(e kvm.CPUIDEntry) bool { return e.Function == w.Function && e.Index == w.Index })
			if i < 0 {
				t.Errorf("vCPU %d: no leaf %#x.%d", id, w.Function, w.Index)
				continue
			}
			g := got[i]
			switch w.Function {
			case 1:
				g.ECX &^= 1 << 27 // OSXSAVE follows CR4
			case 0xd:
				g.EBX, w.EBX = 0, 0 // the size for the XCR0 of the moment
			case 7:
				g.ECX &^= 1 << 4 // OSPKE follows CR4
			}
			if g.EAX != w.EAX || g.EBX != w.EBX || g.ECX != w.ECX || g.EDX != w.EDX {
				t.Errorf("vCPU %d: leaf %#x.%d: %08x %08x %08x %08x, the model has %08x %08x %08x %08x",
					id, w.Function, w.Index, g.EAX, g.EBX, g.ECX, g.EDX, w.EAX, w.EBX, w.ECX, w.EDX)
			}
		}
	}
}
