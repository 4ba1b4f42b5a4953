package vmm

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/vmm/firmware"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// tinyFirmware begins in real mode at the reset vector, goes to 32-bit protected mode and does what OVMF does
// with its flash memory: it finds it, programs a byte and reads it back. All that it reads it says on the serial port.
// With the byte there already it switches off, else it resets.
func tinyFirmware() *firmware.Image {
	const (
		codeBase = 0x1_0000_0000 - firmware.CodeSize
		segment  = 0xffff_0000 // of real mode
		entry16  = 0xff00
		entry32  = 0xffff_fe00
		gdt      = 0xffff_ff80
		gdtr     = 0xff78
		variable = platform.FlashBase + 0x100
	)
	i := &firmware.Image{Code: make([]byte, firmware.CodeSize), Vars: make([]byte, firmware.VarsSize)}
	put := func(at uint64, b []byte) { copy(i.Code[at-codeBase:], b) }
	copy(i.Code[0x28:], "_FVH")
	copy(i.Vars[0x28:], "_FVH")
	le := binary.LittleEndian

	// jmp entry16; lgdt cs:[gdtr]; mov cr0, cr0 | 1; jmp 8:entry32
	put(segment+0xfff0, []byte{0xe9, 0x0d, 0xff})
	real := []byte{0x66, 0x2e, 0x0f, 0x01, 0x16, gdtr & 0xff, gdtr >> 8, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea}
	put(segment+entry16, append(le.AppendUint32(real, entry32), 8, 0))
	for n, d := range []uint64{0, 0x00cf9b000000ffff, 0x00cf93000000ffff} {
		put(gdt+8*uint64(n), le.AppendUint64(nil, d))
	}
	put(segment+gdtr, le.AppendUint32([]byte{23, 0}, gdt))

	a := newAsm().eax(0x10).raw(0x8e, 0xd8).imm32([]byte{0xbf}, variable)  // mov ds, ax; mov edi, variable
	store := func(b byte) { a.raw(0xc6, 0x07, b) }                         // mov byte [edi], b
	say := func() { a.raw(0x8a, 0x07).edx(platform.SerialBase).raw(0xee) } // mov al, [edi]; out dx, al
	say()
	store(0x50)
	store(0x70)
	say() // flash memory, not ROM and not RAM: the status is 0
	store(0xff)
	a.raw(0x80, 0x3f, 'V').je("known") // cmp byte [edi], 'V'
	store(0x10)
	store('V')
	say() // the status: ready
	store(0xff)
	say()
	a.edx(platform.ResetPort).eax(platform.ResetValue).raw(0xee).label("x").jmp("x")
	a.label("known").edx(platform.PMBase+platform.PM1ControlOffset).eax(1<<13|platform.SleepTypeS5<<10).raw(0x66, 0xef).label("y").jmp("y")
	put(entry32, a.bytes())
	return i
}

// flashFile is a disk in memory.
type flashFile struct{ b []byte }

func (f *flashFile) ReadAt(p []byte, off int64) (int, error)  { return copy(p, f.b[off:]), nil }
func (f *flashFile) WriteAt(p []byte, off int64) (int, error) { return copy(f.b[off:], p), nil }
func (f *flashFile) Sync() error                              { return nil }
func (f *flashFile) Size() int64                              { return int64(len(f.b)) }

// heard collects what a guest says on its console, and mirrors its disk.
type heard struct {
	discard
	mu     sync.Mutex
	text   []byte
	mirror []byte
	disk   int
}

func (h *heard) Console(p []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, p...)
}

func (h *heard) DiskWritten(disk int, offset int64, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.disk = disk
	copy(h.mirror[offset:], data)
}

func (h *heard) take() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := h.text
	h.text = nil
	return text
}

// A machine boots from flash memory, programs it, resets in place and finds what it has programmed; what was
// reported makes a second machine do the same.
func TestFirmwareBoots(t *testing.T) {
	image := tinyFirmware()
	boot := func(file *flashFile) (*Machine, *heard, chan platform.PowerEvent) {
		t.Helper()
		out := &heard{mirror: make([]byte, platform.FlashSize)}
		power := make(chan platform.PowerEvent, 4)
		m := newMachine(t, Config{
			Output: out, Firmware: &FirmwareConfig{File: file, Image: image},
			Disks:   []DiskConfig{{File: &flashFile{make([]byte, 4096)}}},
			OnPower: func(e platform.PowerEvent) { power <- e },
		})
		if err := m.Boot(); err != nil {
			t.Fatal(err)
		}
		start(t, m)
		return m, out, power
	}
	file := &flashFile{make([]byte, platform.FlashSize)}
	m, out, power := boot(file)
	if e := <-power; e != platform.Reset {
		t.Fatalf("the first boot ends with %v, having said %q", e, out.take())
	}
	if got, want := out.take(), []byte{0, 0, 0x80, 'V'}; !bytes.Equal(got, want) {
		t.Fatalf("the first boot says %x, want %x", got, want)
	}
	if err := m.Reset(nil); err != nil {
		t.Fatal(err)
	}
	if e := <-power; e != platform.PowerOff {
		t.Fatalf("the second boot ends with %v, having said %q", e, out.take())
	}
	if got, want := out.take(), []byte{'V', 0}; !bytes.Equal(got, want) {
		t.Fatalf("the second boot says %x, want %x", got, want)
	}
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.mirror, file.b) || out.disk != 1 {
		t.Error("what was reported is not what the file holds, or was reported of another disk")
	}

	_, out, power = boot(&flashFile{out.mirror})
	if e := <-power; e != platform.PowerOff {
		t.Fatalf("from the mirrored disk the boot ends with %v, having said %q", e, out.take())
	}
}
