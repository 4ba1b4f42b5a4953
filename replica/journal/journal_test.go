package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
)

type memFile []byte

func (f memFile) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, f[min(off, int64(len(f))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f memFile) WriteAt(p []byte, off int64) (int, error) { return copy(f[off:], p), nil }
func (f memFile) Sync() error                              { return nil }

const testBytes = MinBytes + 32<<10

func none(Epoch) error { return errors.New("nothing should be replayed") }

func open(t *testing.T, f memFile) *Journal {
	t.Helper()
	j, err := Open(f, int64(len(f)), none)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Reset(); err != nil {
		t.Fatal(err)
	}
	return j
}

func put(t *testing.T, j *Journal, e pact.Epoch, size int) uint64 {
	t.Helper()
	w := []checkpoint.DiskWrite{{Disk: 1, Offset: int64(e), Data: bytes.Repeat([]byte{byte(e)}, size)}}
	s, err := j.Reserve(Size(w))
	if err != nil {
		t.Fatal(err)
	}
	n, err := j.Append(s, Epoch{Term: 3, Number: e, Writes: w})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func replayed(t *testing.T, f memFile) (out []pact.Epoch) {
	t.Helper()
	_, err := Open(f, int64(len(f)), func(e Epoch) error {
		if e.Term != 3 || len(e.Writes) != 1 || e.Writes[0].Disk != 1 || e.Writes[0].Offset != int64(e.Number) || e.Writes[0].Data[0] != byte(e.Number) {
			t.Errorf("epoch %d came back as %+v", e.Number, e)
		}
		out = append(out, e.Number)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestReplayStopsAtDamage(t *testing.T) {
	f := make(memFile, testBytes)
	j := open(t, f)
	for e := pact.Epoch(1); e <= 4; e++ {
		put(t, j, e, 100)
	}
	if got := replayed(t, f); len(got) != 4 {
		t.Fatalf("replayed %v", got)
	}
	// Records take one block each, after two header slots and the segment's header.
	for at := 3 * block; at < 7*block; at += 37 {
		if at%block >= recHeader+writeHeader+100 {
			continue // padding
		}
		damaged := bytes.Clone(f)
		damaged[at] ^= 0x10
		if got, want := len(replayed(t, damaged)), at/block-3; got != want {
			t.Fatalf("damage at %d: %d epochs replayed, want %d", at, got, want)
		}
	}
}

func TestSpace(t *testing.T) {
	f := make(memFile, testBytes)
	j := open(t, f)
	var last uint64
	var n int
	for {
		s, err := j.Reserve(8000)
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		j.Cancel(s)
		last = put(t, j, pact.Epoch(n+1), 8000)
		n++
	}
	if n < 4 {
		t.Fatalf("full after %d epochs", n)
	}
	if err := j.Done(last); err != nil {
		t.Fatal(err)
	}
	put(t, j, pact.Epoch(n+1), 8000)
	if got := replayed(t, f); got[len(got)-1] != pact.Epoch(n+1) {
		t.Errorf("replayed %v", got)
	}
	if _, err := j.Reserve(testBytes); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a huge epoch: %v", err)
	}
	j.Fail(io.ErrClosedPipe)
	if _, err := j.Reserve(100); err == nil {
		t.Error("a failed journal gives space")
	}
}

func TestResetVoids(t *testing.T) {
	f := make(memFile, testBytes)
	j := open(t, f)
	put(t, j, 1, 10)
	w := []checkpoint.DiskWrite{{Data: []byte{1}}}
	old, err := j.Reserve(Size(w))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Reset(); err != nil {
		t.Fatal(err)
	}
	if got := replayed(t, f); got != nil {
		t.Errorf("replayed %v", got)
	}
	if _, err := j.Append(old, Epoch{Writes: w}); err == nil {
		t.Error("a slot of the journal before the reset was used")
	}
	j.Cancel(old)
	put(t, j, 9, 10)
	if got := replayed(t, f); len(got) != 1 || got[0] != 9 {
		t.Errorf("replayed %v", got)
	}
}

// Zeros come back from the journal as they went in, between data.
func TestZeros(t *testing.T) {
	f := make(memFile, testBytes)
	j := open(t, f)
	want := []checkpoint.DiskWrite{
		{Disk: 1, Offset: 512, Zeros: 1 << 40}, {Offset: 0, Data: []byte("data")}, {Disk: 2, Offset: 4096, Zeros: 512, Unmap: true},
	}
	if got := Size(want); got != block {
		t.Errorf("%d bytes", got)
	}
	s, err := j.Reserve(Size(want))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(s, Epoch{Term: 3, Number: 1, Writes: want}); err != nil {
		t.Fatal(err)
	}
	var got []checkpoint.DiskWrite
	if _, err := Open(f, testBytes, func(e Epoch) error { got = e.Writes; return nil }); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// firstFormat makes a journal of one epoch as format 1 had it.
func firstFormat(w checkpoint.DiskWrite) memFile {
	f := make(memFile, testBytes)
	le := binary.LittleEndian
	h := f[block:]
	le.PutUint32(h[0:], headerMagic)
	le.PutUint32(h[4:], 1)
	le.PutUint64(h[8:], 1)
	le.PutUint64(h[16:], 7)
	le.PutUint64(h[32:], (testBytes-2*block)/segments&^(block-1))
	le.PutUint32(h[40:], crc32.Checksum(h[:40], castagnoli))
	s := f[2*block:]
	le.PutUint32(s[0:], segMagic)
	le.PutUint32(s[4:], 1)
	le.PutUint64(s[8:], 7)
	le.PutUint64(s[16:], 1)
	le.PutUint32(s[24:], crc32.Checksum(s[:24], castagnoli))
	body := le.AppendUint64([]byte{w.Disk}, uint64(w.Offset))
	body = append(le.AppendUint32(body, uint32(len(w.Data))), w.Data...)
	r := s[block:]
	le.PutUint32(r[0:], recMagic)
	le.PutUint32(r[4:], 1)
	le.PutUint64(r[8:], 7)
	le.PutUint64(r[16:], 1)
	le.PutUint64(r[24:], 3)
	le.PutUint64(r[32:], uint64(w.Offset))
	le.PutUint64(r[40:], uint64(len(body)))
	le.PutUint64(r[48:], xxh3.Hash(body))
	le.PutUint32(r[60:], crc32.Checksum(r[:60], castagnoli))
	copy(r[recHeader:], body)
	return f
}

func TestOtherFormats(t *testing.T) {
	f := firstFormat(checkpoint.DiskWrite{Disk: 1, Offset: 9, Data: []byte{9, 9}})
	if got := replayed(t, f); len(got) != 1 || got[0] != 9 {
		t.Fatalf("format 1: replayed %v", got)
	}
	j, err := Open(f, testBytes, func(Epoch) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Reset(); err != nil {
		t.Fatal(err)
	}
	put(t, j, 10, 10)
	if got := replayed(t, f); len(got) != 1 || got[0] != 10 {
		t.Fatalf("after a reset: replayed %v", got)
	}
	newer := make(memFile, testBytes)
	copy(newer, f)
	h := newer[int(j.slot%2)*block:]
	binary.LittleEndian.PutUint32(h[4:], format+1)
	binary.LittleEndian.PutUint32(h[40:], crc32.Checksum(h[:40], castagnoli))
	if _, err := Open(newer, testBytes, none); err == nil || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("a newer format: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	m := make(memFile, testBytes)
	j, err := Open(m, testBytes, none)
	if err != nil {
		f.Fatal(err)
	}
	if err := j.Reset(); err != nil {
		f.Fatal(err)
	}
	w := []checkpoint.DiskWrite{{Data: []byte("hello")}, {Disk: 1, Offset: 512, Zeros: 1024, Unmap: true}}
	f.Add([]byte(firstFormat(w[0])[:5*block]))
	s, _ := j.Reserve(Size(w))
	if _, err := j.Append(s, Epoch{Number: 1, Writes: w}); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(m[:5*block]))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := make(memFile, testBytes)
		copy(m, b)
		_, _ = Open(m, testBytes, func(Epoch) error { return nil })
	})
}
