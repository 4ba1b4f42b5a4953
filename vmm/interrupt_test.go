package vmm

import (
	"testing"
	"time"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// isrCount counts at guestData+16, ends the interrupt and returns.
func isrCount() []byte {
	return newAsm().
		raw(0x50).                               // push rax
		eax(guestData+16).raw(0x48, 0xff, 0x00). // inc qword [rax]
		store32(0xfee000b0, 0).                  // EOI
		raw(0x58, 0x48, 0xcf).                   // pop rax; iretq
		bytes()
}

// interruptible enables the LAPIC and counts.
func interruptible() []byte {
	return append(newAsm().store32(0xfee000f0, 0x1ff).bytes(), countCode...)
}

func TestMSIReachesTheGuest(t *testing.T) {
	m := newMachine(t, Config{})
	load(t, m, interruptible(), isrCount())
	m.Lock()
	i, err := m.NewMSI()
	if err != nil {
		t.Fatal(err)
	}
	i.Trigger() // without a route: nothing
	if err := i.Route(0xfee00000, 0x40); err != nil {
		t.Fatal(err)
	}
	m.Unlock()
	start(t, m)
	eventually(t, "the guest counts", func() bool { return m.peek(guestData) > 1000 })
	for n := uint64(1); n <= 20; n++ {
		m.Lock()
		i.Trigger()
		m.Unlock()
		eventually(t, "the interrupt arrives", func() bool { return m.peek(guestData+16) == n })
	}
	at := m.peek(guestData)
	eventually(t, "the guest goes on", func() bool { return m.peek(guestData) > at })
}

func TestNotify(t *testing.T) {
	const addr = 0xd0001000
	m := newMachine(t, Config{})
	code := newAsm().
		label("again").store32(addr, 7).
		ebx(guestData).raw(0x48, 0xff, 0x03).                                            // inc qword [rbx]
		label("wait").raw(0x48, 0x8b, 0x43, 0x08, 0x48, 0x3b, 0x03).short(0x7c, "wait"). // while [rbx+8] < [rbx]
		jmp("again").bytes()
	load(t, m, code, nil)
	heard := make(chan struct{}, 100)
	m.Lock()
	r, err := m.Notify(addr, func() { heard <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	m.Unlock()
	start(t, m)
	<-heard // Start itself notifies
	grant := func(n uint64) {
		if err := m.RAM().Write(guestData+8, []byte{byte(n), 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
	}
	for n := uint64(1); n <= 10; n++ {
		<-heard
		eventually(t, "the guest goes on at once", func() bool { return m.peek(guestData) == n })
		grant(n)
	}
	<-heard
	m.Lock()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	m.Unlock()
	grant(20)
	eventually(t, "the guest goes on", func() bool { return m.peek(guestData) == 21 })
	if n := len(heard); n != 0 {
		t.Errorf("%d notifications after Close", n)
	}
}

// The second vCPU waits in the kernel until the first one sends INIT and SIPI.
func TestSecondCPUStartsBySIPI(t *testing.T) {
	const icrHigh, icrLow = 0xfee00310, 0xfee00300
	m := newMachine(t, Config{CPUs: 2})
	code := newAsm().
		store32(0xfee000f0, 0x1ff).
		store32(icrHigh, 1<<24).store32(icrLow, 0x4500). // INIT
		store32(icrHigh, 1<<24).store32(icrLow, 0x4630). // SIPI: 0x3000:0
		bytes()
	load(t, m, append(code, countCode...), nil)
	// In real mode: xor ax,ax; mov ds,ax; 1: inc word [0x9000]; cmp word [0x9000],3; jne 1b; 2: hlt; jmp 2b
	ap := []byte{0x31, 0xc0, 0x8e, 0xd8, 0xff, 0x06, 0x00, 0x90, 0x83, 0x3e, 0x00, 0x90, 0x03, 0x75, 0xf5, 0xf4, 0xeb, 0xfd}
	if err := m.RAM().Write(0x30000, ap); err != nil {
		t.Fatal(err)
	}
	if s, err := m.vcpus[1].kvm.MPState(); err != nil || s != kvm.MPUninitialized {
		t.Fatalf("the second vCPU is in state %d, %v", s, err)
	}
	start(t, m)
	eventually(t, "the second vCPU runs", func() bool { return m.peek(0x9000)&0xffff == 3 })
	eventually(t, "the first one too", func() bool { return m.peek(guestData) > 1000 })
}

// twoCPUs makes a machine whose second vCPU counts at guestData+64.
func twoCPUs(t testing.TB, cfg Config) *Machine {
	cfg.CPUs = 2
	m := newMachine(t, cfg)
	load(t, m, countCode, nil)
	second := newAsm().ebx(guestData+64).label("again").raw(0x48, 0xff, 0x03).jmp("again").bytes()
	if err := m.RAM().Write(guestCode+0x800, second); err != nil {
		t.Fatal(err)
	}
	e := userEntry()
	e.RIP = guestCode + 0x800
	e.TR = boot.Segment{Selector: selTSS, Base: guestTSS, Limit: 0x67, Type: 0xb, Present: 1}
	if err := m.vcpus[1].enter(e); err != nil {
		t.Fatal(err)
	}
	if err := m.vcpus[1].kvm.SetMPState(kvm.MPRunnable); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTwoCPUsPauseTogether(t *testing.T) {
	c := NewCapture(1 << 15)
	paused := make(chan error)
	var m *Machine
	m = twoCPUs(t, Config{OnPause: func(p *Pause) bool {
		before := [2]uint64{m.peek(guestData), m.peek(guestData + 64)}
		err := p.Capture(c)
		if after := [2]uint64{m.peek(guestData), m.peek(guestData + 64)}; before != after {
			t.Errorf("a vCPU runs in a pause: %v, then %v", before, after)
		}
		paused <- err
		return true
	}})
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	for range 100 {
		a, b := m.peek(guestData), m.peek(guestData+64)
		m.RequestPause()
		if err := <-paused; err != nil {
			t.Fatal(err)
		}
		eventually(t, "both go on", func() bool { return m.peek(guestData) > a && m.peek(guestData+64) > b })
	}

	other := newMachine(t, Config{CPUs: 2})
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	copy(other.RAM().Bytes(), m.RAM().Bytes())
	if err := other.LoadState(c.State); err != nil {
		t.Fatal(err)
	}
	other.AdvanceClock(time.Millisecond)
	a, b := other.peek(guestData), other.peek(guestData+64)
	start(t, other)
	eventually(t, "both go on in the new machine", func() bool { return other.peek(guestData) > a+100 && other.peek(guestData+64) > b+100 })
}
