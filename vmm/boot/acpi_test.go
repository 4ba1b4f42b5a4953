package boot

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// walkTables follows the RSDP as an operating system does and returns all tables by signature.
func walkTables(t *testing.T, block []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	at := func(addr uint64) []byte { return block[addr-acpiBase:] }
	if string(block[:8]) != "RSD PTR " || checksum(block[:20]) != 0 || checksum(block[:36]) != 0 || block[15] != 2 {
		t.Fatalf("bad RSDP % x", block[:36])
	}
	tables := make(map[string][]byte)
	add := func(addr uint64) []byte {
		b := at(addr)
		b = b[:le.Uint32(b[4:])]
		sig := string(b[:4])
		if sig != "FACS" && checksum(b) != 0 {
			t.Errorf("table %s has a bad checksum", sig)
		}
		tables[sig] = b
		return b
	}
	xsdt := add(le.Uint64(block[24:]))
	for p := xsdt[headerSize:]; len(p) > 0; p = p[8:] {
		if b := add(le.Uint64(p)); string(b[:4]) == "FACP" {
			if facs := uint64(le.Uint32(b[36:])); facs%64 != 0 {
				t.Errorf("FACS at %#x is not aligned to 64 bytes", facs)
			}
			add(uint64(le.Uint32(b[36:])))
			add(le.Uint64(b[140:]))
		}
	}
	return tables
}

func TestTablesAreComplete(t *testing.T) {
	for _, cpus := range []int{1, 2, MaxCPUs} {
		block, err := acpiTables(cpus)
		if err != nil {
			t.Fatal(err)
		}
		tables := walkTables(t, block)
		for _, sig := range []string{"XSDT", "FACP", "FACS", "DSDT", "APIC", "MCFG"} {
			if tables[sig] == nil {
				t.Errorf("%d vCPUs: no table %s", cpus, sig)
			}
		}
		lapics := 0
		for p := tables["APIC"][headerSize+8:]; len(p) > 0; p = p[p[1]:] {
			if p[0] == 0 {
				lapics++
			}
		}
		if lapics != cpus {
			t.Errorf("MADT lists %d CPUs, want %d", lapics, cpus)
		}
	}
}

// TestACPICompilerAgrees has ACPICA read every table, and disassemble and compile the DSDT again.
func TestACPICompilerAgrees(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("needs iasl: apt-get install acpica-tools")
	}
	run := func(dir string, args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, iasl, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("iasl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for _, cpus := range []int{1, MaxCPUs} {
		block, err := acpiTables(cpus)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for sig, b := range walkTables(t, block) {
			name := strings.ToLower(sig)
			if err := os.WriteFile(filepath.Join(dir, name+".dat"), b, 0o600); err != nil {
				t.Fatal(err)
			}
			out := run(dir, "-d", name+".dat")
			dsl, err := os.ReadFile(filepath.Join(dir, name+".dsl"))
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{out, string(dsl)} {
				if strings.Contains(text, "Invalid") || strings.Contains(text, "rror") && !strings.Contains(text, "0 Errors") {
					t.Errorf("table %s: iasl complains:\n%s\n%s", sig, out, dsl)
				}
			}
			if sig != "DSDT" {
				continue
			}
			out = run(dir, "-p", "again", "dsdt.dsl")
			if !strings.Contains(out, "0 Errors, 0 Warnings, 0 Remarks") {
				t.Errorf("iasl on the disassembled DSDT:\n%s\n%s", out, dsl)
			}
		}
	}
}
