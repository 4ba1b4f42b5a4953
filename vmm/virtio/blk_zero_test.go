package virtio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/pollux-ha/pollux/vmm/virtio/virtiotest"
)

const zeroing = blkFeatureDiscard | blkFeatureWriteZeroes

// blkRange is a range of a discard or write-zeroes request as it lies in memory.
func blkRange(sector uint64, n, flags uint32) []byte {
	b := binary.LittleEndian.AppendUint64(nil, sector)
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, n), flags)
}

func TestBlkConfig(t *testing.T) {
	r := newRigOf(t, 3)
	d := virtiotest.Find(t, r.Machine, r.blk.Slot(), freeRAM)
	for _, c := range []struct {
		field string
		off   uint64
		n     int
		want  uint64
	}{
		{"capacity", 0, 8, 2048}, {"size_max", 8, 4, 64 << 10}, {"seg_max", 12, 4, 126}, {"blk_size", 20, 4, 512},
		{"physical_block_exp", 24, 1, 3}, {"alignment_offset", 25, 1, 0}, {"min_io_size", 26, 2, 8}, {"num_queues", 34, 2, 3},
		{"max_discard_sectors", 36, 4, 1 << 19}, {"max_discard_seg", 40, 4, 64}, {"discard_sector_alignment", 44, 4, 8},
		{"max_write_zeroes_sectors", 48, 4, 1 << 17}, {"max_write_zeroes_seg", 52, 4, 1}, {"write_zeroes_may_unmap", 56, 1, 1},
	} {
		if got := r.Load(d.Device+c.off, c.n); got != c.want {
			t.Errorf("%s: %d, want %d", c.field, got, c.want)
		}
	}
	if got := d.Offered() & (zeroing | blkFeatureMQ | blkFeatureTopology); got != zeroing|blkFeatureMQ|blkFeatureTopology {
		t.Errorf("offered %#x", d.Offered())
	}
	if d.Offered()&(1<<11) != 0 {
		t.Error("CONFIG_WCE is offered")
	}
}

func TestBlkZero(t *testing.T) {
	const all = 0xaa
	for _, exact := range []bool{true, false} {
		r := newRig(t)
		r.file.exact = exact
		for i := range r.file.data {
			r.file.data[i] = all
		}
		r.activate(t)
		d := newDisk(t, r, zeroing)
		total := uint64(r.file.Size() / sectorSize)
		var many []byte
		for i := range uint64(blkDiscardSegs) {
			many = append(many, blkRange(100+2*i, 1, 0)...)
		}
		cases := []struct {
			name   string
			op     uint32
			data   []byte
			status byte
			q      req
		}{
			{name: "write zeroes", op: blkWriteZeroes, data: blkRange(3, 2, 0)},
			{name: "write zeroes, unmap", op: blkWriteZeroes, data: blkRange(10, 5, 1)},
			{name: "discard", op: blkDiscard, data: blkRange(20, 7, 0)},
			{name: "discard of many ranges", op: blkDiscard, data: many},
			{name: "the last sector", op: blkWriteZeroes, data: blkRange(total-1, 1, 0)},
			{name: "nothing", op: blkDiscard, data: blkRange(0, 0, 0)},
			{name: "beyond the end", op: blkDiscard, data: blkRange(total-1, 2, 0), status: blkIOErr},
			{name: "far beyond the end", op: blkWriteZeroes, data: blkRange(1<<63, 1, 0), status: blkIOErr},
			{name: "the second beyond the end", op: blkDiscard, data: append(blkRange(50, 1, 0), blkRange(total, 1, 0)...), status: blkIOErr},
			{name: "more than at once", op: blkWriteZeroes, data: blkRange(0, blkZeroSectors+1, 0), status: blkIOErr},
			{name: "two ranges to zero", op: blkWriteZeroes, data: append(blkRange(50, 1, 0), blkRange(51, 1, 0)...), status: blkIOErr},
			{name: "too many ranges", op: blkDiscard, data: append(many[:len(many):len(many)], blkRange(50, 1, 0)...), status: blkIOErr},
			{name: "half a range", op: blkDiscard, data: blkRange(50, 1, 0)[:8], status: blkIOErr},
			{name: "no range", op: blkDiscard, status: blkIOErr},
			{name: "discard that unmaps", op: blkDiscard, data: blkRange(50, 1, 1), status: blkUnsupported},
			{name: "unknown flag", op: blkWriteZeroes, data: blkRange(50, 1, 2), status: blkUnsupported},
		}
		for i := range cases {
			cases[i].q = d.add(cases[i].op, 0, cases[i].data, 0)
		}
		d.queue().Kick()
		d.queue().Wait(t, uint16(len(cases)))
		for _, c := range cases {
			if got := d.statusOf(c.q); got != c.status {
				t.Errorf("%s (exact %v): status %d, want %d", c.name, exact, got, c.status)
			}
		}
		want := bytes.Repeat([]byte{all}, len(r.file.data))
		zero := func(sector, n int) { clear(want[sector*sectorSize : (sector+n)*sectorSize]) }
		zero(3, 2)
		zero(10, 5)
		zero(int(total)-1, 1)
		if exact { // else a discard does nothing: there is no space to give back
			zero(20, 7)
			for i := range blkDiscardSegs {
				zero(100+2*i, 1)
			}
		}
		if !bytes.Equal(r.file.data, want) {
			t.Errorf("exact %v: the disk is wrong", exact)
		}
		mirror := bytes.Repeat([]byte{all}, len(r.file.data))
		unmapped := 0
		r.Do(func() {
			for _, w := range r.Writes {
				w.Apply(mirror)
				if w.Zeros > 0 && w.Unmap {
					unmapped++
				}
				if w.Zeros == 0 {
					t.Errorf("%d bytes were reported as written", len(w.Data))
				}
			}
		})
		if !bytes.Equal(mirror, want) {
			t.Errorf("exact %v: the mirror is wrong", exact)
		}
		if exact && unmapped != 2+blkDiscardSegs || !exact && unmapped != 0 {
			t.Errorf("exact %v: %d ranges gave their space back", exact, unmapped)
		}
	}
}

