package firmware

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
)

func newRAM(t testing.TB) *memory.RAM {
	t.Helper()
	ram, err := memory.New(memory.MinSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	return ram
}

func newConfig(t testing.TB, files ...File) (*platformtest.Machine, *Config) {
	t.Helper()
	m := platformtest.New(t, memory.MinSize)
	var c *Config
	var err error
	m.Do(func() { c, err = NewConfig(m, 3, files) })
	if err != nil {
		t.Fatal(err)
	}
	return m, c
}

func text(name, s string) File { return File{name, func() []byte { return []byte(s) }} }

// read takes n bytes of an item, one by one.
func read(m *platformtest.Machine, key uint16, n int) []byte {
	m.Out(cfgPort, 2, uint32(key))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.In(cfgPort+cfgData, 1))
	}
	return b
}

func TestItems(t *testing.T) {
	m, _ := newConfig(t, text("opt/one", "first"), text("etc/two", "the second"))
	if got := read(m, keySignature, 6); string(got) != "QEMU\x00\x00" {
		t.Errorf("signature %q", got)
	}
	if got := read(m, keyID, 4); got[0] != idTraditional|idDMA {
		t.Errorf("features %v", got)
	}
	if got := read(m, keyCPUs, 2); got[0] != 3 || got[1] != 0 {
		t.Errorf("CPUs %v", got)
	}
	if got := read(m, 0x7777, 3); !bytes.Equal(got, make([]byte, 3)) {
		t.Errorf("an item that is not there: %v", got)
	}
	d := read(m, keyDirectory, 4+2*64)
	be := binary.BigEndian
	if n := be.Uint32(d); n != 2 {
		t.Fatalf("%d files", n)
	}
	for i, want := range []struct{ name, data string }{{"opt/one", "first"}, {"etc/two", "the second"}} {
		e := d[4+64*i:][:64]
		if name := string(bytes.TrimRight(e[8:], "\x00")); name != want.name || be.Uint32(e) != uint32(len(want.data)) {
			t.Errorf("file %d: %q of %d bytes", i, name, be.Uint32(e))
		}
		if got := read(m, be.Uint16(e[4:]), len(want.data)+2); string(got) != want.data+"\x00\x00" {
			t.Errorf("%s: %q", want.name, got)
		}
	}
}

// dma runs a request at 0x1000 and returns its control field afterwards.
func dma(t testing.TB, m *platformtest.Machine, control, length uint32, addr uint64) uint32 {
	t.Helper()
	be := binary.BigEndian
	r := be.AppendUint64(be.AppendUint32(be.AppendUint32(nil, control), length), addr)
	m.Do(func() {
		if err := m.RAM().Write(0x1000, r); err != nil {
			t.Fatal(err)
		}
	})
	swap := func(v uint32) uint32 { return be.Uint32(binary.LittleEndian.AppendUint32(nil, v)) }
	m.Out(cfgPort+cfgDMAHigh, 4, 0)
	m.Out(cfgPort+cfgDMALow, 4, swap(0x1000))
	var p [4]byte
	m.Do(func() {
		if err := m.RAM().Read(0x1000, p[:]); err != nil {
			t.Fatal(err)
		}
	})
	return be.Uint32(p[:])
}

