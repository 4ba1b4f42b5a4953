// Package crash looks whether what the product keeps on disks survives a loss of power at every operation, and
// a disk that fails, is full or hangs: the real code on a file system that records and breaks (package shim).
package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/durable"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/journal"
	"github.com/pollux-ha/pollux/replica/mark"
	"github.com/pollux-ha/pollux/replica/store"
	"github.com/pollux-ha/pollux/tests/crash/shim"
)

const (
	diskBytes = 16 << 10
	guest     = "db"
)

func storeConfig(dir string) store.Config {
	dir = filepath.Join(dir, "guests", guest)
	return store.Config{
		Guest: guest, Journal: filepath.Join(dir, "journal"), JournalBytes: journal.MinBytes,
		Disks: []store.DiskConfig{{Path: filepath.Join(dir, "disk0.raw"), Size: diskBytes}, {Path: filepath.Join(dir, "disk1.raw"), Size: diskBytes}},
	}
}

// twins are the contents of both disks.
type twins [2][diskBytes]byte

func (d *twins) do(writes []checkpoint.DiskWrite) {
	for _, w := range writes {
		if w.Zeros > 0 {
			clear(d[w.Disk][w.Offset : w.Offset+w.Zeros])
			continue
		}
		copy(d[w.Disk][w.Offset:], w.Data)
	}
}

func readTwins(s *store.Store) (d twins, err error) {
	for i := range d {
		if _, err := s.Disks()[i].ReadAt(d[i][:], 0); err != nil && !errors.Is(err, io.EOF) {
			return d, err
		}
	}
	return d, nil
}

// life is what happens to a guest's disks on one host: the plan, from which the test knows what must be there.
type life struct {
	states []twins // states[e] is as of epoch e; some of the last are single writes of the machine
	writes [][]checkpoint.DiskWrite
	marks  []mark.Mark // in the order in which they are written
}

const (
	synced  = pact.Epoch(4)  // a synchronization ends with this epoch
	taken   = pact.Epoch(22) // this host takes over from this one
	machine = pact.Epoch(26) // and its machine writes as much by itself; each write counts as an epoch here
	last    = pact.Epoch(40) // then it is the replica again
)

func newLife() *life {
	r := rand.New(rand.NewPCG(4, 2))
	l := &life{states: make([]twins, 1), writes: make([][]checkpoint.DiskWrite, 1)}
	for e := pact.Epoch(1); e <= last; e++ {
		var w []checkpoint.DiskWrite
		for range 1 + r.IntN(3) {
			n := 512 * (1 + r.Int64N(6))
			one := checkpoint.DiskWrite{Disk: uint8(r.IntN(2)), Offset: 512 * r.Int64N((diskBytes-n)/512)}
			if r.IntN(4) == 0 {
				one.Zeros, one.Unmap = n, r.IntN(2) == 0
			} else {
				one.Data = bytes.Repeat([]byte{byte(e)}, int(n))
			}
			w = append(w, one)
		}
		if e > taken && e <= machine {
			w = []checkpoint.DiskWrite{{Disk: uint8(e % 2), Offset: 512 * int64(e%8), Data: bytes.Repeat([]byte{byte(e)}, 512)}}
		}
		next := l.states[e-1]
		next.do(w)
		l.states, l.writes = append(l.states, next), append(l.writes, w)
	}
	l.marks = []mark.Mark{
		{},
		{Guest: guest, State: mark.Inconsistent, Since: 3},
		{Guest: guest, State: mark.Outdated, Since: 3},
		{Guest: guest, State: mark.Current, Term: 5, Epoch: taken},
		{Guest: guest, State: mark.Outdated, Term: 5, Epoch: taken, Since: 6},
	}
	return l
}