// tornFile fails in the middle of zeroing, having done a part of it out of order.
type tornFile struct {
	*memFile
	at int64 // from here on it can't be written
}

func (f *tornFile) Zero(offset, n int64, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.data[offset+n-sectorSize : offset+n])
	return errors.New("input/output error")
}

func (f *tornFile) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= f.at {
		return f.memFile.WriteAt(p, off)
	}
	n, _ := f.memFile.WriteAt(p[:f.at-off], off)
	return n, errors.New("input/output error")
}

// After a range was zeroed in part, the mirror holds what the disk holds.
func TestBlkZeroFails(t *testing.T) {
	r := newRig(t)
	for i := range r.file.data {
		r.file.data[i] = 0xaa
	}
	mirror := bytes.Clone(r.file.data)
	r.blk.file = &tornFile{r.file, 5 * sectorSize}
	r.blk.zeroer = r.blk.file.(Zeroer)
	var failures []BlkError
	r.blk.failed = func(e BlkError) bool { failures = append(failures, e); return false }
	r.activate(t)
	d := newDisk(t, r, zeroing)
	q := d.add(blkWriteZeroes, 0, blkRange(2, 10, 0), 0)
	d.queue().Kick()
	d.queue().Wait(t, 1)
	if got := d.statusOf(q); got != blkIOErr {
		t.Errorf("status %d", got)
	}
	r.Do(func() {
		for _, w := range r.Writes {
			w.Apply(mirror)
		}
	})
	if !bytes.Equal(mirror, r.file.data) || mirror[2*sectorSize] != 0 || mirror[5*sectorSize] != 0xaa || mirror[11*sectorSize] != 0 {
		t.Error("the mirror is not what the disk is")
	}
	if len(failures) != 1 || failures[0].Op != "zero" || failures[0].Offset != 2*sectorSize || failures[0].Bytes != 10*sectorSize {
		t.Errorf("failures %v", failures)
	}
}

// A file whose sync has failed once has lost writes: no later flush may say otherwise.
func TestBlkFlushFailsForGood(t *testing.T) {
	r := newRig(t)
	r.activate(t)
	d := newDisk(t, r, 0)
	r.file.setFail(errors.New("input/output error"))
	first := d.flush()
	d.queue().Kick()
	d.queue().Wait(t, 1)
	r.file.setFail(nil)
	w := d.write(0, sectors(1, 1))
	d.queue().Kick()
	d.queue().Wait(t, 2)
	second := d.flush()
	d.queue().Kick()
	d.queue().Wait(t, 3)
	if d.statusOf(first) != blkIOErr || d.statusOf(w) != blkOK || d.statusOf(second) != blkIOErr {
		t.Errorf("flush %d, write %d, flush %d", d.statusOf(first), d.statusOf(w), d.statusOf(second))
	}
}

