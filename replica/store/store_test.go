package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/mark"
)

const diskBytes = 1<<20 + 4096

func config(dir string) Config {
	return Config{
		Guest: "g", Journal: filepath.Join(dir, "journal"), JournalBytes: 1 << 20,
		Disks: []DiskConfig{{Path: filepath.Join(dir, "disk0.raw"), Size: diskBytes}},
	}
}

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func takeOver(s *Store, t pact.Term, e pact.Epoch) error {
	if err := s.Flush(); err != nil {
		return err
	}
	return s.WriteMarker(t, e)
}

func state(t *testing.T, cfg Config) mark.Mark {
	t.Helper()
	m, err := mark.Read(cfg.Disks[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func commit(t *testing.T, s *Store, e pact.Epoch, syncing bool, at int64, text string) {
	t.Helper()
	var w []checkpoint.DiskWrite
	if text != "" {
		w = []checkpoint.DiskWrite{{Offset: at, Data: []byte(text)}}
	}
	r, err := s.Reserve(w, syncing)
	if err != nil {
		t.Fatal(err)
	}
	s.Commit(r, 5, e, syncing)
}

func TestLifeOfACopy(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	if m, err := s.Mark(); err != nil || m.State != mark.None {
		t.Fatalf("a new disk: %+v, %v", m, err)
	}
	if err := s.BeginResync(5); err != nil {
		t.Fatal(err)
	}
	if m := state(t, cfg); m.State != mark.Inconsistent || m.Since != 5 {
		t.Fatalf("before a synchronization: %+v", m)
	}
	commit(t, s, 1, true, 0, "one")
	commit(t, s, 2, true, 100, "two")
	if s.Durable() != 0 {
		t.Errorf("epoch %d durable in a synchronization", s.Durable())
	}
	commit(t, s, 3, false, 200, "three")
	commit(t, s, 4, false, 300, "four")
	commit(t, s, 5, false, 0, "")
	if _, err := s.Mark(); err != nil { // waits for the worker
		t.Fatal(err)
	}
	if s.Durable() != 5 {
		t.Errorf("durable %d, want 5", s.Durable())
	}
	if m := state(t, cfg); m.State != mark.Outdated {
		t.Fatalf("after a synchronization: %+v", m)
	}
	if err := takeOver(s, 6, 5); err != nil {
		t.Fatal(err)
	}
	if m := state(t, cfg); m.State != mark.Current || m.Term != 6 || m.Epoch != 5 {
		t.Fatalf("after a takeover: %+v", m)
	}
	if err := s.MarkOutdated(6); err != nil {
		t.Fatal(err)
	}
	if m := state(t, cfg); m.State != mark.Current {
		t.Fatalf("outdated by its own term: %+v", m)
	}
	if err := s.MarkOutdated(7); err != nil {
		t.Fatal(err)
	}
	if m := state(t, cfg); m.State != mark.Outdated || m.Term != 6 || m.Since != 7 {
		t.Fatalf("after the twin has marked: %+v", m)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(cfg.Disks[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	for at, text := range map[int]string{0: "one", 100: "two", 200: "three", 300: "four"} {
		if string(got[at:at+len(text)]) != text {
			t.Errorf("at %d: %q, want %q", at, got[at:at+len(text)], text)
		}
	}
}

func TestManyEpochsThroughASmallJournal(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.JournalBytes = 1
	s := open(t, cfg)
	if err := s.BeginJournal(); err != nil {
		t.Fatal(err)
	}
	for e := pact.Epoch(1); e <= 200; e++ {
		commit(t, s, e, false, int64(e)*512, fmt.Sprintf("epoch %d", e))
	}
	if err := takeOver(s, 2, 200); err != nil {
		t.Fatal(err)
	}
	for e := int64(1); e <= 200; e++ {
		want := fmt.Sprintf("epoch %d", e)
		got := make([]byte, len(want))
		if _, err := s.Disks()[0].ReadAt(got, e*512); err != nil || string(got) != want {
			t.Fatalf("epoch %d: %q, %v", e, got, err)
		}
	}
}

func TestBadWritesAreRefused(t *testing.T) {
	s := open(t, config(t.TempDir()))
	for _, w := range []checkpoint.DiskWrite{
		{Disk: 1, Data: []byte{1}}, {Offset: -1, Data: []byte{1}}, {Offset: diskBytes, Data: []byte{1}}, {Offset: 1 << 62, Data: []byte{1}},
		{Offset: 512, Zeros: diskBytes}, {Offset: -512, Zeros: 512}, {Offset: 1 << 62, Zeros: 1 << 62},
	} {
		if _, err := s.Reserve([]checkpoint.DiskWrite{w}, false); !errors.Is(err, checkpoint.ErrCorrupt) {
			t.Errorf("%+v: %v", w, err)
		}
	}
}

func TestOneWriter(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Open(ctx, cfg)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Fatalf("a second process: %v", err)
	}
	// A successor waits for its predecessor's exit.
	opened := make(chan error, 1)
	go func() {
		next, err := Open(context.Background(), cfg)
		if err == nil {
			err = next.Close()
		}
		opened <- err
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
}

func TestWrongSizeIsRefused(t *testing.T) {
	cfg := config(t.TempDir())
	if err := os.WriteFile(cfg.Disks[0].Path, []byte("small"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "5 bytes") {
		t.Fatal(err)
	}
}

func TestALostDiskIsNotBlank(t *testing.T) {
	cfg := config(t.TempDir())
	s := open(t, cfg)
	if err := takeOver(s, 3, 1); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Remove(cfg.Disks[0].Path); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if m, err := s.Mark(); err != nil || m.State != mark.Inconsistent {
		t.Fatalf("a disk that was lost: %+v, %v", m, err)
	}
}

func TestDigests(t *testing.T) {
	cfg := config(t.TempDir())
	const size = 400*ChunkBytes + 4096
	cfg.Disks[0].Size = size
	s := open(t, cfg)
	whole := make([]byte, size)
	// Data in a chunk after few and after many empty ones, and in the last whole chunk.
	for _, at := range []int{3*ChunkBytes + 5, 7 * ChunkBytes, 300*ChunkBytes - 1, 399 * ChunkBytes} {
		if _, err := s.Disks()[0].WriteAt([]byte("x"), int64(at)); err != nil {
			t.Fatal(err)
		}
		whole[at] = 'x'
	}
	zero := digest(make([]byte, ChunkBytes))
	var got []checkpoint.Digest
	var last bool
	messages := 0
	err := s.Digests(func(m *checkpoint.DiskDigests) error {
		if m.First != uint64(len(got)) || m.ChunkBytes != ChunkBytes || last {
			t.Errorf("%+v after %d", m, len(got))
		}
		for range m.Zeros {
			got = append(got, zero)
		}
		got, last = append(got, m.Digests...), m.Last
		messages++
		return nil
	})
	if err != nil || !last {
		t.Fatalf("%v, last %v", err, last)
	}
	if messages > 5 {
		t.Errorf("%d messages", messages)
	}
	var want []checkpoint.Digest
	for rest := whole; len(rest) > 0; {
		n := min(ChunkBytes, len(rest))
		want = append(want, digest(rest[:n]))
		rest = rest[n:]
	}
	if len(got) != len(want) {
		t.Fatalf("%d digests, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i][:], want[i][:]) {
			t.Errorf("chunk %d differs", i)
		}
	}
}

// Zeros reach a real disk file through the journal, and leave a hole where they gave their space back.
func TestZerosReachTheDisk(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.JournalBytes = 4 << 20
	s := open(t, cfg)
	if err := s.BeginJournal(); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("pollux!!"), diskBytes/8)
	for e, w := range []checkpoint.DiskWrite{
		{Data: bytes.Clone(want)}, {Offset: 512, Zeros: 512}, {Offset: 256 << 10, Zeros: 512 << 10, Unmap: true}, {Offset: 300 << 10, Data: []byte("again")},
	} {
		copy(want[w.Offset:], w.Data)
		clear(want[w.Offset : w.Offset+w.Zeros])
		s.Commit(reserve(t, s, w), 5, pact.Epoch(e+1), false)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(cfg.Disks[0].Path)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the disk is wrong (%v)", err)
	}
	if at := s.Disks()[0].NextData(400 << 10); at != 400<<10 && at != 768<<10 {
		t.Errorf("after the hole data begin at %d", at)
	}
}

func reserve(t *testing.T, s *Store, w ...checkpoint.DiskWrite) Reservation {
	t.Helper()
	r, err := s.Reserve(w, false)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDisklessGuest(t *testing.T) {
	s := open(t, Config{Guest: "g"})
	if err := s.BeginResync(2); err != nil {
		t.Fatal(err)
	}
	commit(t, s, 1, true, 0, "")
	commit(t, s, 2, false, 0, "")
	commit(t, s, 3, false, 0, "")
	if err := takeOver(s, 3, 3); err != nil {
		t.Fatal(err)
	}
}
