package firmware

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// loaded is a file that the script had put into RAM.
type loaded struct {
	base uint64
	data []byte
}

// run does what firmware does with a script: it puts files at the given addresses, one after the other, and
// patches them.
func run(t *testing.T, script []byte, files map[string][]byte, bases ...uint64) map[string]*loaded {
	t.Helper()
	le := binary.LittleEndian
	in := map[string]*loaded{}
	name := func(b []byte) string { return string(b[:bytes.IndexByte(b[:loadName], 0)]) }
	get := func(b []byte) *loaded {
		l := in[name(b)]
		if l == nil {
			t.Fatalf("the script speaks of %q before it is there", name(b))
		}
		return l
	}
	if len(script)%loadCommand != 0 {
		t.Fatalf("a script of %d bytes", len(script))
	}
	for ; len(script) > 0; script = script[loadCommand:] {
		op := script[4:loadCommand]
		switch n := le.Uint32(script); n {
		case loadAllocate:
			align, zone := le.Uint32(op[loadName:]), op[loadName+4]
			data, ok := files[name(op)]
			if !ok || in[name(op)] != nil || len(bases) == 0 || zone != zoneHigh && zone != zoneFSEG {
				t.Fatalf("allocation of %q in zone %d", name(op), zone)
			}
			if align == 0 || bases[0]%uint64(align) != 0 {
				t.Fatalf("%q wants an alignment of %d, which %#x does not have", name(op), align, bases[0])
			}
			in[name(op)] = &loaded{bases[0], bytes.Clone(data)}
			bases = bases[1:]
		case loadAddPointer:
			to, from, at, size := get(op), get(op[loadName:]), le.Uint32(op[2*loadName:]), op[2*loadName+4]
			var v [8]byte
			field := to.data[at:][:size]
			copy(v[:], field)
			sum := le.Uint64(v[:])
			if sum >= uint64(len(from.data)) {
				t.Errorf("the pointer at %d points to %d of %d bytes", at, sum, len(from.data))
			}
			le.PutUint64(v[:], sum+from.base)
			copy(field, v[:])
		case loadAddChecksum:
			f, at, start, length := get(op), le.Uint32(op[loadName:]), le.Uint32(op[loadName+4:]), le.Uint32(op[loadName+8:])
			var sum byte
			for _, b := range f.data[start:][:length] {
				sum += b
			}
			f.data[at] -= sum
		default:
			t.Fatalf("command %d", n)
		}
	}
	return in
}

func sums(b []byte) bool {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return sum == 0
}

// TestTablesAsFirmwareLoadsThem walks from the RSDP to all tables, as an operating system does.
func TestTablesAsFirmwareLoadsThem(t *testing.T) {
	le := binary.LittleEndian
	for _, cpus := range []int{1, 2, boot.MaxCPUs} {
		set := func() *boot.ACPISet {
			return boot.ACPITables(boot.ACPIConfig{CPUs: cpus, ECAM: 0xb000_0000, HighBase: 0xe0_0000_0000, HighEnd: 0xe0_4000_0000})
		}
		files := map[string][]byte{fileRSDP: set().RSDP, fileTables: set().Tables}
		in := run(t, loaderScript(set()), files, 0xf_5a40, 0x7f77_8000)
		rsdp, tables := in[fileRSDP], in[fileTables]
		if !sums(rsdp.data[:20]) || !sums(rsdp.data) {
			t.Error("the RSDP's checksums are wrong")
		}
		at := func(addr uint64) []byte {
			if addr < tables.base || addr-tables.base+8 > uint64(len(tables.data)) {
				t.Fatalf("a pointer to %#x, which is not among the tables", addr)
			}
			b := tables.data[addr-tables.base:]
			b = b[:le.Uint32(b[4:])]
			if string(b[:4]) != "FACS" && !sums(b) {
				t.Errorf("%s: wrong checksum", b[:4])
			}
			return b
		}
		found := map[string][]byte{}
		xsdt := at(le.Uint64(rsdp.data[24:]))
		for p := xsdt[36:]; len(p) > 0; p = p[8:] {
			b := at(le.Uint64(p))
			found[string(b[:4])] = b
		}
		fadt := found["FACP"]
		if fadt == nil || found["APIC"] == nil || found["MCFG"] == nil {
			t.Fatalf("%d vCPUs: the XSDT lists %d tables", cpus, len(found))
		}
		if got := at(uint64(le.Uint32(fadt[36:]))); string(got[:4]) != "FACS" {
			t.Errorf("the FADT's FACS is a %s", got[:4])
		}
		short, long := at(uint64(le.Uint32(fadt[40:]))), at(le.Uint64(fadt[140:]))
		if string(short[:4]) != "DSDT" || &short[0] != &long[0] {
			t.Error("the FADT's two DSDTs differ")
		}
		if got := le.Uint64(found["MCFG"][44:]); got != 0xb000_0000 {
			t.Errorf("the MCFG has the configuration space at %#x", got)
		}
		if !bytes.Contains(long, le.AppendUint64(nil, 0xe0_0000_0000)) {
			t.Error("the DSDT does not know of the window above 4 GiB")
		}
	}
}

// TestFilesFollowTheChipset: the tables are those of the moment in which they are asked for.
func TestFilesFollowTheChipset(t *testing.T) {
	ecam, on := uint64(0xb000_0000), true
	m := Machine{CPUs: 2, ECAM: func() (uint64, bool) { return ecam, on }, HighWindow: func() (uint64, uint64) { return 0, 0 }, RAM: newRAM(t)}
	tables := func() []byte {
		for _, f := range m.Files() {
			if f.Name == fileTables {
				return f.Data()
			}
		}
		t.Fatal("no tables")
		return nil
	}
	mcfg := func() uint64 {
		b := tables()
		return binary.LittleEndian.Uint64(b[bytes.Index(b, []byte("MCFG"))+44:])
	}
	if got := mcfg(); got != ecam {
		t.Errorf("configuration space at %#x", got)
	}
	ecam = 0xd000_0000
	if got := mcfg(); got != ecam {
		t.Errorf("moved: configuration space at %#x", got)
	}
	on = false
	if got := mcfg(); got != platform.ECAMBase {
		t.Errorf("switched off: configuration space at %#x", got)
	}
}
