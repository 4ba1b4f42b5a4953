package pci

import (
	"bytes"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// A reset function is where Host.Add has put it, with no message to send and its line low.
func TestFunctionReset(t *testing.T) {
	m, h := newHost(t)
	p := newPart(t, m, h)
	fresh, base := p.save(m), p.base
	m.Store(config(1)+0x10, 4, platform.PCIWindowBase+0x10_0000) // moved
	m.Store(config(1)+0x04, 2, commandMemory|4)
	m.Store(config(1)+uint64(p.msix.at)+2, 2, 0x8000)
	m.Do(func() {
		table, _ := p.msix.Table()
		table.Write(0, bytes.Repeat([]byte{0x44}, entrySize)) // masked
		p.msix.Trigger(0)
		p.fn.SetINTx(true)
	})
	if p.base != platform.PCIWindowBase+0x10_0000 || bytes.Equal(p.save(m), fresh) {
		t.Fatalf("the function has not changed: window at %#x", p.base)
	}
	m.Do(p.fn.Reset)
	if got := p.save(m); !bytes.Equal(got, fresh) {
		t.Errorf("after a reset:\n%x\nwhen it was made:\n%x", got, fresh)
	}
	if p.base != base {
		t.Errorf("the window is at %#x after a reset, was at %#x", p.base, base)
	}
	m.Do(func() {
		if m.Lines[platform.PCIInterrupt(1)] {
			t.Error("the interrupt line is high after a reset")
		}
	})
}

func (p *part) save(m interface{ Do(func()) }) (b []byte) {
	m.Do(func() { b = p.fn.Save(nil) })
	return b
}