func TestDMA(t *testing.T) {
	m, _ := newConfig(t, text("opt/one", "0123456789"))
	memory := func(n uint64) string {
		p := make([]byte, n)
		m.Do(func() {
			if err := m.RAM().Read(0x2000, p); err != nil {
				t.Fatal(err)
			}
		})
		return string(p)
	}
	if got := m.In(cfgPort+cfgDMAHigh, 4); got != 0x554d4551 { // "QEMU", as a big-endian register shows it
		t.Errorf("the DMA address reads %#x", got)
	}
	if c := dma(t, m, keyFirstFile<<16|dmaSelect|dmaRead, 4, 0x2000); c != 0 || memory(4) != "0123" {
		t.Errorf("selected and read: control %#x, %q", c, memory(4))
	}
	if c := dma(t, m, dmaSkip, 2, 0); c != 0 {
		t.Errorf("skipped: control %#x", c)
	}
	if c := dma(t, m, dmaRead, 6, 0x2000); c != 0 || memory(6) != "6789\x00\x00" {
		t.Errorf("read on: control %#x, %q", c, memory(6))
	}
	for _, bad := range []struct {
		what    string
		control uint32
		length  uint32
		addr    uint64
	}{
		{"a write", dmaWrite, 1, 0x2000},
		{"a read to where there is no memory", dmaRead, 16, 1 << 40},
		{"a read over the end of memory", dmaRead, 16, 1<<20 - 8},
		{"a read of 4 GiB", dmaRead, 1<<32 - 1, 0x2000},
	} {
		if c := dma(t, m, bad.control, bad.length, bad.addr); c != dmaError {
			t.Errorf("%s: control %#x", bad.what, c)
		}
	}
	m.Do(func() {
		dirty, gone := make([]uint64, m.RAM().DirtyWords()), make([]uint64, m.RAM().DirtyWords())
		m.RAM().HarvestDirty(dirty, gone)
		if dirty[0]&(1<<1) == 0 || dirty[0]&(1<<2) == 0 {
			t.Errorf("pages that were written are not dirty: %b", dirty[0])
		}
	})
}

// TestConfigGoesOnElsewhere: a replica reads on where the primary was.
func TestConfigGoesOnElsewhere(t *testing.T) {
	m, c := newConfig(t, text("opt/one", "0123456789"))
	read(m, keyFirstFile, 3)
	var state []byte
	m.Do(func() { state = c.SaveState(nil) })

	other, d := newConfig(t, text("opt/one", "0123456789"))
	other.Do(func() {
		if err := d.RestoreState(1, state); err != nil {
			t.Fatal(err)
		}
		if err := d.Activate(); err != nil {
			t.Fatal(err)
		}
	})
	if got := other.In(cfgPort+cfgData, 1); got != '3' {
		t.Errorf("the fourth byte is %#x", got)
	}
	other.Do(d.Reset)
	if got := other.In(cfgPort+cfgData, 1); got != 'Q' {
		t.Errorf("after a reset: %#x", got)
	}
	for _, bad := range [][]byte{nil, state[1:], append(bytes.Clone(state), 0), {0, 0, 1, 0, 0, 0xff, 0, 0, 0, 0}} {
		other.Do(func() {
			if d.RestoreState(1, bad) == nil {
				t.Errorf("state %x is accepted", bad)
			}
		})
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte{0, 2, 0x19, 0, 1, 1, 0, 0, 4, 4, 0, 0, 8, 4, 0, 0x10})
	f.Add([]byte{8, 4, 0, 0, 0x10, 0x11})
	f.Fuzz(func(t *testing.T, ops []byte) {
		m, c := newConfig(t, text("opt/one", "0123456789"))
		m.Do(func() {
			// The fuzzer's bytes are a DMA request too.
			_ = m.RAM().Write(0x1000, ops)
		})
		for ; len(ops) >= 4; ops = ops[4:] {
			port, size := cfgPort+uint16(ops[0]%cfgPorts), 1<<(ops[1]%3)
			if int(port)+size > cfgPort+cfgPorts {
				continue
			}
			if ops[0]&0x80 != 0 {
				m.In(port, size)
			} else {
				m.Out(port, size, uint32(ops[2])<<24|uint32(ops[3])<<8)
			}
		}
		m.Do(func() {
			state := c.SaveState(nil)
			if err := c.RestoreState(1, state); err != nil {
				t.Fatalf("a saved state is refused: %v", err)
			}
			if err := c.Activate(); err != nil {
				t.Fatal(err)
			}
			if again := c.SaveState(nil); !bytes.Equal(again, state) {
				t.Fatalf("state %x, then %x", state, again)
			}
		})
	})
}
