package cpu

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew; look at what changed")

// The models of real processors, alone, in pairs and as levels. A change of the golden file changes what
// existing guests' successors see: read it as such.
func TestGoldenModels(t *testing.T) {
	var b strings.Builder
	show := func(p Policy, names ...string) {
		fmt.Fprintf(&b, "%s: %s\n", p, strings.Join(names, " + "))
		m, err := For(p, hosts(t, names...))
		if err != nil {
			fmt.Fprintf(&b, "  refused: %v\n\n", err)
			return
		}
		fmt.Fprintf(&b, "  %s, family %#x model %#x stepping %d, %s, %s\n", m.Vendor, m.Family(), m.ModelNumber(), m.Stepping(), m.Brand, LevelName(m.Features.Level()))
		fmt.Fprintf(&b, "  %v, XCR0 %#x, XSAVE %v, %d.%d.%d bits, ARCH_CAPABILITIES %#x, %d kHz\n", m.Features.Names(), m.XCR0(), m.XSAVE, m.PhysBits, m.GuestPhysBits, m.LinearBits, m.ArchCaps, m.TSCKHz)
		fmt.Fprintf(&b, "  %s\n\n", m.Text())
	}
	for _, f := range fixtures {
		show(HostP, f)
	}
	for _, pair := range [][2]string{
		{"skylake-sp", "icelake-sp"}, {"sandybridge", "skylake-sp"}, {"zen2", "zen4"}, {"zen3", "zen4"}, {"zen4", "zen3"}, {"zen2", "icelake-sp"},
	} {
		show(Pair, pair[:]...)
	}
	show(HostP, "skylake-sp", "icelake-sp")
	show(HostP, "icelake-sp", "skylake-sp")
	for _, l := range []Policy{Level2, Level3, Level4} {
		show(l, "skylake-sp", "icelake-sp")
		show(l, "zen2", "zen4")
		show(l, "sandybridge", "icelake-sp")
	}
	path := filepath.Join("testdata", "models.golden")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("other models than in %s:\n%s", path, b.String())
	}
}

func TestWhatAGuestMustNotSee(t *testing.T) {
	for _, f := range fixtures {
		h := fixture(t, f)
		for _, l := range h.Leaves(0, 2) {
			deny := map[uint32][4]uint32{ // EAX, EBX, ECX, EDX
				1:           {0, 0, 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<15, 1 << 21}, // DTES64, MONITOR, VMX, SMX, PDCM; DS
				7:           {0, 1<<2 | 1<<14 | 1<<25, 1 << 7, 7<<22 - 1<<23 | 1<<20},
				0xd:         {1<<3 | 1<<4 | 3<<17, 0, 0, 0},
				0x8000_0001: {0, 0, 1<<2 | 1<<10 | 1<<23 | 1<<24 | 1<<28, 0}, // SVM, IBS, PERFCTR
			}[l.Function]
			if l.Function == 0xd && l.Index != 0 || l.Function == 7 && l.Index != 0 {
				continue
			}
			if l.Function == 0x8000_0001 {
				deny[0] = 0 // AMD's signature
			}
			if l.Function == 1 {
				deny[0] = 0
			}
			for i, v := range []uint32{l.EAX, l.EBX, l.ECX, l.EDX} {
				if bad := v & deny[i]; bad != 0 {
					t.Errorf("%s: leaf %#x register %d shows %#x", f, l.Function, i, bad)
				}
			}
			switch l.Function {
			case 0xa, 0x14, 0x1f, 0x12, 0x1d, 0x1e, 0x8000_000a, 0x8000_001f, 0x8000_0022:
				t.Errorf("%s: leaf %#x is shown", f, l.Function)
			}
		}
	}
}