// Flushes that come while the file is being synced share the next sync, writes don't wait for it, and
// where nothing has changed there is none.
func TestBlkFlushesAreShared(t *testing.T) {
	r := newRigOf(t, 2)
	r.activate(t)
	d := newDisk(t, r, blkFeatureMQ)
	begun := r.file.hold()
	d.flush()
	d.queue().Kick()
	<-begun // the first sync
	for range 20 {
		d.flush()
	}
	rd := d.read(0, sectorSize)
	d.queue().Kick()
	if op := <-begun; op != "read" {
		t.Errorf("a %s begins while the file is being synced", op)
	}
	r.blk.unsynced.Store(true) // as if a write had landed
	r.file.release()
	d.queue().Wait(t, 22)
	if d.statusOf(rd) != blkOK {
		t.Error("the read failed")
	}
	d.flush()
	d.flush()
	d.queue().Kick()
	d.queue().Wait(t, 24)
	syncs := 0
	for _, op := range r.file.log {
		if op == "sync" {
			syncs++
		}
	}
	if syncs != 2 {
		t.Errorf("%d syncs: %v", syncs, r.file.log)
	}
}

// A failure that is held back leaves the request in flight, and another machine issues it again.
func TestBlkHeldFailure(t *testing.T) {
	r := newRig(t)
	failures := make(chan string, 2)
	r.blk.failed = func(e BlkError) bool { failures <- e.Op; return true }
	r.activate(t)
	d := newDisk(t, r, 0)
	r.file.setFail(errors.New("input/output error"))
	w, fl := d.write(1, sectors('w', 1)), d.flush()
	d.queue().Kick()
	<-failures
	<-failures
	r.blk.Drain() // while the disk runs, so that nothing else keeps the answers back
	r.Do(r.blk.Suspend)
	if d.statusOf(w) != 0xee || d.statusOf(fl) != 0xee {
		t.Errorf("the guest was told: %d, %d", d.statusOf(w), d.statusOf(fl))
	}
	to := r.move(t)
	to.activate(t)
	e := &disk{d.On(to.Machine), t, to}
	e.queue().Wait(t, 2)
	if e.statusOf(w) != blkOK || e.statusOf(fl) != blkOK || to.file.data[sectorSize] != 'w' {
		t.Errorf("write %d, flush %d", e.statusOf(w), e.statusOf(fl))
	}
}

// A state of version 1, of the only queue, is still read.
func TestBlkStateVersion1(t *testing.T) {
	r := newRig(t)
	begun := r.file.hold()
	r.activate(t)
	d := newDisk(t, r, 0)
	w := d.write(1, sectors('w', 1))
	d.queue().Kick()
	<-begun
	old := r.Save(r.blk)
	tail := binary.LittleEndian.AppendUint16(nil, w.head)
	old = append(old[:len(old)-3:len(old)-3], tail...) // the queue's number was not there
	to := newRig(t)
	to.CopyRAM(r.Machine)
	to.Do(func() {
		for _, s := range []struct {
			version uint16
			bad     bool
		}{{2, true}, {1, false}} {
			if err := to.blk.RestoreState(s.version, old); (err != nil) != s.bad {
				t.Errorf("as version %d: %v", s.version, err)
			}
		}
	})
	to.Machine.Activate(t, to.host, to.blk)
	e := &disk{d.On(to.Machine), t, to}
	e.queue().Wait(t, 1)
	if e.statusOf(w) != blkOK || to.file.data[sectorSize] != 'w' {
		t.Error("the write was not issued again")
	}
}

// sparseFile knows its holes: whole zero blocks.
type sparseFile struct{ *memFile }

func (f sparseFile) NextData(offset int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for offset < int64(len(f.data)) && f.data[offset] == 0 {
		offset++
	}
	return offset
}

func TestCopyRangeOfHoles(t *testing.T) {
	for _, sparse := range []bool{true, false} {
		r := newRig(t)
		copy(r.file.data[300<<10:], bytes.Repeat([]byte{7}, 5000))
		if sparse {
			r.blk.sparse = sparseFile{r.file}
		}
		r.activate(t)
		done := make(chan error, 1)
		r.blk.CopyRange(0, r.file.Size(), func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		mirror := bytes.Repeat([]byte{9}, len(r.file.data))
		r.Do(func() {
			var data int64
			for _, w := range r.Writes {
				w.Apply(mirror)
				data += int64(len(w.Data))
			}
			if data > copyBytes {
				t.Errorf("sparse %v: %d bytes were copied", sparse, data)
			}
		})
		if !bytes.Equal(mirror, r.file.data) {
			t.Errorf("sparse %v: the mirror is not what the disk is", sparse)
		}
		if reads := len(r.file.log); sparse && reads > 1 {
			t.Errorf("%d reads of a sparse file", reads)
		}
	}
}
