package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/journal"
)

// poorDisk is on storage that can't do everything.
type poorDisk struct {
	*Disk
	keeps   bool // it can zero a range whose space stays
	written int64
}

func (d *poorDisk) WriteAt(p []byte, off int64) (int, error) {
	d.written += int64(len(p))
	return d.Disk.WriteAt(p, off)
}

func (d *poorDisk) Zero(off, n int64, unmap bool) error {
	if unmap || !d.keeps {
		return errors.ErrUnsupported
	}
	_, err := d.Disk.WriteAt(make([]byte, n), off)
	return err
}

func never() error { return nil }

// Where the storage can't give space back, a discard of a range that is mostly a hole writes what is not.
func TestZeroWritesWhatIsNotZero(t *testing.T) {
	const size = 256 << 20
	f, err := OpenDisk(context.Background(), filepath.Join(t.TempDir(), "disk"), size, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	places := []int64{0, 40<<20 + 512, 100<<20 - 512, size - 4096}
	for _, at := range places {
		if _, err := f.WriteAt(bytes.Repeat([]byte{7}, 1024), at); err != nil {
			t.Fatal(err)
		}
	}
	// Data that is zero already.
	if _, err := f.WriteAt(make([]byte, 8<<20), 200<<20); err != nil {
		t.Fatal(err)
	}
	d := &poorDisk{Disk: f}
	steps := 0
	written, err := zero(d, &checkpoint.DiskWrite{Zeros: size, Unmap: true}, func() error { steps++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(2 * zeroStep * len(places)); written != d.written || written == 0 || written > limit {
		t.Errorf("%d bytes written (%d counted), at most %d are needed", d.written, written, limit)
	}
	if steps == 0 {
		t.Error("no pause")
	}
	for _, at := range places {
		b := make([]byte, 1024)
		if _, err := f.ReadAt(b, at); err != nil || !bytes.Equal(b, make([]byte, 1024)) {
			t.Errorf("at %d: not zero, %v", at, err)
		}
	}
	if st, err := os.Stat(f.Name()); err != nil || st.Sys().(*syscall.Stat_t).Blocks*512 > size/4 {
		t.Errorf("the file takes %d bytes, %v", st.Sys().(*syscall.Stat_t).Blocks*512, err)
	}
	// Not a byte more than the range.
	if _, err := f.WriteAt(bytes.Repeat([]byte{9}, 4096), 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := zero(d, &checkpoint.DiskWrite{Offset: 1<<20 + 512, Zeros: 1024}, never); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	want := bytes.Repeat([]byte{9}, 4096)
	clear(want[512 : 512+1024])
	if _, err := f.ReadAt(b, 1<<20); err != nil || !bytes.Equal(b, want) {
		t.Errorf("more or less than the range is zero, %v", err)
	}
}

// Where space can't be given back and a range can be zeroed, nothing is written.
func TestZeroKeepsSpace(t *testing.T) {
	f, err := OpenDisk(context.Background(), filepath.Join(t.TempDir(), "disk"), 1<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("data"), 0); err != nil {
		t.Fatal(err)
	}
	d := &poorDisk{Disk: f, keeps: true}
	written, err := zero(d, &checkpoint.DiskWrite{Zeros: 4096, Unmap: true}, never)
	if err != nil || written != 0 || d.written != 0 {
		t.Errorf("%d bytes written, %v", written, err)
	}
	b := make([]byte, 4)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "\x00\x00\x00\x00" {
		t.Errorf("%q, %v", b, err)
	}
}

// steppedDisk calls step at each step of a long write.
type steppedDisk struct {
	*tapeFile
	step func(n int)
	n    int
}

func (d *steppedDisk) Zero(int64, int64, bool) error { return errors.ErrUnsupported }

func (d *steppedDisk) NextData(off int64) int64 {
	d.n++
	d.step(d.n)
	return off
}

// An epoch that comes while a long range is written is durable before that has ended.
func TestEpochsAreDurableBesideALongWrite(t *testing.T) {
	began, come := make(chan struct{}), make(chan struct{})
	var w *worker
	var durable []uint64
	disk := &steppedDisk{tapeFile: &tapeFile{data: bytes.Repeat([]byte{5}, 4*zeroStep)}}
	disk.step = func(n int) {
		if n == 1 {
			close(began)
			<-come
		}
		durable = append(durable, w.durable.Load())
	}
	jf := &tapeFile{data: make([]byte, crashJournal)}
	j, err := recoverJournal(jf, crashJournal, []file{disk}, true)
	if err != nil {
		t.Fatal(err)
	}
	w = newWorker([]file{disk}, j, func(pact.Term, pact.Epoch) error { return nil })
	go w.run()
	defer w.stop()
	commit := func(e pact.Epoch, writes ...checkpoint.DiskWrite) {
		t.Helper()
		r, err := w.reserve(writes)
		if err != nil {
			t.Fatal(err)
		}
		w.commit(r, 1, e, false)
	}
	commit(1, checkpoint.DiskWrite{Zeros: 4 * zeroStep, Unmap: true})
	<-began
	commit(2, checkpoint.DiskWrite{Offset: 512, Data: []byte("after")})
	commit(3, checkpoint.DiskWrite{Offset: 1024, Data: []byte("that")})
	close(come)
	ran := false
	if err := w.do(func() error { ran = true; return nil }); err != nil || !ran {
		t.Fatal(err)
	}
	if len(durable) != 4 || durable[0] != 1 || durable[1] != 3 {
		t.Errorf("durable at each step: %v", durable)
	}
	if string(disk.data[512:517]) != "after" || string(disk.data[1024:1028]) != "that" || disk.data[0] != 0 || disk.data[4*zeroStep-1] != 0 {
		t.Error("the disk is not as of the newest epoch")
	}
	var epochs []pact.Epoch
	if _, err := journal.Open(jf, crashJournal, func(e journal.Epoch) error { epochs = append(epochs, e.Number); return nil }); err != nil || len(epochs) != 3 {
		t.Errorf("the journal holds %v, %v", epochs, err)
	}
}
