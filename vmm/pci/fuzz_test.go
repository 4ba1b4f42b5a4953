package pci

import (
	"bytes"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

func loadAll(f *Function, b []byte) error {
	r := codec.NewReader(b)
	apply := f.Load(r)
	if err := r.Done(); err != nil {
		return err
	}
	apply()
	return nil
}

// FuzzConfigSpace plays accesses of four bytes each: what and how wide, where (two bytes), the value.
func FuzzConfigSpace(f *testing.F) {
	f.Add([]byte{0x12, 1, 0x10, 0xff, 0x12, 1, 0x14, 0xff, 0x02, 1, 0x10, 0})
	f.Add([]byte{0x12, 1, 0x04, 0, 0x12, 1, 0x42, 0xc0, 0x32, 0, 0, 7})
	f.Fuzz(func(t *testing.T, ops []byte) {
		m, h := newHost(t)
		p, q := newPart(t, m, h), newPart(t, m, h)
		for ; len(ops) >= 4; ops = ops[4:] {
			n := 1 << (ops[0] & 3)
			off := uint64(ops[1])<<8 | uint64(ops[2])
			v := uint64(ops[3]) * 0x0101_0101_0101_0101
			switch ops[0] >> 4 & 7 {
			case 0:
				m.Load(config(int(ops[1]))+uint64(ops[2]), n)
			case 1:
				m.Store(config(int(ops[1]&3))+uint64(ops[2]), n, v)
			case 2: // into the middle of the window
				m.Store(config(int(ops[1]&3))+0x10, 4, platform.PCIWindowBase+uint64(ops[3])<<12)
			case 3:
				m.Out(0xcf8+uint16(off&7), min(n, 4), uint32(v))
			case 4:
				m.In(0xcf8+uint16(off&7), min(n, 4))
			case 5:
				table, size := p.msix.Table()
				if at := off % size; at+uint64(n) <= size {
					m.Do(func() { table.Write(at, bytes.Repeat(ops[3:4], n)) })
				}
			case 6:
				m.Do(func() { p.msix.Trigger(uint16(ops[3])); q.fn.SetINTx(ops[2]&1 != 0) })
			case 7:
				m.Store(platform.ECAMBase+off<<8, n, v)
			}
		}
		state := save(m, p.fn)
		m.Do(func() {
			if err := loadAll(p.fn, state); err != nil {
				t.Fatalf("a state of its own is refused: %v", err)
			}
		})
		if !bytes.Equal(save(m, p.fn), state) {
			t.Fatal("a restore changes the state")
		}
		if p.base != 0 && p.base == q.base {
			t.Fatalf("two windows at %#x", p.base)
		}
	})
}

func FuzzRestore(f *testing.F) {
	m, h := newHost(f)
	p := newPart(f, m, h)
	f.Add(save(m, p.fn), m.Save(h))
	m.Store(config(1)+0x42, 2, 0x8000)
	f.Add(save(m, p.fn), m.Save(h))
	f.Fuzz(func(t *testing.T, function, host []byte) {
		m, h := newHost(t)
		p := newPart(t, m, h)
		if err := m.Restore(h, host); err == nil && !bytes.Equal(m.Save(h), host) {
			t.Fatal("the host's state is not what was restored")
		}
		m.Do(func() {
			if err := loadAll(p.fn, function); err == nil && !bytes.Equal(p.fn.Save(nil), function) {
				t.Fatal("the function's state is not what was restored")
			}
			p.fn.Activate()
		})
	})
}