// live goes through it. It notes "durable N" and "mark N" once it may rely on them.
func (l *life) live(dir string, note func(string)) error {
	s, err := store.Open(context.Background(), storeConfig(dir))
	if err != nil {
		return err
	}
	commit := func(e pact.Epoch, t pact.Term, syncing bool) error {
		r, err := s.Reserve(l.writes[e], syncing)
		if err != nil {
			return err
		}
		s.Commit(r, t, e, syncing)
		if e%3 != 0 {
			return nil // the next one joins it
		}
		if _, err := s.Mark(); err != nil { // waits for the worker
			return err
		}
		if d := s.Durable(); d != 0 {
			note(fmt.Sprint("durable ", d))
		}
		return nil
	}
	if err := s.BeginResync(3); err != nil {
		return err
	}
	note("mark 1")
	for e := pact.Epoch(1); e <= taken; e++ {
		if err := commit(e, 3, e < synced); err != nil {
			return err
		}
		if e == synced {
			if _, err := s.Mark(); err != nil {
				return err
			}
			note("mark 2")
		}
	}
	if err := s.Flush(); err != nil {
		return err
	}
	note(fmt.Sprint("durable ", taken))
	if err := s.WriteMarker(5, taken); err != nil {
		return err
	}
	note("mark 3")
	for e := taken + 1; e <= machine; e++ {
		w := l.writes[e][0]
		d := s.Disks()[w.Disk]
		if _, err := d.WriteAt(w.Data, w.Offset); err != nil {
			return err
		}
		if err := d.Sync(); err != nil {
			return err
		}
		note(fmt.Sprint("durable ", e))
	}
	if err := s.MarkOutdated(6); err != nil {
		return err
	}
	note("mark 4")
	if err := s.BeginJournal(); err != nil {
		return err
	}
	for e := machine + 1; e <= last; e++ {
		if err := commit(e, 6, false); err != nil {
			return err
		}
	}
	if _, err := s.Mark(); err != nil {
		return err
	}
	note(fmt.Sprint("durable ", last))
	if err := copyLife(dir); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	return recoverCopy(dir, note)
}

// copyLife copies the disks as a killed process leaves them, so that a recovery is recorded too.
func copyLife(dir string) error {
	from, to := filepath.Join(dir, "guests", guest), filepath.Join(dir, "copy", "guests", guest)
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for d := to; d != filepath.Dir(dir); d = filepath.Dir(d) {
		defer durable.SyncDir(d)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		f, err := os.Create(filepath.Join(to, e.Name()))
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func recoverCopy(dir string, note func(string)) error {
	note("copied")
	s, err := store.Open(context.Background(), storeConfig(filepath.Join(dir, "copy")))
	if err != nil {
		return err
	}
	return s.Close()
}

// check opens what a loss of power has left after those notes.
func (l *life) check(dir string, notes []string) error {
	durable, marked := 0, 0
	for _, n := range notes {
		fmt.Sscanf(n, "durable %d", &durable)
		fmt.Sscanf(n, "mark %d", &marked)
		if n == "copied" {
			if err := l.checkStore(filepath.Join(dir, "copy"), durable, marked); err != nil {
				return fmt.Errorf("recovered: %w", err)
			}
		}
	}
	return l.checkStore(dir, durable, marked)
}

func (l *life) checkStore(dir string, durable, marked int) error {
	for range 2 { // a recovery leaves what it has found
		s, err := store.Open(context.Background(), storeConfig(dir))
		if err != nil {
			return err
		}
		m, err := s.Mark()
		if err != nil {
			return err
		}
		got, err := readTwins(s)
		if err := errors.Join(err, s.Close()); err != nil {
			return err
		}
		at := -1
		for i := range l.marks {
			want := l.marks[i]
			if want.State != mark.None {
				want.Format = m.Format
			}
			if m == want {
				at = i
			}
		}
		if at < marked {
			return fmt.Errorf("the mark is %+v; number %d was durable", m, marked)
		}
		epoch := -1
		for e := len(l.states) - 1; e >= 0 && epoch < 0; e-- {
			if got == l.states[e] {
				epoch = e
			}
		}
		switch {
		case m.State == mark.Inconsistent: // nothing is promised
		case epoch < 0:
			return fmt.Errorf("the disks are not as of any epoch; %d was durable, the mark is %+v", durable, m)
		case epoch < durable, m.State == mark.Current && epoch < int(m.Epoch):
			return fmt.Errorf("the disks are as of epoch %d; %d was durable, the mark is %+v", epoch, durable, m)
		}
	}
	return nil
}

func TestDisksSurviveEveryCrash(t *testing.T) {
	l := newLife()
	shim.EveryCrash(t, shim.Record(t, l.live), l.check)
}
