package crash

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/store"
	"github.com/pollux-ha/pollux/tests/crash/shim"
)

// limit bounds every wait for something that must come about; its length decides no verdict.
const limit = time.Minute

// breaks makes operations of a kind on files of a name fail.
func breaks(kind shim.Kind, name string, errno syscall.Errno) func(shim.Call) syscall.Errno {
	return func(c shim.Call) syscall.Errno {
		if c.Kind == kind && strings.HasPrefix(c.Name, name) {
			return errno
		}
		return 0
	}
}

// firstLife brings a replica's disks to an epoch that is durable.
func firstLife(t *testing.T, dir string, hang time.Duration) (*store.Store, twins) {
	t.Helper()
	cfg := storeConfig(dir)
	cfg.HangLimit = hang
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var state twins
	for e := pact.Epoch(1); e <= 3; e++ {
		w := epochWrites(e)
		state.do(w)
		r, err := s.Reserve(w, false)
		if err != nil {
			t.Fatal(err)
		}
		s.Commit(r, 2, e, false)
	}
	if _, err := s.Mark(); err != nil { // all have been journalled
		t.Fatal(err)
	}
	if d := s.Durable(); d != 3 {
		t.Fatalf("durable %d", d)
	}
	return s, state
}

func epochWrites(e pact.Epoch) []checkpoint.DiskWrite {
	data := make([]byte, 1024)
	for i := range data {
		data[i] = byte(e)
	}
	return []checkpoint.DiskWrite{{Disk: uint8(e % 2), Offset: int64(e) * 512, Data: data}, {Disk: uint8(e % 2), Offset: 8192, Zeros: 512, Unmap: true}}
}

// failed waits until the store says that it can't go on, and checks what it says.
func failed(t *testing.T, s *store.Store, want error, name string) {
	t.Helper()
	select {
	case <-s.Failed():
	case <-time.After(limit):
		t.Fatal("the store goes on")
	}
	if err := s.Err(); !errors.Is(err, want) || !strings.Contains(err.Error(), name) {
		t.Errorf("the store says %q: nothing of %v in %q", err, want, name)
	}
	if _, err := s.Reserve(epochWrites(9), false); !errors.Is(err, want) {
		t.Errorf("an epoch is taken by a store that has failed: %v", err)
	}
}

// A replica whose disk or journal can't be written says so and takes nothing more; what was durable is found again.
func TestDiskOfAReplicaFails(t *testing.T) {
	for _, tc := range []struct {
		kind  shim.Kind
		file  string
		errno syscall.Errno
		names string // what the error speaks of
	}{
		{shim.Write, "journal", syscall.EIO, "journal"},
		{shim.Write, "journal", syscall.ENOSPC, "journal"},
		{shim.Sync, "journal", syscall.EIO, "journal"},
		{shim.Write, "disk", syscall.EIO, "disk 0"},
		{shim.Write, "disk", syscall.ENOSPC, "disk 0"},
		{shim.Zero, "disk", syscall.EIO, "disk 0"},
		{shim.Zero, "disk", syscall.ENOSPC, "disk 0"},
	} {
		t.Run(fmt.Sprintf("%v/%d/%s", tc.file, tc.kind, tc.errno), func(t *testing.T) {
			sys, dir := shim.Mount(t)
			s, state := firstLife(t, dir, 0)
			sys.Break(breaks(tc.kind, tc.file, tc.errno))
			r, err := s.Reserve(epochWrites(4), false)
			if err != nil {
				t.Fatal(err)
			}
			s.Commit(r, 2, 4, false)
			failed(t, s, tc.errno, tc.names)
			if tc.file == "journal" && s.Durable() != 3 {
				t.Errorf("epoch %d is said to be durable", s.Durable())
			}
			if err := s.Close(); !errors.Is(err, tc.errno) {
				t.Errorf("closed: %v", err)
			}
			sys.Break(nil)
			found(t, dir, s.Durable(), state)
		})
	}
}

