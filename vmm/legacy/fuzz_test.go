package legacy

import (
	"bytes"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// FuzzPorts plays port accesses of three bytes each: which port, what and how wide, the value.
func FuzzPorts(f *testing.F) {
	f.Add([]byte{0, 0x10, 'x', 1, 0x10, 3, 2, 0, 0, 24, 0x20, 'a', 0, 0, 0})
	f.Add([]byte{8, 0x10, 11, 9, 0x10, 0x86, 8, 0x10, 0, 9, 0x10, 0xff, 9, 0, 0})
	f.Add([]byte{16, 0x10, 0xff, 17, 0x10, 0x34, 18, 0x10, 0x60, 10, 0x11, 0xd1, 11, 0x10, 0xfe})
	f.Fuzz(func(t *testing.T, ops []byte) {
		m := newPC(t)
		m.activate(t)
		ports := []uint16{
			com, com + 1, com + 2, com + 3, com + 4, com + 5, com + 6, com + 7,
			0x70, 0x71, 0x64, 0x60, 0x61, 0x92, 0x80, 0xcf9,
		}
		for i := range uint16(platform.PMWindowSize) {
			ports = append(ports, platform.PMBase+i)
		}
		for ; len(ops) >= 3; ops = ops[3:] {
			port, n := ports[int(ops[0])%len(ports)], 1<<(ops[1]&3)
			v := uint32(ops[2]) * 0x01010101
			switch ops[1] >> 4 & 3 {
			case 0:
				m.In(port, min(n, 4))
			case 1:
				m.Out(port, min(n, 4), v)
			case 2:
				m.Do(func() { m.serial.Input(ops[2:3]); m.acpi.PowerButton() })
			case 3:
				m.now = m.now.Add(-1 << (ops[2] & 63))
				m.clock += 1 << (ops[2] & 31)
			}
		}
		for _, p := range m.parts() {
			state := m.Save(p)
			if err := m.Restore(p, state); err != nil {
				t.Fatalf("%s: a state of its own is refused: %v", p.StateID(), err)
			}
			if !bytes.Equal(m.Save(p), state) {
				t.Fatalf("%s: a restore changes the state", p.StateID())
			}
		}
	})
}

func FuzzRestore(f *testing.F) {
	m := newPC(f)
	for i, p := range m.parts() {
		f.Add(byte(i), m.Save(p))
	}
	f.Fuzz(func(t *testing.T, which byte, state []byte) {
		m := newPC(t)
		p := m.parts()[int(which)%len(m.parts())]
		if err := m.Restore(p, state); err != nil {
			return
		}
		again := m.Save(p)
		if err := m.Restore(p, again); err != nil {
			t.Fatalf("a state of its own is refused: %v", err)
		}
		m.activate(t)
		for i := range uint32(128) {
			m.cmos(i)
			m.setCMOS(i, i)
		}
		for i := range uint16(8) {
			m.In(com+i, 1)
		}
		m.In(platform.PMBase, 4)
	})
}
