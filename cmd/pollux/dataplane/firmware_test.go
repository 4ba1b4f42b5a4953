package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/firmware"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// countingVariable is where countingFirmware counts, from the start of the flash memory.
const countingVariable = 0x1000

// counted is what countingFirmware programs and says as its n-th byte.
func counted(n int) byte { return byte(n&0x3f + 0x20) }

// countingFirmware is a guest that is nothing but firmware: it programs one byte of its flash memory after the other,
// and says each on the serial port once it has read it back.
func countingFirmware(t *testing.T, dir string) link.FirmwareImage {
	t.Helper()
	le := binary.LittleEndian
	code, vars := make([]byte, firmware.CodeSize), make([]byte, firmware.VarsSize)
	copy(code[0x28:], "_FVH")
	copy(vars[0x28:], "_FVH")
	top := func(below int, b ...[]byte) { copy(code[len(code)-below:], bytes.Join(b, nil)) }
	const begin, main, table, register = 0x100, 0x200, 0x80, 0x88 // bytes below 4 GiB
	address := func(below uint32) []byte { return le.AppendUint32(nil, -below) }

	top(0x10, []byte{0xe9, 0x0d, 0xff})                                      // jmp begin
	top(begin, []byte{0x66, 0x2e, 0x0f, 0x01, 0x16, 0x100 - register, 0xff}, // lgdt cs:[register]
		[]byte{0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0}, // protected mode
		[]byte{0x66, 0xea}, address(main), []byte{8, 0}) // jmp 8:main
	top(register, []byte{23, 0}, address(table))
	for n, d := range []uint64{0, 0x00cf9b000000ffff, 0x00cf93000000ffff} {
		top(table-8*n, le.AppendUint64(nil, d))
	}
	top(main,
		[]byte{0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8}, // mov ds, 0x10
		[]byte{0xbf}, le.AppendUint32(nil, platform.FlashBase+countingVariable), // mov edi, the variable
		[]byte{0x31, 0xc9}, // xor ecx, ecx
		// 1:
		[]byte{0x81, 0xf9, 0x00, 0x00, 0x02, 0x00, 0x73, 0xfe}, // cmp ecx, 0x20000; here: jae here
		[]byte{0xc6, 0x07, 0x10},                               // mov byte [edi], 0x10: program
		[]byte{0x88, 0xc8, 0x24, 0x3f, 0x04, 0x20, 0x88, 0x07}, // al = counted(ecx); mov [edi], al
		[]byte{0xc6, 0x07, 0xff},                               // mov byte [edi], 0xff: read
		[]byte{0x8a, 0x07, 0x66, 0xba, 0xf8, 0x03, 0xee},       // mov al, [edi]; out 0x3f8, al
		[]byte{0x47, 0x41},                                     // inc edi; inc ecx
		[]byte{0xbb, 0x88, 0x13, 0x00, 0x00, 0x4b, 0x75, 0xfd}, // ebx = 5000; 2: dec ebx; jnz 2b
		[]byte{0xeb, 0xd7})                                     // jmp 1b
	i := link.FirmwareImage{Code: filepath.Join(dir, "code.fd"), Vars: filepath.Join(dir, "vars.fd")}
	for path, b := range map[string][]byte{i.Code: code, i.Vars: vars} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// said is what a host has let its guest say.
func (m *member) said(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestFirmwareIsMirrored: a guest in its firmware is taken over. It goes on with the code that it had, although the new
// host's package is another one by then, and each byte that it was heard to have programmed is there.
func TestFirmwareIsMirrored(t *testing.T) {
	needsKVM(t)
	certs := certificates(t)
	r := newRaft(t, func(s *pact.Spec) { s.Firmware, s.Kernel, s.Cmdline = pact.FirmwareUEFI, "", "" })
	dir := t.TempDir()
	r.firmware = countingFirmware(t, dir)
	image, err := firmware.ReadImage(r.firmware.Code, r.firmware.Vars)
	if err != nil {
		t.Fatal(err)
	}
	a := r.launch(partyA, t.TempDir(), certs["a"])
	other := bytes.Clone(image.Code)
	other[0x1000] = 0x90
	if err := os.WriteFile(r.firmware.Code, other, 0o600); err != nil {
		t.Fatal(err)
	}
	b := r.launch(partyB, t.TempDir(), certs["b"])
	if v := r.propose(pact.Command{Kind: pact.Start, Guest: "g", By: partyA}); !v.Applied {
		t.Fatal(v.Reason)
	}
	r.until("protected", protectedBy(partyA))
	at := len(a.said(t))
	r.until("the guest counts while it is protected", func(pact.Assignment) bool { return len(a.said(t)) >= at+10 })
	r.kill(a)
	heard := a.said(t)
	for n, c := range heard {
		if c != counted(n) {
			t.Fatalf("byte %d that the guest says is %#x, want %#x", n, c, counted(n))
		}
	}
	r.until("b has taken over", func(x pact.Assignment) bool { return x.Primary == partyB && x.Mode == pact.Solo })
	r.until("the guest goes on", func(pact.Assignment) bool { return len(b.said(t)) >= 10 })
	more := b.said(t)

	flash := make([]byte, platform.FlashSize)
	if _, err := b.p.store.Disks()[1].ReadAt(flash, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(flash[firmware.VarsSize:], image.Code) {
		t.Error("b does not have the code that the guest was booted with")
	}
	for n := range heard {
		if got := flash[countingVariable+n]; got != counted(n) {
			t.Fatalf("byte %d of %d that a let the guest report is %#x on b, want %#x", n, len(heard), got, counted(n))
		}
	}
	// It goes on where it was, or with what it had said last and nobody had let out.
	first := bytes.IndexByte(flash[countingVariable:], more[0])
	if first < 0 {
		t.Fatalf("b lets the guest say %#x, which it has not programmed", more[0])
	}
	for n, c := range more {
		if c != counted(int(more[0]-0x20)+n) {
			t.Fatalf("byte %d that the guest says on b is %#x", n, c)
		}
	}
}

// TestNoFirmware: a host without the package says so at once, before it can become anything.
func TestNoFirmware(t *testing.T) {
	needsKVM(t)
	nowhere := filepath.Join(t.TempDir(), "nothing.fd")
	empty := &memDisk{make([]byte, platform.FlashSize)}
	if _, err := firmwareConfig(link.FirmwareImage{Code: nowhere, Vars: nowhere}, empty); !errors.Is(err, firmware.ErrMissing) {
		t.Errorf("neither package nor disk: %v", err)
	}
	copy(empty.b[0x28:], "_FVH")
	copy(empty.b[firmware.VarsSize+0x28:], "_FVH")
	if c, err := firmwareConfig(link.FirmwareImage{Code: nowhere, Vars: nowhere}, empty); err != nil || c.Image != nil {
		t.Errorf("a disk that holds firmware: %v", err)
	}
}

type memDisk struct{ b []byte }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d.b[off:]), nil }
func (d *memDisk) WriteAt(p []byte, off int64) (int, error) { return copy(d.b[off:], p), nil }
func (d *memDisk) Sync() error                              { return nil }
func (d *memDisk) Size() int64                              { return int64(len(d.b)) }
