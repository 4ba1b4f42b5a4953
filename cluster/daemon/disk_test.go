package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/mark"
)

func hostConfig(t *testing.T) *config.Config {
	dir := t.TempDir()
	return &config.Config{Name: "a", StateDir: dir, RunDir: dir}
}

// The marks are the data plane's; the daemon reads them as that writes them.
func TestMarksAreReadAsTheyAreWritten(t *testing.T) {
	cfg := hostConfig(t)
	a := guest(func(a *pact.Assignment) {
		a.Created = 7
		a.Spec.Disks = []pact.DiskSpec{{SizeBytes: 4096}, {SizeBytes: 4096, ReadOnly: true}, {SizeBytes: 4096}}
	})
	if err := prepareDir(cfg, a); err != nil {
		t.Fatal(err)
	}
	dir := cfg.GuestDir("g")
	if got := readDisks(cfg, a); got != (diskView{}) {
		t.Errorf("no marks: %+v", got)
	}
	for _, i := range []int{0, 2} {
		if err := os.WriteFile(diskPath(dir, a.Spec, i), make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write := func(i int, m mark.Mark) {
		t.Helper()
		if err := mark.Write(diskPath(dir, a.Spec, i), m); err != nil {
			t.Fatal(err)
		}
	}
	write(0, mark.Mark{State: mark.Current, Term: 5})
	if got := readDisks(cfg, a); got.term != 0 {
		t.Errorf("one of two is marked: %+v", got)
	}
	write(2, mark.Mark{State: mark.Current, Term: 4})
	if got := readDisks(cfg, a); got != (diskView{"current", 4}) {
		t.Errorf("both are marked: %+v", got)
	}
	write(2, mark.Mark{State: mark.Outdated, Term: 4})
	if got := readDisks(cfg, a); got.state != "outdated" {
		t.Errorf("one is outdated: %+v", got)
	}
	write(0, mark.Mark{State: mark.Inconsistent, Term: 5})
	if got := readDisks(cfg, a); got.state != "inconsistent" {
		t.Errorf("one is inconsistent: %+v", got)
	}
	write(0, mark.Mark{State: mark.Current, Term: 5})
	write(2, mark.Mark{State: mark.Current, Term: 5})
	if err := os.WriteFile(mark.Path(diskPath(dir, a.Spec, 2)), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readDisks(cfg, a); got.state != "inconsistent" {
		t.Errorf("a damaged mark: %+v", got)
	}
	write(2, mark.Mark{State: mark.Current, Term: 5})
	if err := os.Remove(diskPath(dir, a.Spec, 2)); err != nil {
		t.Fatal(err)
	}
	if got := readDisks(cfg, a); got.state != "inconsistent" {
		t.Errorf("a mark without its disk: %+v", got)
	}
	// A later guest of the same name has nothing of it.
	a.Created = 9
	if got := readDisks(cfg, a); got != (diskView{}) {
		t.Errorf("a later guest: %+v", got)
	}
	if err := prepareDir(cfg, a); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(cfg.StateDir, "deleted", "g-7", "disk0.raw")); err != nil {
		t.Errorf("the earlier guest's disk was not put aside: %v", err)
	}
	if _, err := os.Stat(diskPath(dir, a.Spec, 0)); !os.IsNotExist(err) {
		t.Errorf("the earlier guest's disk is in use: %v", err)
	}
}

func TestDiskSizes(t *testing.T) {
	cfg := hostConfig(t)
	a := guest(func(a *pact.Assignment) { a.Created = 7 })
	if err := prepareDir(cfg, a); err != nil {
		t.Fatal(err)
	}
	disk := diskPath(cfg.GuestDir("g"), a.Spec, 0)
	if err := os.WriteFile(disk, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepareDir(cfg, a); err != nil {
		t.Fatalf("a smaller image: %v", err)
	}
	if info, err := os.Stat(disk); err != nil || info.Size() != 4096 {
		t.Errorf("it was not grown: %v %v", info, err)
	}
	if err := os.Truncate(disk, 5000); err != nil {
		t.Fatal(err)
	}
	if err := prepareDir(cfg, a); err == nil || !strings.Contains(err.Error(), "5000 bytes") {
		t.Errorf("a larger file: %v", err)
	}
	if err := mark.Write(disk, mark.Mark{State: mark.Current, Term: 3}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 100); err != nil {
		t.Fatal(err)
	}
	if err := prepareDir(cfg, a); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("a used disk that was cut off: %v", err)
	}
}

// TestFirmwareDisk: the firmware's disk is one more, under its own name, and counts for the marks.
func TestFirmwareDisk(t *testing.T) {
	cfg := hostConfig(t)
	a := guest(func(a *pact.Assignment) {
		a.Created = 7
		a.Spec.Firmware, a.Spec.Kernel = pact.FirmwareUEFI, ""
	})
	if err := prepareDir(cfg, a); err != nil {
		t.Fatal(err)
	}
	vars := filepath.Join(cfg.GuestDir("g"), "vars.raw")
	if got := diskPath(cfg.GuestDir("g"), a.Spec, len(a.Spec.Disks)); got != vars {
		t.Fatalf("it is %s", got)
	}
	// Variables that an operator brings from another machine, without the code.
	if err := os.WriteFile(vars, make([]byte, 540672), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepareDir(cfg, a); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(vars); err != nil || info.Size() != pact.FirmwareBytes {
		t.Errorf("it was not grown: %v %v", info, err)
	}
	for i := range a.Spec.AllDisks() {
		path := diskPath(cfg.GuestDir("g"), a.Spec, i)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		m := mark.Mark{State: mark.Current, Term: 5}
		if path == vars {
			m.State = mark.Outdated
		}
		if err := mark.Write(path, m); err != nil {
			t.Fatal(err)
		}
	}
	if got := readDisks(cfg, a); got.state != "outdated" {
		t.Errorf("variables that are outdated count as %+v", got)
	}
}
