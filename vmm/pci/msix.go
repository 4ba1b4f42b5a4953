package pci

import (
	"encoding/binary"
	"fmt"

	"github.com/pollux-ha/pollux/vmm/bus"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

const (
	capMSIX = 0x11

	msixEnable     = 0x80 // of the message control register's second byte
	msixMask       = 0x40
	entrySize      = 16
	entryControl   = 12
	entryMasked    = 1
	maxMSIXVectors = 64 // one word of pending bits, and more than any device here has queues
)

// MSIX is a function's MSI-X capability: a table of messages and a word of pending bits.
type MSIX struct {
	f       *Function
	at      int // the capability's offset
	table   []byte
	pending uint64
	vectors []vector
}

// vector is what the platform knows of a table entry.
type vector struct {
	msi    platform.MSI
	routed bool
	addr   uint64
	data   uint32
}

// AddMSIX adds n vectors whose table and pending bits lie in a base address register at the given
// offsets. The device maps Table and PBA there. The platform's message sources are made at once, so
// that an interrupt never has to wait for one.
func (f *Function) AddMSIX(p platform.Platform, n, bar int, table, pba uint32) (*MSIX, error) {
	if n < 1 || n > maxMSIXVectors || f.msix != nil {
		return nil, fmt.Errorf("%d MSI-X vectors are not possible here", n)
	}
	m := &MSIX{f: f, table: make([]byte, n*entrySize), vectors: make([]vector, n)}
	var body [10]byte
	binary.LittleEndian.PutUint16(body[0:], uint16(n-1))
	binary.LittleEndian.PutUint32(body[2:], table|uint32(bar))
	binary.LittleEndian.PutUint32(body[6:], pba|uint32(bar))
	at, err := f.AddCapability(capMSIX, body[:], []byte{0, msixEnable | msixMask})
	if err != nil {
		return nil, err
	}
	m.at = at
	for i := range m.vectors {
		m.table[i*entrySize+entryControl] = entryMasked
		if m.vectors[i].msi, err = p.NewMSI(); err != nil {
			m.Close()
			return nil, fmt.Errorf("make MSI-X vector %d: %w", i, err)
		}
	}
	f.msix = m
	return m, nil
}

// Close gives the message sources back.
func (m *MSIX) Close() {
	for i := range m.vectors {
		if v := &m.vectors[i]; v.msi != nil {
			v.msi.Close()
			v.msi = nil
		}
	}
}

// Vectors is the size of the table.
func (m *MSIX) Vectors() int { return len(m.vectors) }

// Enabled says whether the guest uses MSI-X, and so no INTx.
func (m *MSIX) Enabled() bool { return m.f.cfg[m.at+3]&msixEnable != 0 }

// Trigger sends the message of a vector, or keeps it pending while it is masked. Vectors that the
// table does not have are ignored: a guest names one to say that it wants no interrupt.
func (m *MSIX) Trigger(v uint16) {
	if int(v) >= len(m.vectors) || !m.Enabled() {
		return
	}
	if m.blocked(int(v)) || !m.vectors[v].routed {
		m.pending |= 1 << v
		return
	}
	m.vectors[v].msi.Trigger()
}

func (m *MSIX) blocked(v int) bool {
	return m.f.cfg[m.at+3]&msixMask != 0 || m.table[v*entrySize+entryControl]&entryMasked != 0
}

// refresh routes the vectors that may be sent, and with send set sends what is pending among them.
func (m *MSIX) refresh(send bool) {
	if !m.Enabled() {
		return
	}
	for i := range m.vectors {
		v := &m.vectors[i]
		if m.blocked(i) || v.msi == nil {
			continue
		}
		e := m.table[i*entrySize:]
		addr, data := binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint32(e[8:])
		if !v.routed || v.addr != addr || v.data != data {
			// A message that can't be routed stays pending: the guest chose an address that
			// means nothing here.
			v.routed = v.msi.Route(addr, data) == nil
			v.addr, v.data = addr, data
		}
		if send && v.routed && m.pending&(1<<i) != 0 {
			m.pending &^= 1 << i
			v.msi.Trigger()
		}
	}
}

// Table serves the MSI-X table, Size bytes long.
func (m *MSIX) Table() (h bus.Handler, size uint64) { return (*msixTable)(m), uint64(len(m.table)) }

// PBA serves the pending bits.
func (m *MSIX) PBA() (h bus.Handler, size uint64) { return (*msixPBA)(m), 8 }

type msixTable MSIX

func (t *msixTable) Read(off uint64, data []byte) { copy(data, t.table[off:]) }

func (t *msixTable) Write(off uint64, data []byte) {
	for i, v := range data {
		at := int(off) + i
		switch at % entrySize {
		case 0:
			v &^= 3 // the address is aligned
		case entryControl:
			v &= entryMasked
		case entryControl + 1, entryControl + 2, entryControl + 3:
			v = 0
		}
		t.table[at] = v
	}
	(*MSIX)(t).refresh(true)
}

type msixPBA MSIX

func (p *msixPBA) Read(off uint64, data []byte) {
	var w [8]byte
	binary.LittleEndian.PutUint64(w[:], p.pending)
	copy(data, w[off:])
}

func (p *msixPBA) Write(uint64, []byte) {} // read-only

func (m *MSIX) reset() {
	clear(m.table)
	for i := range m.vectors {
		m.table[i*entrySize+entryControl] = entryMasked
		m.vectors[i].routed = false
	}
	m.pending = 0
}

func (m *MSIX) save(b []byte) []byte {
	b = append(b, m.table...)
	return binary.LittleEndian.AppendUint64(b, m.pending)
}

func (m *MSIX) load(r *codec.Reader) (apply func()) {
	table := r.Take(len(m.table))
	pending := r.U64()
	if pending>>len(m.vectors) != 0 {
		r.Failf("pending interrupts %#x of %d vectors", pending, len(m.vectors))
	}
	for i := 0; i+entrySize <= len(table); i += entrySize {
		if table[i]&3 != 0 || binary.LittleEndian.Uint32(table[i+entryControl:]) > entryMasked {
			r.Failf("MSI-X table entry %d", i/entrySize)
		}
	}
	return func() {
		copy(m.table, table)
		m.pending = pending
	}
}
