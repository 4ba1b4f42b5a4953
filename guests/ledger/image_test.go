package ledger_test

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/guests/ledger"
)

func firstLine(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command(name, "--version").Output()
	if err != nil {
		t.Fatalf("%s --version: %v", name, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// The image that is committed is the one that the sources make.
func TestImageIsReproducible(t *testing.T) {
	needTools(t, "gcc", "ld", "make")
	made, err := os.ReadFile("toolchain.txt")
	if err != nil {
		t.Fatal(err)
	}
	if here := firstLine(t, "gcc") + "\n" + firstLine(t, "ld") + "\n"; here != string(made) {
		t.Skipf("needs the toolchain that made the image:\n%sthis is\n%s", made, here)
	}
	dir := t.TempDir()
	run(t, "make", "OUT="+dir)
	built, err := os.ReadFile(filepath.Join(dir, "ledger.elf"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, ledger.Image()) {
		t.Error("ledger.elf is not what the sources make: run make in guests/ledger and commit the result")
	}
}

func TestImageIsAKernel(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(ledger.Image()))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		t.Errorf("machine %v, type %v", f.Machine, f.Type)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_NOTE {
			return
		}
	}
	t.Error("no PVH note")
}
