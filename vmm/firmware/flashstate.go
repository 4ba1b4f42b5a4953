package firmware

import (
	"encoding/binary"

	"github.com/pollux-ha/pollux/vmm/platform/codec"
)

// StateID implements platform.Stateful.
func (f *Flash) StateID() string { return "flash" }

// StateVersion implements platform.Stateful.
func (f *Flash) StateVersion() uint16 { return 1 }

// SaveState appends mode u8, status u8, the command that waits for its second byte u8, and what is not in
// the file: offset u32, counted bytes. The contents are a mirrored disk.
func (f *Flash) SaveState(b []byte) []byte {
	b = append(b, byte(f.mode), f.status, f.pending)
	b = binary.LittleEndian.AppendUint32(b, f.at)
	return codec.AppendBytes(b, f.bytes)
}

// RestoreState implements platform.Stateful. The contents are read by Activate, when the disk is that of
// the checkpoint.
func (f *Flash) RestoreState(_ uint16, b []byte) error {
	r := codec.NewReader(b)
	m, status, pending := mode(r.U8()), r.U8(), r.U8()
	at, bytes := r.U32(), r.Bytes(blockSize)
	if m >= modes || pending != 0 && pending != cmdProgram && pending != cmdErase {
		r.Failf("flash memory in mode %d after command %#x", m, pending)
	}
	if at > VarsSize || len(bytes) > int(VarsSize-at) {
		r.Failf("%d bytes at %#x of the firmware variables", len(bytes), at)
	}
	if err := r.Done(); err != nil {
		return err
	}
	f.mode, f.status, f.pending = m, status, pending
	f.at, f.bytes, f.unsafe = at, append(f.bytes[:0], bytes...), len(bytes) > 0
	return nil
}
