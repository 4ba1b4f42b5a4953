package pci

import (
	"bytes"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
)

// part is a device with a base address register, MSI-X and some memory.
type part struct {
	fn    *Function
	msix  *MSIX
	base  uint64
	moves int
	mem   [4096]byte
}

func (p *part) Read(off uint64, data []byte)  { copy(data, p.mem[off:]) }
func (p *part) Write(off uint64, data []byte) { copy(p.mem[off:], data) }

func newPart(t testing.TB, m *platformtest.Machine, h *Host) *part {
	t.Helper()
	p := &part{fn: NewFunction(Config{Vendor: 0x1af4, Device: 0x1234, Class: 0x020000, Interrupt: true})}
	m.Do(func() {
		err := p.fn.AddBAR(0, 4096, p, func(base uint64, mapped bool) {
			p.moves++
			if p.base = base; !mapped {
				p.base = 0
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if p.msix, err = p.fn.AddMSIX(m, 3, 0, 0, 0x800); err != nil {
			t.Fatal(err)
		}
		if err := h.Add(p.fn); err != nil {
			t.Fatal(err)
		}
	})
	return p
}

func newHost(t testing.TB) (*platformtest.Machine, *Host) {
	t.Helper()
	m := platformtest.New(t, 1<<20)
	var h *Host
	m.Do(func() {
		var err error
		if h, err = NewHost(m); err != nil {
			t.Fatal(err)
		}
	})
	return m, h
}

func config(slot int) uint64 { return platform.ECAMBase + uint64(slot)<<15 }

func TestConfigurationMechanisms(t *testing.T) {
	m, h := newHost(t)
	newPart(t, m, h)
	read := func(bdf, reg uint32, n int) uint32 {
		m.Out(0xcf8, 4, 1<<31|bdf<<8|reg&0xfc)
		return m.In(uint16(0xcfc+reg&3), n)
	}
	for _, c := range []struct {
		name     string
		bdf, reg uint32
		n        int
		want     uint32
	}{
		{"host bridge", 0, 0, 4, 0x29c08086},
		{"LPC bridge", 31 << 3, 0, 4, 0x29188086},
		{"power management block", 31 << 3, 0x40, 4, platform.PMBase | 1},
		{"power management block is on", 31 << 3, 0x44, 1, 0x80},
		{"host bridge's class", 0, 8, 4, 0x06000000},
		{"device's vendor", 1 << 3, 0, 2, 0x1af4},
		{"device's id", 1 << 3, 2, 2, 0x1234},
		{"capabilities are announced", 1 << 3, 6, 1, 0x10},
		{"empty slot", 2 << 3, 0, 4, 0xffffffff},
		{"second function", 1<<3 | 1, 0, 4, 0xffffffff},
		{"another bus", 1 << 8, 0, 4, 0xffffffff},
	} {
		if got := read(c.bdf, c.reg, c.n); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
		want := uint64(c.want)
		if got := m.Load(platform.ECAMBase+uint64(c.bdf)<<12+uint64(c.reg), c.n); got != want {
			t.Errorf("%s by ECAM: %#x, want %#x", c.name, got, want)
		}
	}
	m.Out(0xcf8, 4, 0) // not enabled
	if got := m.In(0xcfc, 4); got != 0xffffffff {
		t.Errorf("data port without the enable bit: %#x", got)
	}
	if got := m.Load(config(1)+0x100, 4); got != 0 {
		t.Errorf("extended capabilities: %#x", got)
	}
	m.Store(config(1), 4, 0xdead_beef)
	if got := m.Load(config(1), 4); got != 0x12341af4 {
		t.Errorf("vendor and device can be written: %#x", got)
	}
}

func TestResetRegister(t *testing.T) {
	m, _ := newHost(t)
	m.Out(0xcf9, 1, 0x02)
	if len(m.Power) != 0 {
		t.Fatal("reset without its trigger")
	}
	m.Out(0xcf9, 1, platform.ResetValue)
	if len(m.Power) != 1 || m.Power[0] != platform.Reset {
		t.Fatalf("power events %v", m.Power)
	}
}

func TestBARMoves(t *testing.T) {
	m, h := newHost(t)
	p := newPart(t, m, h)
	if p.base != platform.PCIWindowBase {
		t.Fatalf("placed at %#x", p.base)
	}
	m.Store(p.base+0x10, 4, 0x1234)

	// A guest sizes the register with decoding off (PCI 3.0, section 6.2.5.1).
	m.Store(config(1)+4, 2, 0)
	m.Store(config(1)+0x10, 4, 0xffffffff)
	m.Store(config(1)+0x14, 4, 0xffffffff)
	if got := m.Load(config(1)+0x10, 8); got != 0xffffffff_fffff004 {
		t.Fatalf("size mask %#x", got)
	}
	if got := m.Load(platform.PCIWindowBase+0x10, 4); got != 0xffffffff {
		t.Fatalf("decoding is off, yet a read gives %#x", got)
	}
	const to = platform.PCIWindowEnd - 4096
	m.Store(config(1)+0x10, 4, to)
	m.Store(config(1)+0x14, 4, 0)
	m.Store(config(1)+4, 2, 2)
	if p.base != to || m.Load(to+0x10, 4) != 0x1234 {
		t.Fatalf("moved to %#x, reads %#x", p.base, m.Load(to+0x10, 4))
	}
	for _, bad := range []uint64{0, 0x1000, platform.PCIMemoryBase - 4096, platform.PCIMemoryEnd, platform.ECAMBase, platform.IOAPICBase, platform.FlashBase, ^uint64(0)} {
		m.Store(config(1)+0x10, 8, bad)
		if p.base != 0 {
			t.Errorf("register %#x is decoded at %#x", bad, p.base)
		}
	}
}

// TestBARsGoWhereFirmwarePutsThem: into what is left below 4 GiB, and above RAM.
func TestBARsGoWhereFirmwarePutsThem(t *testing.T) {
	m, h := newHost(t)
	p := newPart(t, m, h)
	for _, to := range []uint64{platform.PCIMemoryBase, platform.PCIMemoryEnd - 4096, platform.ECAMBase - 4096, 1 << 40} {
		m.Store(config(1)+0x10, 8, to)
		m.Store(to+0x10, 4, to>>12)
		if got := m.Load(to+0x10, 4); p.base != to || got != to>>12 {
			t.Errorf("moved to %#x: the window is at %#x and reads %#x", to, p.base, got)
		}
	}
}

func TestHighWindow(t *testing.T) {
	m, h := newHost(t)
	newPart(t, m, h)
	newPart(t, m, h)
	window := func() (base, end uint64) {
		m.Do(func() { base, end = h.HighWindow() })
		return base, end
	}
	if base, end := window(); base != end {
		t.Errorf("nothing is there, and the window is %#x to %#x", base, end)
	}
	m.Store(config(1)+4, 2, 0) // whether it is decoded does not count
	m.Store(config(1)+0x10, 8, 0xe0_0001_0000)
	m.Store(config(2)+0x10, 8, 0xe0_4000_0000)
	if base, end := window(); base != 0xe0_0000_0000 || end != 0xe0_8000_0000 {
		t.Errorf("the window is %#x to %#x", base, end)
	}
	m.Store(config(2)+0x10, 8, ^uint64(0)) // it is asked for its size
	if base, end := window(); base != 0xe0_0000_0000 || end != 0xe0_4000_0000 {
		t.Errorf("one is asked for its size: the window is %#x to %#x", base, end)
	}
}

// TestConfigurationSpaceMoves does what OVMF does with PCIEXBAR, in the way of one device's window.
func TestConfigurationSpaceMoves(t *testing.T) {
	m, h := newHost(t)
	p := newPart(t, m, h)
	const to = 0xb000_0000
	write := func(reg, v uint32) {
		m.Out(0xcf8, 4, 1<<31|reg)
		m.Out(0xcfc, 4, v)
	}
	m.Store(config(1)+0x10, 8, to+0x1000)
	if p.base != to+0x1000 {
		t.Fatalf("the window is at %#x", p.base)
	}
	write(mchPCIEXBAR, 0)
	if got := m.Load(platform.ECAMBase, 4); got != 0xffffffff {
		t.Fatalf("switched off, the space reads %#x", got)
	}
	write(mchPCIEXBAR+4, 0)
	write(mchPCIEXBAR, to|pciexEnable)
	if got := m.Load(to, 4); got != 0x29c08086 {
		t.Fatalf("moved, the space reads %#x", got)
	}
	if base, ok := h.ECAM(); base != to || !ok {
		t.Fatalf("the host has it at %#x, %t", base, ok)
	}
	if p.base != 0 {
		t.Errorf("the device's window is still at %#x, in the space", p.base)
	}
	// Back at power-on; and a restored host has it where the saved one had it.
	var state []byte
	m.Do(func() {
		state = h.SaveState(nil)
		h.Reset()
	})
	if got := m.Load(platform.ECAMBase, 4); got != 0x29c08086 {
		t.Fatalf("after a reset the space reads %#x at its old place", got)
	}
	m.Do(func() {
		if err := h.RestoreState(1, state); err != nil {
			t.Fatal(err)
		}
	})
	if got := m.Load(to, 4); got != 0x29c08086 {
		t.Fatalf("restored, the space reads %#x", got)
	}
	// Over RAM it can't be.
	write(mchPCIEXBAR, 0)
	if _, ok := h.ECAM(); ok || m.Load(to, 4) != 0xffffffff {
		t.Error("switched off, it is still there")
	}
	write(mchPCIEXBAR, 0x1000_0000|pciexEnable)
	if _, ok := h.ECAM(); ok {
		t.Error("it lies over RAM")
	}
}

func TestOverlapDependsOnRegistersAlone(t *testing.T) {
	m, h := newHost(t)
	first, second := newPart(t, m, h), newPart(t, m, h)
	const at = platform.PCIWindowBase + 0x10000
	m.Store(config(2)+0x10, 4, at)
	m.Store(config(1)+0x10, 4, at)
	if first.base != at || second.base != 0 {
		t.Fatalf("bases %#x and %#x: the lower slot must win", first.base, second.base)
	}
	m.Store(config(1)+0x10, 4, at+0x1000)
	if first.base != at+0x1000 || second.base != at {
		t.Fatalf("bases %#x and %#x after they were disentangled", first.base, second.base)
	}
}

func TestMSIX(t *testing.T) {
	m, h := newHost(t)
	p := newPart(t, m, h)
	var m0 = m.MSIs[0]
	cap := uint64(0x40)
	if got := m.Load(config(1)+cap, 4); got != 0x00020011 {
		t.Fatalf("capability %#x", got)
	}
	table, _ := p.msix.Table()
	pba, _ := p.msix.PBA()
	store := func(off uint64, v uint32) {
		m.Do(func() { table.Write(off, []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)}) })
	}
	trigger := func(v uint16) { m.Do(func() { p.msix.Trigger(v) }) }
	pending := func() byte {
		var b [1]byte
		m.Do(func() { pba.Read(0, b[:]) })
		return b[0]
	}
	expect := func(what string, count int, bits byte) {
		t.Helper()
		if m0.Count != count || pending() != bits {
			t.Fatalf("%s: sent %d, pending %#x; want %d and %#x", what, m0.Count, pending(), count, bits)
		}
	}
	trigger(0)
	expect("MSI-X is off", 0, 0)
	m.Store(config(1)+cap+2, 2, 0x8000)
	trigger(0)
	expect("vector is masked", 0, 1)
	store(0, platform.LAPICBase)
	store(8, 0x41)
	store(12, 0)
	expect("unmasked", 1, 0)
	if m0.Addr != platform.LAPICBase || m0.Data != 0x41 {
		t.Fatalf("routed to %#x, %#x", m0.Addr, m0.Data)
	}
	trigger(0)
	expect("open", 2, 0)
	m.Store(config(1)+cap+2, 2, 0xc000)
	trigger(0)
	trigger(0)
	expect("function is masked", 2, 1)
	m.Store(config(1)+cap+2, 2, 0x8000)
	expect("function is unmasked", 3, 0)
	store(12, 1)
	store(8, 0x42)
	if m0.Data != 0x41 {
		t.Fatal("a masked vector was routed")
	}
	store(12, 0)
	if m0.Data != 0x42 || m0.Routes != 2 {
		t.Fatalf("data %#x after %d routes", m0.Data, m0.Routes)
	}
	trigger(3)
	trigger(0xffff)
	expect("vectors that are not there", 3, 0)
	store(0, 0x1000) // no interrupt controller there
	trigger(0)
	expect("a message that leads nowhere", 3, 1)
}

func TestINTx(t *testing.T) {
	m, h := newHost(t)
	var parts []*part
	for range 5 {
		parts = append(parts, newPart(t, m, h))
	}
	a, b := parts[0], parts[4] // slots 1 and 5 share a line
	gsi := platform.PCIInterrupt(1)
	if got := m.Load(config(5)+0x3c, 2); got != uint64(gsi)|0x100 {
		t.Fatalf("interrupt line and pin %#x", got)
	}
	level := func(what string, want bool) {
		t.Helper()
		if m.Lines[gsi] != want {
			t.Fatalf("%s: line is %v", what, m.Lines[gsi])
		}
	}
	m.Do(func() { a.fn.SetINTx(true); b.fn.SetINTx(true) })
	level("both", true)
	m.Do(func() { a.fn.SetINTx(false) })
	level("one is left", true)
	if got := m.Load(config(5)+6, 1); got&8 == 0 {
		t.Fatalf("status %#x does not show the interrupt", got)
	}
	m.Store(config(5)+4, 2, 0x400|2)
	level("disabled by the command register", false)
	m.Store(config(5)+4, 2, 2)
	level("enabled again", true)
	m.Store(config(5)+0x42, 2, 0x8000)
	level("MSI-X is on", false)
}

func save(m *platformtest.Machine, f *Function) (b []byte) {
	m.Do(func() { b = f.Save(nil) })
	return b
}

// holder makes a Stateful of a function.
type holder struct {
	*Function
	id string
}

func (h holder) StateID() string           { return h.id }
func (h holder) StateVersion() uint16      { return 1 }
func (h holder) SaveState(b []byte) []byte { return h.Save(b) }
func (h holder) RestoreState(_ uint16, b []byte) error {
	return loadAll(h.Function, b)
}

func TestRestoreSwapsWindows(t *testing.T) {
	m, h := newHost(t)
	a, b := newPart(t, m, h), newPart(t, m, h)
	before := [][]byte{m.Save(h), save(m, a.fn), save(m, b.fn)}
	x, y := a.base, b.base
	m.Store(config(1)+4, 2, 0)
	m.Store(config(1)+0x10, 4, y)
	m.Store(config(2)+0x10, 4, x)
	m.Store(config(1)+4, 2, 2)
	if a.base != y || b.base != x {
		t.Fatal("windows were not swapped")
	}
	after := [][]byte{m.Save(h), save(m, a.fn), save(m, b.fn)}
	for round, s := range [][][]byte{before, after, after, before} {
		for i, p := range []platform.Stateful{h, holder{a.fn, "a"}, holder{b.fn, "b"}} {
			if err := m.Restore(p, s[i]); err != nil {
				t.Fatal(err)
			}
		}
		wantA, wantB := x, y
		if round == 1 || round == 2 {
			wantA, wantB = y, x
		}
		if a.base != wantA || b.base != wantB {
			t.Fatalf("round %d: windows at %#x and %#x", round, a.base, b.base)
		}
		if !bytes.Equal(save(m, a.fn), s[1]) {
			t.Fatalf("round %d: state changed by a restore", round)
		}
	}
}

func TestRestoreRefusesOtherDevices(t *testing.T) {
	m, h := newHost(t)
	p := newPart(t, m, h)
	good := save(m, p.fn)
	for _, i := range []int{0, 2, 8, 0x10, 0x34, 0x40, configSize, configSize + 1, len(good) - 1} {
		bad := bytes.Clone(good)
		bad[i] ^= 0xfd
		if m.Restore(holder{p.fn, "p"}, bad) == nil {
			t.Errorf("byte %#x may be anything", i)
		}
	}
	for n := range good {
		if m.Restore(holder{p.fn, "p"}, good[:n]) == nil {
			t.Fatalf("a state of %d bytes was taken", n)
		}
	}
	if m.Restore(holder{p.fn, "p"}, append(good, 0)) == nil {
		t.Error("a byte too many was taken")
	}
}

func TestHostIsFull(t *testing.T) {
	m, h := newHost(t)
	for range slots - 2 {
		newPart(t, m, h)
	}
	m.Do(func() {
		if h.Add(NewFunction(Config{})) == nil {
			t.Error("a 33rd device found a slot")
		}
	})
}
