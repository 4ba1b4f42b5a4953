package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/journal"
	"github.com/pollux-ha/pollux/vmm/blockfile"
)

// op is one thing that was done to one of the files of a recorded run.
type op struct {
	file    int
	off     int64
	data    []byte // nil: a sync
	durable pact.Epoch
}

// tape records what a run does to its files, in order.
type tape struct {
	mu      sync.Mutex
	ops     []op
	durable func() pact.Epoch
}

// tapeFile is a file in memory whose writes go onto the tape.
type tapeFile struct {
	t    *tape
	id   int
	data []byte
}

func (f *tapeFile) Size() int64 { return int64(len(f.data)) }

func (f *tapeFile) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, f.data[min(off, int64(len(f.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *tapeFile) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(f.data)) {
		return 0, io.ErrShortWrite
	}
	f.record(op{file: f.id, off: off, data: bytes.Clone(p)})
	return copy(f.data[off:], p), nil
}

// Zero works, and for what begins in an odd sector it does not: the caller has to write zeros then.
func (f *tapeFile) Zero(off, n int64, _ bool) error {
	if off/512%2 == 1 {
		return errors.ErrUnsupported
	}
	_, err := f.WriteAt(make([]byte, n), off)
	return err
}

// NextData knows holes of 1,024 bytes.
func (f *tapeFile) NextData(off int64) int64 {
	for off < int64(len(f.data)) {
		end := min(off&^1023+1024, int64(len(f.data)))
		if !blockfile.IsZero(f.data[off:end]) {
			break
		}
		off = end
	}
	return off
}

func (f *tapeFile) Sync() error {
	f.record(op{file: f.id})
	return nil
}

func (f *tapeFile) record(o op) {
	if f.t == nil {
		return
	}
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.t.durable != nil {
		o.durable = f.t.durable()
	}
	f.t.ops = append(f.t.ops, o)
}

const (
	crashDisk    = 64 << 10
	crashJournal = journal.MinBytes + 12<<10
)

// images returns what a loss of power after ops[:n] may leave of the two files. Everything before a
// file's last sync is there; of what came after, any part: choose decides block by block.
func images(ops []op, n int, choose func() int) [2][]byte {
	out := [2][]byte{make([]byte, crashDisk), make([]byte, crashJournal)}
	var synced [2]int
	for i, o := range ops[:n] {
		if o.data == nil {
			synced[o.file] = i
		}
	}
	for i, o := range ops[:n] {
		switch {
		case o.data == nil:
		case i < synced[o.file]:
			copy(out[o.file][o.off:], o.data)
		default:
			for at := 0; at < len(o.data); at += 512 {
				end := min(at+512, len(o.data))
				switch choose() {
				case 0: // lost
				case 1:
					copy(out[o.file][o.off+int64(at):], o.data[at:end])
				case 2: // torn inside the sector
					copy(out[o.file][o.off+int64(at):], o.data[at:at+(end-at)/2])
				}
			}
		}
	}
	return out
}

// TestPowerLossAtEveryWrite records what the worker does to disk and journal, lets the power fail after
// every single write and sync, in several ways, and demands that recovery finds the disk as of one
// epoch: not older than what was reported durable, and never in between.
func TestPowerLossAtEveryWrite(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			powerLoss(t, r, 40, func(e pact.Epoch) []checkpoint.DiskWrite { return randomWrites(r, e) })
		})
	}
}

// randomWrites are those of an epoch.
func randomWrites(r *rand.Rand, e pact.Epoch) (writes []checkpoint.DiskWrite) {
	for range r.IntN(4) {
		d := bytes.Repeat([]byte{byte(e)}, 512*(1+r.IntN(10)))
		off := int64(r.IntN((crashDisk-len(d))/512)) * 512
		if r.IntN(3) == 0 {
			writes = append(writes, checkpoint.DiskWrite{Offset: off, Zeros: int64(len(d)), Unmap: r.IntN(2) == 0})
			continue
		}
		writes = append(writes, checkpoint.DiskWrite{Offset: off, Data: d})
	}
	return writes
}

// powerLoss commits epochs with the writes that next makes up, and lets the power fail. It returns the disk
// in its last state.
func powerLoss(t *testing.T, r *rand.Rand, epochs pact.Epoch, next func(pact.Epoch) []checkpoint.DiskWrite) []byte {
	t.Helper()
	tp := &tape{}
	disk, jf := &tapeFile{t: tp, id: 0, data: make([]byte, crashDisk)}, &tapeFile{t: tp, id: 1, data: make([]byte, crashJournal)}
	j, err := recoverJournal(jf, crashJournal, []file{disk}, true)
	if err != nil {
		t.Fatal(err)
	}
	start := len(tp.ops)
	w := newWorker([]file{disk}, j, func(pact.Term, pact.Epoch) error { return nil })
	tp.mu.Lock()
	tp.durable = func() pact.Epoch { return pact.Epoch(w.durable.Load()) }
	tp.mu.Unlock()
	go w.run()

	// want[e] is the disk as of epoch e.
	state := make([]byte, crashDisk)
	want := [][]byte{bytes.Clone(state)}
	for e := pact.Epoch(1); e <= epochs; e++ {
		writes := next(e)
		for _, w := range writes {
			copy(state[w.Offset:], w.Data)
			clear(state[w.Offset : w.Offset+w.Zeros])
		}
		want = append(want, bytes.Clone(state))
		res, err := w.reserve(writes)
		if err != nil {
			t.Fatal(err)
		}
		if r.IntN(4) == 0 { // the epoch was dropped and came again
			w.cancel(res)
			if res, err = w.reserve(writes); err != nil {
				t.Fatal(err)
			}
		}
		w.commit(res, 1, e, false)
		if r.IntN(10) == 0 {
			if err := w.do(w.flush); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.do(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got := w.durable.Load(); got != uint64(epochs) {
		t.Errorf("durable %d of %d", got, epochs)
	}
	w.stop()

	all := func() int { return 1 }
	none := func() int { return 0 }
	any := func() int { return r.IntN(3) }
	for n := start; n <= len(tp.ops); n++ {
		durable := epochs
		if n < len(tp.ops) {
			durable = tp.ops[max(n-1, 0)].durable
		}
		for _, choose := range []func() int{all, none, any, any} {
			img := images(tp.ops, n, choose)
			d, jf := &tapeFile{data: img[0]}, &tapeFile{data: img[1]}
			if _, err := recoverJournal(jf, crashJournal, []file{d}, true); err != nil {
				t.Fatalf("after op %d: %v", n, err)
			}
			found := false
			for e := len(want) - 1; e >= int(durable) && !found; e-- {
				found = bytes.Equal(d.data, want[e])
			}
			if !found {
				for e := range want {
					if bytes.Equal(d.data, want[e]) {
						t.Fatalf("after op %d the disk is as of epoch %d, %d was reported durable", n, e, durable)
					}
				}
				t.Fatalf("after op %d the disk is not as of any epoch (%d was reported durable)", n, durable)
			}
		}
	}
	t.Logf("%d writes and syncs, power lost after each", len(tp.ops)-start)
	return disk.data
}
