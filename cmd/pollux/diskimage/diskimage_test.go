package diskimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needTool(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img: apt-get install qemu-utils")
	}
}

// disk makes a raw disk with data here and there.
func disk(t *testing.T, path string) []byte {
	t.Helper()
	b := make([]byte, 8<<20)
	r := rand.NewChaCha8([32]byte{1})
	for _, at := range []int{0, 1 << 20, 8<<20 - 512} {
		r.Read(b[at : at+512])
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEveryFormatComesBackEqual(t *testing.T) {
	needTool(t)
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk0.raw")
	want := disk(t, raw)
	for f := range drivers {
		t.Run(string(f), func(t *testing.T) {
			image, back := filepath.Join(dir, "image."+string(f)), filepath.Join(dir, "back."+string(f))
			if err := Export(t.Context(), raw, image, Options{Format: f}); err != nil {
				t.Fatal(err)
			}
			i, err := Look(t.Context(), image, "")
			if err != nil || i.Format != f || i.SizeBytes != uint64(len(want)) {
				t.Fatalf("%+v %v", i, err)
			}
			if i, err = Import(t.Context(), image, back, Options{}); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(back)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes came back, not the same: %v", len(got), err)
			}
			if i.ActualBytes >= i.SizeBytes {
				t.Errorf("zeroes take room: %d of %d bytes", i.ActualBytes, i.SizeBytes)
			}
		})
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".pollux-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestArchive(t *testing.T) {
	needTool(t)
	dir := t.TempDir()
	raw, vmdk := filepath.Join(dir, "raw"), filepath.Join(dir, "vmdk")
	want := disk(t, raw)
	if err := Export(t.Context(), raw, vmdk, Options{Format: VMDK}); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(vmdk)
	if err != nil {
		t.Fatal(err)
	}
	ovf, err := os.ReadFile("../domain/testdata/archive.ovf")
	if err != nil {
		t.Fatal(err)
	}
	ova := filepath.Join(dir, "machine.ova")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range map[string][]byte{"archive.ovf": ovf, "archive-disk1.vmdk": image, "../outside": []byte("no")} {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data))}), second(w.Write(data))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), os.WriteFile(ova, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	back := filepath.Join(dir, "back")
	if _, err := Import(t.Context(), ova, back, Options{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk of the archive differs: %v", err)
	}
	if _, err := Import(t.Context(), ova, filepath.Join(dir, "x"), Options{Number: 1}); err == nil {
		t.Error("there is no second disk")
	}
	cut := filepath.Join(dir, "cut.ova")
	if err := os.WriteFile(cut, b.Bytes()[:b.Len()/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(t.Context(), cut, filepath.Join(dir, "x"), Options{}); err == nil {
		t.Error("half an archive was imported")
	}
}

func second(_ int, err error) error { return err }

func TestImagesThatReachOutAreRefused(t *testing.T) {
	needTool(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	disk(t, secret)
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		if _, err := qemuImg(t.Context(), nil, args...); err != nil {
			t.Fatal(err)
		}
	}
	overlay, external, extent := filepath.Join(sub, "overlay"), filepath.Join(sub, "external"), filepath.Join(sub, "extent.vmdk")
	run("create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, overlay)
	run("create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), external, "8M")
	descriptor := "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n" +
		"RW 16384 FLAT \"" + secret + "\" 0\n\nddb.adapterType = \"ide\"\nddb.geometry.cylinders = \"16\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n"
	if err := os.WriteFile(extent, []byte(descriptor), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{overlay, external, extent} {
		target := filepath.Join(sub, "target")
		if _, err := Import(t.Context(), image, target, Options{}); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", filepath.Base(image), err)
		}
		if _, err := os.Stat(target); err == nil {
			t.Errorf("%s: there is a target", filepath.Base(image))
		}
	}
}

func TestDamagedImagesLoseNothing(t *testing.T) {
	needTool(t)
	dir := t.TempDir()
	raw, image, target := filepath.Join(dir, "raw"), filepath.Join(dir, "image"), filepath.Join(dir, "target")
	disk(t, raw)
	if err := Export(t.Context(), raw, image, Options{Format: VHDX}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 5<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Import(t.Context(), image, target, Options{Format: VHDX, Replace: true}); err == nil {
		t.Error("half an image was imported")
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "older" {
		t.Errorf("the older file is %q %v", b, err)
	}
	if _, err := Import(t.Context(), raw, target, Options{Format: Raw}); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("an existing file was replaced: %v", err)
	}
}

func TestCreateAndResize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	i, err := Create(path, 1<<30, false)
	if err != nil || i.SizeBytes != 1<<30 || i.ActualBytes > 1<<20 {
		t.Fatalf("%+v %v", i, err)
	}
	if _, err := Create(path, 1<<20, false); err == nil {
		t.Error("an existing file was replaced")
	}
	if _, err := Create(path+"x", 1000, false); err == nil {
		t.Error("a disk of no whole sectors was made")
	}
	if i, err = Resize(path, 2<<30, false); err != nil || i.SizeBytes != 2<<30 {
		t.Errorf("%+v %v", i, err)
	}
	if _, err = Resize(path, 1<<20, false); err == nil {
		t.Error("made smaller without a word")
	}
	if i, err = Resize(path, 1<<20, true); err != nil || i.SizeBytes != 1<<20 {
		t.Errorf("%+v %v", i, err)
	}
}

func TestADiskInUseIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	if _, err := Create(path, 1<<20, false); err != nil {
		t.Fatal(err)
	}
	guest, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	if err := unix.Flock(int(guest.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func() error{
		"create": func() error { _, err := Create(path, 2<<20, true); return err },
		"resize": func() error { _, err := Resize(path, 2<<20, false); return err },
		"export": func() error { return Export(t.Context(), path, filepath.Join(dir, "out"), Options{Format: QCOW2}) },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
