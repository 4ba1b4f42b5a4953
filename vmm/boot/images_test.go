package boot

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
)

// elfSegment describes a PT_LOAD for makeELF.
type elfSegment struct {
	addr, memSize uint64
	data          []byte
}

// makeELF builds an x86-64 executable with the PVH note and the given segments.
func makeELF(entry uint32, segments ...elfSegment) []byte {
	le := binary.LittleEndian
	note := le.AppendUint32(nil, 4)
	note = le.AppendUint32(note, 4)
	note = le.AppendUint32(note, noteXenPhys32Entry)
	note = append(note, "Xen\x00"...)
	note = le.AppendUint32(note, entry)

	n := len(segments) + 1
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	le.PutUint16(h[16:], 2)
	le.PutUint16(h[18:], 62)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[32:], 64)
	le.PutUint16(h[52:], 64)
	le.PutUint16(h[54:], 56)
	le.PutUint16(h[56:], uint16(n))
	at := uint64(64 + 56*n)
	var body []byte
	header := func(kind uint32, addr, memSize uint64, data []byte) {
		h = le.AppendUint32(h, kind)
		h = le.AppendUint32(h, 7)
		for _, v := range []uint64{at + uint64(len(body)), addr, addr, uint64(len(data)), memSize, 4} {
			h = le.AppendUint64(h, v)
		}
		body = append(body, data...)
	}
	header(4, 0, 0, note)
	for _, s := range segments {
		header(1, s.addr, s.memSize, s.data)
	}
	return append(h, body...)
}

// makeBzImage builds a bzImage whose protected-mode part is payload, as Linux 6 would describe it.
func makeBzImage(payload []byte) []byte {
	le := binary.LittleEndian
	k := make([]byte, 5*512, 5*512+len(payload))
	k[hdrSetupSects] = 4
	le.PutUint32(k[0x1f4:], uint32(len(payload)+15)/16)
	le.PutUint16(k[hdrBootFlag:], 0xaa55)
	k[hdrJumpOffset-1], k[hdrJumpOffset] = 0xeb, 0x6a
	copy(k[hdrMagic:], "HdrS")
	le.PutUint16(k[hdrVersion:], 0x020f)
	k[hdrLoadFlags] = loadedHigh
	le.PutUint32(k[hdrInitrdMax:], 0x7fff_ffff)
	le.PutUint16(k[hdrXLoadFlags:], xlfKernel64)
	le.PutUint32(k[hdrCmdlineSize:], 2047)
	le.PutUint64(k[hdrPrefAddress:], 16<<20)
	le.PutUint32(k[hdrInitSize:], 8<<20)
	return append(k, payload...)
}

func newRAM(t testing.TB, size uint64) *memory.RAM {
	t.Helper()
	ram, err := memory.New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	return ram
}

func view(t testing.TB, ram *memory.RAM, gpa, n uint64) []byte {
	t.Helper()
	b, err := ram.View(gpa, n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var codeA = bytes.Repeat([]byte{0x90}, 5000)
