package firmware

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/platform/platformtest"
)

// memFile is a disk in memory.
type memFile struct {
	b     []byte
	syncs int
	fail  error
}

func newFile() *memFile { return &memFile{b: make([]byte, platform.FlashSize)} }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) { return copy(p, f.b[off:]), nil }
func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if f.fail != nil {
		return 0, f.fail
	}
	return copy(f.b[off:], p), nil
}
func (f *memFile) Sync() error { f.syncs++; return nil }
func (f *memFile) Size() int64 { return int64(len(f.b)) }

const testDisk = 4

func newFlash(t testing.TB, file *memFile) (*platformtest.Machine, *Flash) {
	t.Helper()
	m := platformtest.New(t, memory.MinSize)
	var f *Flash
	m.Do(func() {
		var err error
		if f, err = NewFlash(m, FlashConfig{File: file, Disk: testDisk}); err == nil {
			err = f.Activate()
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { m.Do(func() { f.Close() }) })
	return m, f
}

func put(m *platformtest.Machine, at uint64, bytes ...byte) {
	for _, b := range bytes {
		m.Store(platform.FlashBase+at, 1, uint64(b))
	}
}

// mirror applies what was reported to a file of its own.
func mirror(m *platformtest.Machine, b []byte) {
	m.Do(func() {
		for _, w := range m.Writes {
			copy(b[w.Offset:], w.Data)
		}
	})
}

// TestFirmwareKnowsFlash goes the way on which OVMF finds out whether there is flash memory, ROM or RAM.
func TestFirmwareKnowsFlash(t *testing.T) {
	file := newFile()
	file.b[0x28] = '_'
	m, f := newFlash(t, file)
	view := f.Memory()
	if view[0x28] != '_' {
		t.Fatal("the guest does not see the file")
	}
	put(m, 0x28, cmdClearStatus)
	if view[0x28] != '_' {
		t.Error("cleared, it is not in array mode")
	}
	put(m, 0x28, cmdReadStatus)
	if view[0x28] != 0 {
		t.Errorf("status %#x after it was cleared", view[0x28])
	}
	put(m, 0x28, cmdReadArray)
	if view[0x28] != '_' || len(m.Writes) != 0 || file.syncs != 0 {
		t.Errorf("back to the array: %#x, %d writes", view[0x28], len(m.Writes))
	}
	put(m, 0, cmdReadID)
	if view[0] != idMaker || view[1] != idDevice || view[0x100] != idMaker {
		t.Errorf("identifier %x", view[:2])
	}
	put(m, 0, cmdQuery)
	if got := string(view[queryBase : queryBase+3]); got != "QRY" {
		t.Errorf("query answers %q", got)
	}
	if size := 1 << view[0x27]; size != platform.FlashSize {
		t.Errorf("query answers a size of %d", size)
	}
	if blocks, unit := int(view[0x2d])+int(view[0x2e])<<8+1, (int(view[0x2f])+int(view[0x30])<<8)*256; blocks*unit != platform.FlashSize || unit != blockSize {
		t.Errorf("query answers %d blocks of %d bytes", blocks, unit)
	}
	if view[VarsSize] != 0 {
		t.Error("the code is not readable meanwhile")
	}
}

func TestProgramAndErase(t *testing.T) {
	file := newFile()
	m, f := newFlash(t, file)
	view := f.Memory()
	mirrored := make([]byte, platform.FlashSize)

	put(m, 0x1234, cmdErase, cmdEraseConfirm)
	if view[0] != statusReady {
		t.Errorf("status %#x after an erasure", view[0])
	}
	put(m, 0x1234, cmdReadArray)
	if view[0xfff] != 0 || view[0x1000] != 0xff || view[0x1fff] != 0xff || view[0x2000] != 0 {
		t.Error("not just the block was erased")
	}
	syncs := file.syncs
	for i, b := range []byte("variable") {
		put(m, 0x1100+uint64(i), cmdProgramAlt, b)
	}
	if view[0x1100] != statusReady {
		t.Errorf("status %#x after programming", view[0x1100])
	}
	if file.syncs != syncs || file.b[0x1100] != 0xff {
		t.Error("what may still grow is in the file already")
	}
	put(m, 0x1107, cmdReadArray)
	if string(view[0x1100:0x1108]) != "variable" {
		t.Errorf("programmed, the guest reads %q", view[0x1100:0x1108])
	}
	if file.syncs != syncs+1 {
		t.Error("it is not durable")
	}
	mirror(m, mirrored)
	if !bytes.Equal(mirrored, file.b) || !bytes.Equal(view, file.b) {
		t.Error("file, mirror and what the guest reads differ")
	}
	for _, w := range m.Writes {
		if w.Disk != testDisk {
			t.Errorf("a write to disk %d", w.Disk)
		}
	}
	if n := len(m.Writes); n != 2 {
		t.Errorf("one erasure and one run of bytes are %d writes", n)
	}

	// The code can't be written, and an erasure needs its second half.
	put(m, VarsSize, cmdErase, cmdEraseConfirm, cmdProgram, 0x55)
	put(m, 0x3000, cmdErase, cmdReadArray)
	if view[0] != statusReady|statusEraseError|statusProgramError {
		t.Errorf("status %#x after a wrong sequence", view[0])
	}
	put(m, 0, cmdReadArray)
	if !bytes.Equal(view, mirrored) {
		t.Error("a write without effect had one")
	}
}

// TestFlashGoesOnElsewhere stops in the middle of a variable, and takes it to a machine whose file is the mirror.
func TestFlashGoesOnElsewhere(t *testing.T) {
	file := newFile()
	m, f := newFlash(t, file)
	put(m, 0, cmdErase, cmdEraseConfirm)
	put(m, 0x10, cmdProgram, 'a')
	put(m, 0x11, cmdProgram, 'b')
	put(m, 0x12, cmdProgram)
	var state []byte
	m.Do(func() { state = f.SaveState(nil) })

	twin := newFile()
	mirror(m, twin.b)
	n, g := newFlash(t, twin)
	n.Do(func() {
		if err := g.RestoreState(1, state); err != nil {
			t.Fatal(err)
		}
		if err := g.Activate(); err != nil {
			t.Fatal(err)
		}
	})
	if got := g.Memory()[0]; got != statusReady {
		t.Errorf("it answers %#x, not its status", got)
	}
	put(n, 0x12, 'c', cmdReadArray)
	if got := string(g.Memory()[0x10:0x13]); got != "abc" {
		t.Errorf("the variable is %q", got)
	}
	if got := string(twin.b[0x10:0x13]); got != "abc" || twin.syncs == 0 {
		t.Errorf("in the file it is %q, %d times durable", got, twin.syncs)
	}
	for name, bad := range map[string][]byte{
		"none": nil, "short": state[:5], "long": append(bytes.Clone(state), 0),
		"mode":    append([]byte{byte(modes)}, state[1:]...),
		"command": append([]byte{0, 0, 7}, state[3:]...),
		"place":   {0, 0, 0, 0xff, 0x3f, 8, 0, 2, 0, 0, 0, 1, 2},
	} {
		n.Do(func() {
			if err := g.RestoreState(1, bad); !errors.Is(err, platform.ErrState) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

func TestFlashReset(t *testing.T) {
	file := newFile()
	m, f := newFlash(t, file)
	put(m, 0x20, cmdProgram, 'x')
	put(m, 0x21, cmdProgram)
	m.Do(f.Reset)
	if f.Memory()[0x20] != 'x' || file.b[0x20] != 'x' {
		t.Error("what was programmed is lost, or the device is not in array mode")
	}
	put(m, 0x21, 'y')
	if f.Memory()[0x21] != 0 {
		t.Error("it has not forgotten the command")
	}
}

func TestCopyRange(t *testing.T) {
	file := newFile()
	for i := range file.b {
		file.b[i] = byte(i * 7 >> 3)
	}
	m, f := newFlash(t, file)
	put(m, 5, cmdProgram, 'x')
	m.Do(func() {
		if err := f.CopyRange(0, platform.FlashSize); err != nil {
			t.Fatal(err)
		}
		for _, bad := range [][2]int64{{-1, 1}, {0, -1}, {0, platform.FlashSize + 1}, {platform.FlashSize + 1, 0}, {1 << 62, 1 << 62}} {
			if f.CopyRange(bad[0], bad[1]) == nil {
				t.Errorf("%d bytes at %d are copied", bad[1], bad[0])
			}
		}
	})
	mirrored := make([]byte, platform.FlashSize)
	mirror(m, mirrored)
	if !bytes.Equal(mirrored, file.b) || mirrored[5] != 'x' {
		t.Error("the copy differs from the file")
	}
}

func TestBrokenFile(t *testing.T) {
	file := newFile()
	m := platformtest.New(t, memory.MinSize)
	var said []error
	var f *Flash
	m.Do(func() {
		var err error
		if f, err = NewFlash(m, FlashConfig{File: file, Failed: func(_ string, _, _ int64, err error) { said = append(said, err) }}); err != nil {
			t.Fatal(err)
		}
		defer func() { t.Cleanup(func() { f.Close() }) }()
		if err := f.Activate(); err != nil {
			t.Fatal(err)
		}
	})
	file.fail = errors.New("no space")
	put(m, 0, cmdProgram, 'x')
	put(m, 0, cmdReadStatus)
	if f.Memory()[0] != statusReady|statusProgramError || len(said) != 1 {
		t.Errorf("status %#x, said %v", f.Memory()[0], said)
	}
	if len(m.Writes) != 1 {
		t.Error("the twin does not get what the guest sees")
	}
}

func image(seed byte) *Image {
	i := &Image{Code: bytes.Repeat([]byte{seed}, CodeSize), Vars: bytes.Repeat([]byte{seed + 1}, VarsSize)}
	copy(i.Code[0x28:], "_FVH")
	copy(i.Vars[0x28:], "_FVH")
	return i
}

func TestPrepare(t *testing.T) {
	file := newFile()
	m, f := newFlash(t, file)
	prepare := func(i *Image) (err error) {
		m.Do(func() {
			if err = f.Prepare(i); err == nil {
				err = f.Activate()
			}
		})
		return err
	}
	if err := prepare(nil); !errors.Is(err, ErrMissing) || Holds(file) {
		t.Fatalf("neither package nor file: %v", err)
	}
	old, newer := image(1), image(3)
	if err := prepare(old); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file.b, append(bytes.Clone(old.Vars), old.Code...)) || file.syncs != 1 || !Holds(file) {
		t.Fatal("the first boot has not got the image")
	}
	put(m, 0x400, cmdProgram, 'v')
	put(m, 0x400, cmdReadArray)
	if err := prepare(newer); err != nil {
		t.Fatal(err)
	}
	if file.b[0x400] != 'v' || file.b[0x401] != old.Vars[0x401] || !bytes.Equal(file.b[VarsSize:], newer.Code) {
		t.Error("a later boot has not the package's code with the guest's variables")
	}
	writes := len(m.Writes)
	if err := prepare(newer); err != nil || len(m.Writes) != writes {
		t.Errorf("the same again: %v, %d writes", err, len(m.Writes)-writes)
	}
	if err := prepare(nil); err != nil {
		t.Errorf("the package is gone: %v", err)
	}
	mirrored := make([]byte, platform.FlashSize)
	mirror(m, mirrored)
	if !bytes.Equal(mirrored, file.b) {
		t.Error("what a boot writes is not mirrored")
	}
}

func TestReadImage(t *testing.T) {
	dir := t.TempDir()
	code, vars := filepath.Join(dir, "code"), filepath.Join(dir, "vars")
	if _, err := ReadImage(code, vars); !errors.Is(err, ErrMissing) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no files: %v", err)
	}
	i := image(1)
	for path, b := range map[string][]byte{code: i.Code, vars: i.Vars} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ReadImage(code, vars); err != nil || !bytes.Equal(got.Code, i.Code) || !bytes.Equal(got.Vars, i.Vars) {
		t.Errorf("both files: %v", err)
	}
	if _, err := ReadImage(vars, code); err == nil || errors.Is(err, ErrMissing) {
		t.Errorf("the files exchanged: %v", err)
	}
	if err := os.WriteFile(vars, make([]byte, VarsSize), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadImage(code, vars); err == nil {
		t.Error("an empty template is accepted")
	}
}

// FuzzFlash holds the device against what must always be true of it: file and mirror agree once it has settled, the
// guest reads the contents in array mode, and a state that was saved is one that can be restored.
func FuzzFlash(f *testing.F) {
	f.Add([]byte{0, 0x20, 0, 0xd0, 1, 0x40, 1, 'a', 2, 0x40, 2, 'b', 0, 0xff})
	f.Add([]byte{0x80, 0x10, 0x80, 0x55, 0x90, 0x40, 0x90, 0x98, 0, 0x98})
	f.Fuzz(func(t *testing.T, ops []byte) {
		file := newFile()
		m, fl := newFlash(t, file)
		for ; len(ops) >= 2; ops = ops[2:] {
			put(m, uint64(ops[0])*0x911, ops[1])
		}
		var state []byte
		m.Do(func() {
			state = fl.SaveState(nil)
			if err := fl.RestoreState(1, state); err != nil {
				t.Fatalf("a saved state is refused: %v", err)
			}
			if err := fl.Activate(); err != nil {
				t.Fatal(err)
			}
			if again := fl.SaveState(nil); !bytes.Equal(again, state) {
				t.Fatalf("state %x, then %x", state, again)
			}
			fl.Reset()
		})
		mirrored := make([]byte, platform.FlashSize)
		mirror(m, mirrored)
		if !bytes.Equal(mirrored, file.b) || !bytes.Equal(fl.Memory(), file.b) {
			t.Fatal("file, mirror and what the guest reads differ")
		}
	})
}