// For the hosts' order does not count, nobody sees what a host lacks, and all of them can run the result.
func TestCommonIsCommutativeAndASubset(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	any := func() Host {
		h := fixture(t, fixtures[1+rng.IntN(2)])
		h.Name = fmt.Sprint("h", rng.IntN(1000))
		for w := range h.Features {
			h.Features[w] &= rng.Uint32() | rng.Uint32() | rng.Uint32()
		}
		h.Signature = h.Signature&^0xf | rng.Uint32N(16)
		h.PhysBits, h.ArchCaps = 36+rng.IntN(17), rng.Uint64()
		h.GuestPhysBits = h.PhysBits - rng.IntN(4)
		if rng.IntN(4) == 0 {
			h.XSAVE = slices.Delete(slices.Clone(h.XSAVE), 0, rng.IntN(len(h.XSAVE)+1))
		}
		h.settle()
		return h
	}
	for range 2000 {
		a, b, c := any(), any(), any()
		m, err := For(Pair, []Host{a, b, c})
		if err != nil {
			t.Fatal(err)
		}
		other, err := For(Pair, []Host{c, a, b})
		if err != nil {
			t.Fatal(err)
		}
		other.TSCKHz = m.TSCKHz // hosts that scale take the first one's
		if m.Text() != other.Text() {
			t.Fatalf("the order counts:\n%s\n%s", m.Text(), other.Text())
		}
		for _, h := range []Host{a, b, c} {
			if !m.Features.Without(h.Features).IsEmpty() {
				t.Fatalf("%s lacks %s", h.Name, m.Features.Without(h.Features))
			}
			if err := h.Check(&m); err != nil {
				t.Fatalf("%s %v", h.Name, err)
			}
		}
		if again := common(&m, &a.Model); again.Features != m.Features || !slices.Equal(again.XSAVE, m.XSAVE) {
			t.Fatal("a pair of a pair is another one")
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		host   string
		model  string
		change func(*Host, *Model)
		want   string // "": it runs
	}{
		{"itself", "zen4", "zen4", func(*Host, *Model) {}, ""},
		{"another vendor", "zen4", "icelake-sp", func(*Host, *Model) {}, "has a CPU of AuthenticAMD, the guest was made for one of GenuineIntel"},
		{"an older CPU", "skylake-sp", "icelake-sp", func(_ *Host, m *Model) { m.TSCKHz = 2992968 }, "gfni vaes"},
		{"another place of the keys", "zen3", "zen4", func(h *Host, m *Model) { m.Features = of("pku xsave").And(m.Features); m.settle() }, "keeps XSAVE component 9 at 0x340 (8 bytes), the guest at 0x980"},
		{"a component", "zen4", "zen4", func(h *Host, m *Model) { h.XSAVE = nil }, "lacks XSAVE component 2"},
		{"weaknesses", "icelake-sp", "icelake-sp", func(h *Host, m *Model) { h.ArchCaps = 0 }, "weaknesses that the guest takes for absent (ARCH_CAPABILITIES 0x400e06b)"},
		{"an affected CPU", "icelake-sp", "icelake-sp", func(h *Host, m *Model) { h.ArchCaps |= 1 << 19 }, "ARCH_CAPABILITIES 0x80000"},
		{"addresses", "zen2", "zen2", func(h *Host, m *Model) { m.PhysBits = 52 }, "physical addresses of 48 bits, the guest of 52"},
		{"nested paging's addresses", "zen2", "zen2", func(h *Host, m *Model) { h.GuestPhysBits = 40 }, "physical addresses of 40 bits"},
		{"linear addresses", "zen2", "zen2", func(h *Host, m *Model) { m.LinearBits = 57 }, "linear addresses of 48 bits, the guest of 57"},
		{"a rate that can be scaled", "zen2", "zen2", func(h *Host, m *Model) { m.TSCKHz = 2_000_000 }, ""},
		{"a rate that can't", "zen2", "zen2", func(h *Host, m *Model) { m.TSCKHz, h.TSCScaling = 2_000_000, false }, "2794750 kHz and can't scale it to the guest's 2000000"},
		{"nearly the same rate", "zen2", "zen2", func(h *Host, m *Model) { m.TSCKHz, h.TSCScaling = 2794700, false }, ""},
		{"registers", "icelake-sp", "icelake-sp", func(h *Host, m *Model) {
			h.MSRs = slices.DeleteFunc(h.MSRs, func(i uint32) bool { return i == 0x48 || i == 0x2ff })
		}, "registers SPEC_CTRL (0x48), MTRR_DEF_TYPE (0x2ff)"},
		{"registers that the guest does not see", "zen2", "zen2", func(h *Host, m *Model) {
			h.MSRs = slices.DeleteFunc(h.MSRs, func(i uint32) bool { return i == 0xe1 || i == 0x122 })
		}, ""},
		{"an old kernel", "zen2", "zen2", func(h *Host, m *Model) { h.Events = 0 }, "does not tell of pending events"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, m := fixture(t, tc.host), fixture(t, tc.model).Model
			tc.change(&h, &m)
			err := h.Check(&m)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestForRefuses(t *testing.T) {
	slow := fixture(t, "skylake-sp")
	slow.TSCScaling = false
	fast := fixture(t, "icelake-sp")
	fast.TSCScaling = false
	for _, tc := range []struct {
		policy Policy
		hosts  []Host
		want   string
	}{
		{Pair, nil, "no host"},
		{Pair, hosts(t, "zen2", "skylake-sp"), "between vendors"},
		{HostP, hosts(t, "icelake-sp", "skylake-sp"), "skylake-sp lacks the CPU features"},
		{Level3, hosts(t, "icelake-sp", "sandybridge"), "sandybridge is not of x86-64-v3: it lacks fma movbe f16c bmi1 avx2 bmi2"},
		{Level4, hosts(t, "zen4", "zen2"), "zen2 is not of x86-64-v4: it lacks avx512f"},
		{Pair, []Host{slow, fast}, "can't scale"},
	} {
		if _, err := For(tc.policy, tc.hosts); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.policy, err, tc.want)
		}
	}
	// One that scales follows one that does not, whoever comes first.
	scales := fixture(t, "icelake-sp")
	for _, order := range [][]Host{{slow, scales}, {scales, slow}} {
		if m, err := For(Pair, order); err != nil || m.TSCKHz != slow.TSCKHz {
			t.Errorf("%d kHz, %v", m.TSCKHz, err)
		}
	}
	if _, err := ParsePolicy("x86-64-v5"); err == nil || !strings.Contains(err.Error(), "x86-64-v4") {
		t.Errorf("an unknown policy: %v", err)
	}
}

func leaf(t *testing.T, all []Leaf, function, index uint32) Leaf {
	t.Helper()
	for _, l := range all {
		if l.Function == function && l.Index == index {
			return l
		}
	}
	t.Fatalf("no leaf %#x.%d", function, index)
	return Leaf{}
}

func TestTopology(t *testing.T) {
	for _, f := range fixtures {
		h := fixture(t, f)
		for _, tc := range []struct{ n, width int }{{1, 0}, {2, 1}, {3, 2}, {4, 2}, {16, 4}, {64, 6}} {
			for _, id := range []int{0, tc.n - 1} {
				l := h.Leaves(id, tc.n)
				one := leaf(t, l, 1, 0)
				if one.EBX>>24 != uint32(id) || one.EBX>>16&0xff != 1<<tc.width || one.EDX&edx1HTT != 0 != (tc.n > 1) {
					t.Errorf("%s, %d of %d: leaf 1 is %+v", f, id, tc.n, one)
				}
				smt, core, end := leaf(t, l, 0xb, 0), leaf(t, l, 0xb, 1), leaf(t, l, 0xb, 2)
				if smt.EAX != 0 || smt.EBX != 1 || smt.ECX != 0x100 || core.EAX != uint32(tc.width) || core.EBX != uint32(tc.n) || core.ECX != 0x201 ||
					smt.EDX != uint32(id) || core.EDX != uint32(id) || end.EDX != uint32(id) || end.EBX != 0 {
					t.Errorf("%s, %d of %d: leaf 0xb is %+v %+v %+v", f, id, tc.n, smt, core, end)
				}
				if h.isAMD() {
					eight, node, l3 := leaf(t, l, 0x8000_0008, 0), leaf(t, l, 0x8000_001e, 0), leaf(t, l, 0x8000_001d, 3)
					if eight.ECX != uint32(tc.width)<<12|uint32(tc.n-1) || node.EAX != uint32(id) || node.EBX != uint32(id) || node.ECX != 0 || l3.EAX>>14&0xfff != uint32(tc.n-1) {
						t.Errorf("%s, %d of %d: %+v %+v %+v", f, id, tc.n, eight, node, l3)
					}
					if l2 := leaf(t, l, 0x8000_001d, 2); l2.EAX>>14 != 0 {
						t.Errorf("%s: the second level is shared: %+v", f, l2)
					}
				} else {
					l3 := leaf(t, l, 4, 3)
					if l3.EAX>>26 != uint32(1<<tc.width-1) || l3.EAX>>14&0xfff != uint32(1<<tc.width-1) || leaf(t, l, 4, 2).EAX>>14&0xfff != 0 {
						t.Errorf("%s, %d of %d: leaf 4 is %+v", f, id, tc.n, l3)
					}
				}
			}
		}
	}
}

func TestLeaves(t *testing.T) {
	h := fixture(t, "zen4")
	l := h.Leaves(0, 4)
	if z := leaf(t, l, 0, 0); registersText(z.EBX, z.EDX, z.ECX) != AMD {
		t.Errorf("vendor: %+v", z)
	}
	var text string
	for i := range uint32(3) {
		b := leaf(t, l, 0x8000_0002+i, 0)
		text += registersText(b.EAX, b.EBX, b.ECX, b.EDX)
	}
	if text != h.Brand {
		t.Errorf("brand %q, want %q", text, h.Brand)
	}
	if x := leaf(t, l, 0xd, 0); x.EAX != 0x2e7 || x.ECX != 0x988 {
		t.Errorf("leaf 0xd: %+v", x)
	}
	if k := leaf(t, l, 0x4000_0001, 0); k.EAX != 0x01003aeb {
		t.Errorf("KVM's features: %#x: asynchronous page faults, MSI extensions, memory hypercalls are not carried", k.EAX)
	}
	if k := leaf(t, l, 0x4000_0000, 0); registersText(k.EBX, k.ECX, k.EDX) != "KVMKVMKVM" {
		t.Errorf("KVM's signature: %+v", k)
	}
	if c, k := leaf(t, l, 0x15, 0), leaf(t, l, 0x4000_0010, 0); c.ECX != apicBusHz || int(k.EAX) != h.TSCKHz {
		t.Errorf("rates: %+v %+v", c, k)
	}
	// A processor without it is still told which one it is.
	if s := leaf(t, l, 0x8000_0001, 0); s.EAX != h.Signature || s.EDX&0x0183_f3ff != h.Features[w1EDX]&0x0183_f3ff {
		t.Errorf("leaf 0x80000001: %+v", s)
	}
	// What KVM supports of the leaves is a fixed point: a host made of what a guest sees gives the same guest.
	for _, f := range fixtures {
		h := fixture(t, f)
		facts := Facts{Brand: h.Brand, ArchCaps: h.ArchCaps, TSCKHz: h.TSCKHz, TSCScaling: h.TSCScaling, Events: h.Events, MSRs: h.MSRs, Kernel: h.Kernel, Microcode: h.Microcode}
		again, err := FromLeaves(h.Leaves(0, 1), facts)
		if err != nil || again.Text() != h.Text() {
			t.Errorf("%s, read from its own leaves (%v):\n%s\n%s", f, err, h.Text(), again.Text())
		}
	}
}

func TestRatio(t *testing.T) {
	for _, khz := range []uint64{2_000_000, 2_595_124, 3_693_060, 999_999, 4_294_967, 2_199_998} {
		num, den := ratio(khz, 1_000_000, 4294)
		if num == 0 || den == 0 || num >= 4294 {
			t.Fatalf("%d kHz: %d/%d", khz, num, den)
		}
		got := float64(num) / float64(den) * 1e6
		if d := (got - float64(khz)) / float64(khz); d > 2e-6 || d < -2e-6 {
			t.Errorf("%d kHz: %d/%d is %.0f kHz", khz, num, den, got)
		}
	}
}

func TestTexts(t *testing.T) {
	for _, f := range fixtures {
		h := fixture(t, f)
		m, err := ParseModel(h.Model.Text())
		if err != nil || m.Text() != h.Model.Text() || m.Digest() != h.Digest() {
			t.Errorf("%s: %v\n%s", f, err, m.Text())
		}
		o, err := ParseHost(h.Text())
		if err != nil || o.Text() != h.Text() || o.Check(&m) != nil {
			t.Errorf("%s: %v\n%s", f, err, o.Text())
		}
		if len(h.Text()) > MaxText {
			t.Errorf("%s: the text has %d bytes", f, len(h.Text()))
		}
	}
	good := fixture(t, "zen4")
	for _, bad := range []string{
		"", "cpu1", "cpu2" + good.Model.Text()[4:], good.Model.Text() + "\n", strings.Replace(good.Model.Text(), "vendor=A", "vendor=", 1),
		strings.Replace(good.Model.Text(), "xsave=2:100", "xsave=2:0100", 1), strings.Repeat("x", MaxText+1), good.Text(),
		strings.Replace(good.Model.Text(), "features=", "features=ffffffff.", 1),
	} {
		if _, err := ParseModel(bad); !errors.Is(err, ErrText) {
			t.Errorf("%.60q: %v", bad, err)
		}
	}
}

func FuzzTexts(f *testing.F) {
	for _, name := range fixtures {
		h := fixture(f, name)
		f.Add(h.Text())
		f.Add(h.Model.Text())
	}
	f.Fuzz(func(t *testing.T, s string) {
		if m, err := ParseModel(s); err == nil {
			if m.Text() != s {
				t.Fatal("a model that was read is written in another way")
			}
			for _, n := range []int{1, 3, 64} {
				m.Leaves(n-1, n)
			}
		}
		if h, err := ParseHost(s); err == nil && h.Text() != s {
			t.Fatal("a host that was read is written in another way")
		}
	})
}

func TestMSRs(t *testing.T) {
	seen := map[uint32]bool{}
	for _, r := range MSRs {
		if seen[r.Index] {
			t.Errorf("%s is there twice", r.Name)
		}
		seen[r.Index] = true
		for _, name := range strings.Fields(r.Needs) {
			if _, ok := places[name]; !ok && name != "-" {
				t.Errorf("%s needs %q, which is no feature", r.Name, name)
			}
		}
	}
	if len(MSRs) > 120 {
		t.Errorf("%d registers", len(MSRs))
	}
	if last := MSRs[len(MSRs)-1]; last.Index != MSRTSCDeadline || MSRs[len(MSRs)-2].Index != MSRTSC {
		t.Error("the time stamp counter and its timer come last")
	}
	for _, never := range []uint32{0x4b564d02, 0x309, 0xc1, 0x345, 0xc001_0117} {
		if seen[never] {
			t.Errorf("MSR %#x must not be restored", never)
		}
	}
}