// found opens the disks again: they are as of the epoch that was durable, or of the one after.
func found(t *testing.T, dir string, durable pact.Epoch, state twins) {
	t.Helper()
	s, err := store.Open(t.Context(), storeConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := readTwins(s)
	if err != nil {
		t.Fatal(err)
	}
	next := state
	next.do(epochWrites(4))
	if got != next && (got != state || durable > 3) {
		t.Errorf("the disks are not as of epoch %d", durable)
	}
}

// A disk that can't be made durable empties no journal.
func TestFlushFails(t *testing.T) {
	sys, dir := shim.Mount(t)
	s, state := firstLife(t, dir, 0)
	sys.Break(breaks(shim.Sync, "disk1", syscall.EIO))
	if err := s.Flush(); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "disk1.raw") {
		t.Fatalf("flushed: %v", err)
	}
	if err := s.WriteMarker(3, 3); !errors.Is(err, syscall.EIO) {
		t.Errorf("a marker was written after a flush that failed: %v", err)
	}
	if err := s.Close(); err == nil {
		t.Error("closed without an error")
	}
	sys.Break(nil)
	found(t, dir, 3, state)
}

// What can't be read when a host comes back is no empty disk.
func TestReplayCanNotRead(t *testing.T) {
	for _, file := range []string{"journal", "disk0.raw.mark"} {
		t.Run(file, func(t *testing.T) {
			sys, dir := shim.Mount(t)
			s, state := firstLife(t, dir, 0)
			if err := s.WriteMarker(2, 3); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			sys.Break(breaks(0, file, syscall.EIO))
			s, err := store.Open(t.Context(), storeConfig(dir))
			if err == nil { // a mark that can't be read forbids
				m, markErr := s.Mark()
				if file == "journal" || markErr != nil || m.MayStart("") == nil {
					t.Errorf("opened with %+v, %v", m, markErr)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "journal") {
				t.Errorf("opened: %v", err)
			}
			sys.Break(nil)
			found(t, dir, 3, state)
		})
	}
}

// gate lets operations wait.
type gate struct {
	once   sync.Once
	opened chan struct{}
	came   chan struct{}
}

func newGate(t *testing.T) *gate {
	g := &gate{opened: make(chan struct{}), came: make(chan struct{}, 1)}
	t.Cleanup(g.open) // before the file system is unmounted
	return g
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

// hangs makes operations of a kind on files of a name wait.
func (g *gate) hangs(kind shim.Kind, name string) func(shim.Call) syscall.Errno {
	return func(c shim.Call) syscall.Errno {
		if c.Kind == kind && strings.HasPrefix(c.Name, name) {
			select {
			case g.came <- struct{}{}:
			default:
			}
			<-g.opened
		}
		return 0
	}
}

// A disk that does not answer is a failed one after a time; nothing waits for it for ever.
func TestDiskHangs(t *testing.T) {
	for _, tc := range []struct {
		kind shim.Kind
		file string
	}{{shim.Sync, "journal"}, {shim.Write, "journal"}, {shim.Write, "disk"}, {shim.Zero, "disk"}} {
		t.Run(fmt.Sprintf("%s/%d", tc.file, tc.kind), func(t *testing.T) {
			sys, dir := shim.Mount(t)
			s, _ := firstLife(t, dir, 50*time.Millisecond)
			g := newGate(t)
			sys.Break(g.hangs(tc.kind, tc.file))
			r, err := s.Reserve(epochWrites(4), false)
			if err != nil {
				t.Fatal(err)
			}
			s.Commit(r, 2, 4, false)
			failed(t, s, store.ErrHung, "storage")
			durable := s.Durable()
			if tc.file == "journal" && durable != 3 {
				t.Errorf("epoch %d is said to be durable", durable)
			}
			if err := s.Flush(); !errors.Is(err, store.ErrHung) {
				t.Errorf("flushed: %v", err)
			}
			if err := s.Close(); !errors.Is(err, store.ErrHung) {
				t.Errorf("closed: %v", err)
			}
			// Nobody else opens the disks before the process has ended.
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := store.Open(ctx, storeConfig(dir)); !errors.Is(err, store.ErrBusy) {
				t.Errorf("opened beside it: %v", err)
			}
		})
	}
}

// A sync that takes long holds back what is said to be durable, and nothing else.
func TestSlowSync(t *testing.T) {
	sys, dir := shim.Mount(t)
	s, state := firstLife(t, dir, 0)
	g := newGate(t)
	sys.Break(g.hangs(shim.Sync, "journal"))
	r, err := s.Reserve(epochWrites(4), false)
	if err != nil {
		t.Fatal(err)
	}
	s.Commit(r, 2, 4, false)
	<-g.came
	for e := pact.Epoch(5); e <= 6; e++ { // taken while the disk is busy, as long as the journal has room
		r, err := s.Reserve(epochWrites(4), false)
		if err != nil {
			t.Fatal(err)
		}
		s.Commit(r, 2, e, false)
	}
	if d := s.Durable(); d != 3 {
		t.Errorf("epoch %d is said to be durable", d)
	}
	g.open()
	if _, err := s.Mark(); err != nil {
		t.Fatal(err)
	}
	if d := s.Durable(); d != 6 {
		t.Errorf("durable %d after the sync", d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	sys.Break(nil)
	found(t, dir, 6, state)
}

// The event log on a disk that fails: no event is acknowledged that is not there, and the log goes on where it can.
func TestEventLogOnAFailingDisk(t *testing.T) {
	for _, tc := range []struct {
		kind  shim.Kind
		errno syscall.Errno
		says  string
		heals bool // goes on without a restart
	}{
		{shim.Write, syscall.ENOSPC, "make room", true},
		{shim.Write, syscall.EIO, "check the disk", true},
		{shim.Sync, syscall.EIO, "the disk failed", false},
	} {
		t.Run(fmt.Sprintf("%d/%s", tc.kind, tc.errno), func(t *testing.T) {
			sys, dir := shim.Mount(t)
			path := filepath.Join(dir, "events.jsonl")
			l, err := audit.Open(path, "a")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			put := func() error { return l.Append(t.Context(), audit.Event{Kind: audit.Fault}) }
			if err := put(); err != nil {
				t.Fatal(err)
			}
			sys.Break(breaks(tc.kind, "events", tc.errno))
			if err := put(); !errors.Is(err, tc.errno) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("appended: %v", err)
			}
			sys.Break(nil)
			if err := put(); (err == nil) != tc.heals {
				t.Errorf("afterwards: %v", err)
			}
			again, err := audit.Open(path, "a")
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if err := again.Append(t.Context(), audit.Event{Kind: audit.Heal}); err != nil {
				t.Fatal(err)
			}
			if s, err := audit.Verify(path); err != nil || s.Events < 2 {
				t.Errorf("verified %+v, %v", s, err)
			}
		})
	}
}

// Who writes to an event log whose disk hangs is told so when his time is up, and must not act.
func TestEventLogHangs(t *testing.T) {
	sys, dir := shim.Mount(t)
	path := filepath.Join(dir, "events.jsonl")
	l, err := audit.Open(path, "a")
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(t)
	sys.Break(g.hangs(shim.Sync, "events"))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-g.came
		cancel()
	}()
	if err := l.Append(ctx, audit.Event{Kind: audit.Takeover}); !errors.Is(err, audit.ErrUncertain) {
		t.Errorf("appended: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := l.Append(ctx, audit.Event{Kind: audit.Takeover}); err == nil || errors.Is(err, audit.ErrUncertain) {
		t.Errorf("a second one: %v", err)
	}
	g.open()
	if err := l.Append(t.Context(), audit.Event{Kind: audit.Heal}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := audit.Verify(path); err != nil || s.Events != 2 {
		t.Errorf("verified %+v, %v", s, err)
	}
}

// Reading a log that can't be read is an error, not an end.
func TestEventLogCanNotBeRead(t *testing.T) {
	sys, dir := shim.Mount(t)
	path := filepath.Join(dir, "events.jsonl")
	l, err := audit.Open(path, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Append(t.Context(), audit.Event{Kind: audit.Heal}), l.Close()); err != nil {
		t.Fatal(err)
	}
	sys.Break(breaks(0, "events", syscall.EIO))
	if _, err := audit.Verify(path); !errors.Is(err, syscall.EIO) {
		t.Errorf("verified: %v", err)
	}
	if _, err := audit.Open(path, "a"); !errors.Is(err, syscall.EIO) {
		t.Errorf("opened: %v", err)
	}
}
