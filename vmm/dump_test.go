package vmm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-ha/pollux/vmm/platform"
)

// A dump holds the whole memory at its guest-physical addresses, and each vCPU's registers; the guest can be
// reset afterwards.
func TestDump(t *testing.T) {
	asked := make(chan platform.PowerEvent, 1)
	m := newMachine(t, Config{MemoryBytes: 16 << 20, CPUs: 2, Kernel: pvhKernel(newAsm().store32(resetMark, 0x600df00d).say(resetMark).label("x").jmp("x").bytes()),
		OnPower: func(e platform.PowerEvent) { asked <- e }})
	s := listen(t, m)
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	eventually(t, "the guest boots", func() bool { return len(s.all()) == 1 })
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.Dump(f); !errors.Is(err, ErrNotHeld) {
		t.Fatalf("a running guest is dumped: %v", err)
	}
	m.Lock()
	m.PowerEvent(platform.Panicked)
	m.Unlock()
	<-asked
	if err := m.Dump(f); err != nil {
		t.Fatal(err)
	}
	core, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	if core.Type != elf.ET_CORE || core.Machine != elf.EM_X86_64 || len(core.Progs) != 2 {
		t.Fatalf("%v of %v with %d segments", core.Type, core.Machine, len(core.Progs))
	}
	ram := core.Progs[1]
	content := make([]byte, ram.Filesz)
	if _, err := ram.ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if ram.Type != elf.PT_LOAD || ram.Paddr != 0 || !bytes.Equal(content, m.RAM().Bytes()) {
		t.Errorf("%v at %#x with %d bytes is not the guest's memory", ram.Type, ram.Paddr, ram.Filesz)
	}
	notes := make([]byte, core.Progs[0].Filesz)
	if _, err := core.Progs[0].ReadAt(notes, 0); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	var names []string
	for len(notes) > 0 {
		n, d, kind := le.Uint32(notes), le.Uint32(notes[4:]), le.Uint32(notes[8:])
		name := string(notes[12 : 12+n-1])
		desc := notes[12+(n+3)&^3:][:d]
		notes = notes[12+(n+3)&^3+d:]
		names = append(names, name)
		switch {
		case name == "CORE" && kind == 1 && len(desc) == 336:
			if len(names) == 1 && le.Uint64(desc[112+16*8:])>>12 != kernelBase>>12 {
				t.Errorf("the first vCPU is at %#x", le.Uint64(desc[112+16*8:]))
			}
		case name == "QEMU" && kind == 0 && len(desc) == 440 && le.Uint32(desc) == 1 && le.Uint32(desc[4:]) == 440:
			if len(names) == 2 && le.Uint64(desc[8+16*8:])>>12 != kernelBase>>12 {
				t.Errorf("the first vCPU is at %#x, by its second note", le.Uint64(desc[8+16*8:]))
			}
		default:
			t.Errorf("a note %q of kind %d with %d bytes", name, kind, len(desc))
		}
	}
	if len(names) != 4 {
		t.Errorf("notes of %q for two vCPUs", names)
	}
	if err := m.Reset(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest boots again", func() bool { return len(s.all()) == 2 })
}
