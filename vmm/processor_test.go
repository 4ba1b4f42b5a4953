package vmm

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

const cr4OSXSAVE = 1 << 18

// vector is a register that a guest loads and stores: the instructions with a displacement from rbx of 32
// bits, but for that displacement.
type vector struct {
	name        string
	bytes       int
	needs       string
	load, store []byte
}

var vectors = []vector{
	{"ymm0", 32, "avx", []byte{0xc5, 0xfe, 0x6f, 0x83}, []byte{0xc5, 0xfe, 0x7f, 0x83}}, // vmovdqu
	{"ymm15", 32, "avx", []byte{0xc5, 0x7e, 0x6f, 0xbb}, []byte{0xc5, 0x7e, 0x7f, 0xbb}},
	{"zmm1", 64, "avx512f", []byte{0x62, 0xf1, 0xfe, 0x48, 0x6f, 0x8b}, []byte{0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x8b}}, // vmovdqu64
	{"zmm31", 64, "avx512f", []byte{0x62, 0x61, 0xfe, 0x48, 0x6f, 0xbb}, []byte{0x62, 0x61, 0xfe, 0x48, 0x7f, 0xbb}},
	{"k1", 8, "avx512bw", []byte{0xc4, 0xe1, 0xf8, 0x90, 0x8b}, []byte{0xc4, 0xe1, 0xf8, 0x91, 0x8b}}, // kmovq
}

// Extended registers with known contents survive a move to another machine. The guest runs at CPL 3 with
// its XCR0 preset by KVM_SET_XCRS, as an operating system would have set it: QEMU's emulation does not
// report a nested guest's XSETBV, so a KVM that runs inside of it can't know of one.
func TestExtendedRegistersSurvive(t *testing.T) {
	m := newMachine(t, Config{})
	model := m.CPU()
	if !model.Features.Has("avx") {
		t.Skipf("needs a CPU with AVX under KVM: guests here have XCR0 %#x (kvm-pvm hides XSAVE)", model.XCR0())
	}
	testExtended(t, model, "avx", "avx512f")
}

// The same, of AVX-512 in particular, so that a report says whether that was there.
func TestAVX512Survives(t *testing.T) {
	m := newMachine(t, Config{})
	model := m.CPU()
	if !model.Features.Has("avx512bw") {
		t.Skipf("needs a CPU with AVX-512: guests here have XCR0 %#x", model.XCR0())
	}
	testExtended(t, model, "avx512f", "")
}

