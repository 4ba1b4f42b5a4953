package blockfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const size = 1 << 20

func full(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xaa}, size), 0); err != nil {
		t.Fatal(err)
	}
	if err := Sync(f); err != nil {
		t.Fatal(err)
	}
	return f
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

// The ranges begin and end within blocks: the neighbours must stay as they are.
func TestZeroIsExact(t *testing.T) {
	for _, unmap := range []bool{false, true} {
		f := full(t)
		want := bytes.Repeat([]byte{0xaa}, size)
		for _, r := range [][2]int64{{512, 512}, {4096 + 1024, 3*4096 + 512}, {100 << 10, 256 << 10}, {size - 512, 512}} {
			err := Zero(f, r[0], r[1], unmap)
			if errors.Is(err, errors.ErrUnsupported) {
				if _, err = WriteZeros(f, r[0], r[1]); err == nil {
					t.Logf("unmap %v: the file system of %s can't", unmap, f.Name())
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			clear(want[r[0] : r[0]+r[1]])
		}
		got, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("unmap %v: the content is wrong", unmap)
		}
	}
}

func TestUnmapGivesSpaceBack(t *testing.T) {
	f := full(t)
	before := blocks(t, f)
	if err := Zero(f, 0, size/2, true); errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("needs a file system with holes: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	if after := blocks(t, f); after > before*3/4 {
		t.Errorf("%d of %d blocks are left", after, before)
	}
	if got := NextData(f, 0, size); got != 0 && got != size/2 {
		t.Errorf("data from %d on", got)
	}
	if got := NextData(f, size/2+5, size); got != size/2+5 {
		t.Errorf("data at %d", got)
	}
	if err := Zero(f, size/2, size/2, true); err != nil {
		t.Fatal(err)
	}
	if got := NextData(f, 100, size); got != 100 && got != size {
		t.Errorf("data at %d of an empty file", got)
	}
}

func TestErrors(t *testing.T) {
	f := full(t)
	f.Close()
	if err := Zero(f, 0, 512, true); err == nil || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a closed file: %v", err)
	}
	if err := Sync(f); err == nil {
		t.Error("a closed file was made durable")
	}
	if n, err := WriteZeros(f, 0, 512); n != 0 || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if NextData(f, 7, size) != 7 {
		t.Error("a closed file has holes")
	}
}

func TestIsZero(t *testing.T) {
	p := make([]byte, 600<<10)
	if !IsZero(p) || !IsZero(nil) {
		t.Error("zeros are not zero")
	}
	for _, at := range []int{0, 1, 256<<10 - 1, 256 << 10, len(p) - 1} {
		p[at] = 1
		if IsZero(p) {
			t.Errorf("a one at %d was missed", at)
		}
		p[at] = 0
	}
}