// testExtended tests the registers that need a feature, from the first that needs "from" on and before
// those that need "before".
func testExtended(t *testing.T, model cpu.Model, from, before string) {
	const in, out, step = guestData + 0x100, guestData + 0x800, 64
	a := newAsm().ebx(guestData)
	disp := func(code []byte, at int) { a.imm32(code, uint32(at-guestData)) }
	var used []vector
	for _, v := range vectors {
		if model.Features.Has(v.needs) && (from == "avx" && v.needs == "avx" || from == "avx512f" && v.needs != before && v.needs != "avx") {
			used = append(used, v)
		}
	}
	for i, v := range used {
		disp(v.load, in+step*i)
	}
	a.label("again").
		raw(0x48, 0xff, 0x03).             // inc qword [rbx]
		raw(0x48, 0x83, 0x7b, 0x08, 0x00). // cmp qword [rbx+8], 0
		je("again")
	for i, v := range used {
		disp(v.store, out+step*i)
	}
	a.raw(0x48, 0xff, 0x43, 0x10) // inc qword [rbx+16]
	a.label("end").jmp("end")

	m, images := captured(t)
	load(t, m, a.bytes(), nil)
	entry := userEntry()
	entry.CR4 |= cr4OSXSAVE
	if err := m.vcpus[0].enter(entry); err != nil {
		t.Fatal(err)
	}
	setXCR0(t, m, model.XCR0())
	want := make([][]byte, len(used))
	for i, v := range used {
		for j := range v.bytes {
			want[i] = append(want[i], byte(37*i+j+1))
		}
		if err := m.RAM().Write(uint64(in+step*i), want[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	eventually(t, "the guest has loaded its registers", func() bool { return m.peek(guestData) > 100 })
	m.RequestPause()
	img := <-images
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}

	other := newMachine(t, Config{})
	copy(other.RAM().Bytes(), img.ram)
	if err := other.LoadState(img.state); err != nil {
		t.Fatal(err)
	}
	if got := getXCR0(t, other); got != model.XCR0() {
		t.Errorf("XCR0 is %#x, was %#x", got, model.XCR0())
	}
	if err := other.RAM().Write(guestData+8, []byte{1}); err != nil {
		t.Fatal(err)
	}
	start(t, other)
	eventually(t, "the guest stores its registers", func() bool { return other.peek(guestData+16) != 0 })
	for i, v := range used {
		got, err := other.RAM().View(uint64(out+step*i), uint64(v.bytes))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[i]) {
			t.Errorf("%s is % x, was % x", v.name, got, want[i])
		}
	}
}

// The layout of struct kvm_xcrs: two words, then {number u32, reserved u32, value u64}.
func setXCR0(t *testing.T, m *Machine, value uint64) {
	t.Helper()
	var x kvm.XCRs
	binary.LittleEndian.PutUint32(x[:], 1)
	binary.LittleEndian.PutUint64(x[16:], value)
	if err := m.vcpus[0].kvm.SetXCRs(&x); err != nil {
		t.Fatal(err)
	}
}

func getXCR0(t *testing.T, m *Machine) uint64 {
	t.Helper()
	var x kvm.XCRs
	if err := m.vcpus[0].kvm.XCRs(&x); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(x[16:])
}

// MSRs with values of a guest's own survive a move to another machine, as far as this KVM has them.
func TestMSRsSurvive(t *testing.T) {
	values := map[uint32]uint64{
		0x174: 0x10, 0x175: 0x1000, 0x176: 0x2000, // SYSENTER; 32 bits on AMD
		0xc000_0081: 0x0023_0010_0000_0000, 0xc000_0082: 0xffff_8000_0000_3000, 0xc000_0083: 0xffff_8000_0000_4000, 0xc000_0084: 0x4700,
		0xc000_0102: 0xffff_8000_0000_5000, // KERNEL_GS_BASE
		0xc000_0103: 0x1001,                // TSC_AUX
		0x277:       0x0007_0406_0007_0406, // PAT
		0x3b:        0x1_0000,              // TSC_ADJUST
		0x2ff:       0xc06,                 // MTRRs on, write-back
		0x250:       0x0606_0606_0606_0606, 0x268: 0x0505_0505_0505_0505,
		0x200: 0xc000_0000, 0x201: 0xf_c000_0800, // from 3 GiB, 1 GiB: uncacheable
		0x400: ^uint64(0), 0x17a: 0, 0x17b: ^uint64(0), // machine check banks on
		0x48: 1, // IBRS
	}
	m, images := captured(t)
	load(t, m, countCode, nil)
	set := 0
	for _, index := range m.msrs {
		if v, ok := values[index]; ok {
			if err := setMSR(m.vcpus[0].kvm, index, v); err != nil {
				t.Errorf("MSR %#x: %v", index, err)
			}
			set++
		}
	}
	if set < 12 {
		t.Fatalf("only %d MSRs could be set", set)
	}
	if err := m.SetDirtyLogging(true); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	eventually(t, "the guest counts", func() bool { return counts(m) })
	m.RequestPause()
	img := <-images
	other := newMachine(t, Config{})
	copy(other.RAM().Bytes(), img.ram)
	if err := other.LoadState(img.state); err != nil {
		t.Fatal(err)
	}
	for _, index := range other.msrs {
		want, ok := values[index]
		if !ok {
			continue
		}
		one := kvm.MSRs{N: 1}
		one.Entries[0].Index = index
		if n, err := other.vcpus[0].kvm.GetMSRs(&one); err != nil || n != 1 || one.Entries[0].Value != want {
			r, _ := cpu.FindMSR(index)
			t.Errorf("%s (%#x) is %#x, was %#x (%v)", r.Name, index, one.Entries[0].Value, want, err)
		}
	}
	t.Logf("%d MSRs are saved, %d of them had values of their own", len(m.msrs), set)
}

// image is a machine at rest.
type image struct{ ram, state []byte }

// captured makes a machine that stays in each pause that is asked for, and tells its image then.
func captured(t *testing.T) (*Machine, <-chan image) {
	c := NewCapture(1 << 14)
	images := make(chan image, 1)
	var m *Machine
	m = newMachine(t, Config{OnPause: func(p *Pause) bool {
		if err := p.Capture(c); err != nil {
			t.Error(err)
		}
		images <- image{bytes.Clone(m.RAM().Bytes()), bytes.Clone(c.State)}
		return false
	}})
	return m, images
}
