package lockstep

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/vmm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFillWhileTheGuestRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 3<<20+4096)
		b.begin()
		b.e.SetPeer(link.Peer{Party: partyB, Address: "b:1"})
		for i := range 400 {
			b.m.guest(func() { b.m.writePage(i*37%testPages, byte(i)) })
			if i%5 == 0 {
				b.m.writeDisk(0, int64(i)*4096, []byte(fmt.Sprintf("write %d", i)))
			}
			b.m.send(fmt.Sprintf("frame %d", i))
			if i%3 == 0 {
				time.Sleep(time.Millisecond)
			}
			synctest.Wait()
		}
		b.untilMode("protected")
		b.until("everything released", func() bool { return len(b.m.left()) == 400 })
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.same()
		for i, f := range b.m.left() {
			if want := fmt.Sprintf("frame %d", i); f != want {
				t.Fatalf("%q left as number %d", f, i)
			}
		}
		if b.r.fills != 1 || b.r.flags&checkpoint.FlagSyncing != 0 {
			t.Fatalf("%d fills, flags %v", b.r.fills, b.r.flags)
		}
		b.close()
	})
}

func TestOutputWaitsForTheAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.setKeep(true)
		captures := b.m.captures
		b.m.send("one")
		synctest.Wait() // demand: no time has to pass
		if b.m.captures != captures+1 {
			t.Fatalf("%d captures for one waiting frame", b.m.captures-captures)
		}
		b.m.send("two")
		b.m.guest(func() { b.e.Console([]byte("hello")) })
		synctest.Wait()
		if got := b.m.left(); len(got) != 0 {
			t.Fatalf("left without an acknowledgement: %q", got)
		}
		b.r.get(func() {
			if len(b.r.frames) != 1 || string(b.r.frames[0].Data) != "one" {
				t.Errorf("held frames in the epoch: %v", b.r.frames)
			}
		})
		b.r.setKeep(false)
		b.until("all released", func() bool { return len(b.m.left()) == 3 })
		if got := b.m.left(); !slices.Equal(got, []string{"one", "two", "console: hello"}) {
			t.Fatalf("left: %q", got)
		}
		if s := b.status(); s.TimingsUs["ack"].Samples == 0 || s.Epochs == 0 || s.FramesReleased != 3 {
			t.Errorf("status %+v", s)
		}
		b.close()
	})
}

func TestIdleGuestMakesNoEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		before := b.status().Epochs
		time.Sleep(10 * time.Second)
		if n := b.status().Epochs - before; n != 0 {
			t.Fatalf("%d epochs of a guest that does nothing", n)
		}
		// One that dirties a page now and then costs an epoch a second at most.
		for range 100 {
			b.m.guest(func() { b.m.writePage(3, byte(b.m.serial)) })
			time.Sleep(100 * time.Millisecond)
		}
		if n := b.status().Epochs - before; n < 5 || n > 11 {
			t.Fatalf("%d epochs in 10 s of a guest that does next to nothing", n)
		}
		b.close()
	})
}

func TestStreamLostGoSolo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.setKeep(true)
		b.m.send("held")
		synctest.Wait()
		b.h.setSilent(true)
		b.r.get(func() { b.r.gone = true })
		b.r.cut()
		b.untilMode("deciding")
		time.Sleep(5 * time.Second)
		if got := b.m.left(); len(got) != 0 {
			t.Fatalf("left without a verdict: %q", got)
		}
		b.h.mu.Lock()
		if n := len(b.h.waiting); n < 50 {
			t.Errorf("asked %d times only", n)
		}
		b.h.mu.Unlock()
		b.h.setSilent(false)
		b.untilMode("solo")
		b.m.send("free")
		synctest.Wait()
		if got := b.m.left(); !slices.Equal(got, []string{"held", "free"}) {
			t.Fatalf("left: %q", got)
		}
		b.close()
	})
}

func TestSilenceIsALostStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.get(func() { b.r.mute, b.r.gone = true, true })
		start := time.Now()
		b.untilMode("solo")
		if d := time.Since(start); d < 90*time.Millisecond || d > 300*time.Millisecond {
			t.Errorf("noticed after %v", d)
		}
		b.close()
	})
}

func TestResumeAfterACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1<<20)
		b.protect()
		term := b.h.now().Term
		b.r.setKeep(true)
		b.m.send("one")
		b.m.writeDisk(0, 4096, []byte("on the disk"))
		synctest.Wait()
		b.r.get(func() { b.r.keep = false })
		b.r.cut()
		b.untilMode("protected")
		b.m.send("two")
		b.until("released", func() bool { return len(b.m.left()) == 2 })
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.same()
		if b.r.fills != 1 || b.r.resumes < 1 {
			t.Errorf("%d fills, %d resumptions", b.r.fills, b.r.resumes)
		}
		if a := b.h.now(); a.Mode != pact.Protected || a.Term != term+2 {
			t.Errorf("assignment %+v: the term should have risen by GoSolo and Protect", a)
		}
		b.close()
	})
}

func TestSwitchover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.setKeep(true)
		b.m.send("held")
		b.e.Switchover()
		synctest.Wait()
		b.r.setKeep(false)
		b.until("ended", func() bool { return len(b.h.ended) == 1 })
		if o := <-b.h.ended; o != core.Exchanged {
			t.Fatalf("ended: %v", o)
		}
		if b.m.guest(func() {}) {
			t.Error("the guest still runs")
		}
		a := b.h.now()
		if a.Primary != partyB || a.Replica != partyA || a.Base != b.status().EpochCaptured || b.r.last != a.Base {
			t.Errorf("assignment %+v, replica at %d", a, b.r.last)
		}
		b.r.get(func() {
			if b.r.flags&checkpoint.FlagFinal == 0 || b.r.goodbye == "" {
				t.Errorf("flags %v, goodbye %q", b.r.flags, b.r.goodbye)
			}
		})
		b.same()
		b.close()
	})
}

// TestReceivedInStay follows frames that arrive after the final epoch, up to the exchange.
func TestReceivedInStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		arrive := func(frame string) {
			b.m.lock.Lock()
			defer b.m.lock.Unlock()
			b.m.receive(0, []byte(frame))
		}
		b.h.setSilent(true)
		b.e.Switchover()
		b.until("the final epoch", func() bool {
			b.m.lock.Lock()
			defer b.m.lock.Unlock()
			return b.m.staying
		})
		arrive("asked for after the final epoch")
		synctest.Wait()
		b.r.get(func() {
			if !slices.Equal(b.r.recv, []string{"asked for after the final epoch"}) {
				t.Errorf("forwarded: %q", b.r.recv)
			}
		})
		// What is queued when the exchange is decided is sent before the stream is closed.
		b.e.mu.Lock()
		b.e.run.received = append(b.e.run.received, checkpoint.Frame{Epoch: b.e.core.Captured() + 1, Data: []byte("late")})
		b.e.mu.Unlock()
		b.h.setSilent(false)
		b.until("ended", func() bool { return len(b.h.ended) == 1 })
		final := b.status().EpochCaptured
		b.r.get(func() {
			if b.r.goodbye == "" || b.r.last != final || !slices.Equal(b.r.recv, []string{"asked for after the final epoch", "late"}) {
				t.Errorf("forwarded: %q, goodbye %q, at epoch %d", b.r.recv, b.r.goodbye, b.r.last)
			}
			for i, e := range b.r.recvEpochs {
				if e <= final {
					t.Errorf("frame %d is of epoch %d, the final one is %d", i, e, final)
				}
			}
		})
		b.same()
		b.close()
	})
}

func TestSwitchoverGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.h.setSilent(true)
		b.e.Switchover()
		b.untilMode("switching")
		time.Sleep(time.Second)
		if b.m.send("never") {
			t.Fatal("the guest runs after its final epoch")
		}
		time.Sleep(2 * time.Second) // SwitchoverLimit
		b.h.mu.Lock()
		// Raft has lost the Switchover and answers from now on.
		b.h.waiting = slices.DeleteFunc(b.h.waiting, func(c pact.Command) bool { return c.Kind == pact.Switchover })
		b.h.mu.Unlock()
		b.h.setSilent(false)
		b.untilMode("protected")
		b.until("the guest runs", func() bool { return b.m.send("on") })
		b.until("released", func() bool { return len(b.m.left()) == 1 })
		b.close()
	})
}

func TestAfterSwitchover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.h.apply(pact.Command{Kind: pact.Mark, Guest: "g", Term: b.h.now().Term, By: partyA})
		b.h.apply(pact.Command{Kind: pact.Protect, Guest: "g", ID: "p", Term: b.h.now().Term, By: partyA, Other: partyB, Epoch: 41})
		copy(b.r.ram.Bytes(), b.m.ram.Bytes())
		b.r.last, b.r.sum, b.r.whole = 41, checkpoint.Digest{1}, true
		b.h.noMark = true
		err := b.e.Begin(Start{
			Assignment: b.h.now(), Last: 41, Digest: checkpoint.Digest{1},
			Frames: []checkpoint.Frame{{Epoch: 41, Data: []byte("again")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		b.e.Announce()
		b.e.SetPeer(link.Peer{Party: partyB, Address: "b:1"})
		b.m.send("new")
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if got := b.m.left(); len(got) != 0 {
			t.Fatalf("left before the marker was durable: %q", got)
		}
		b.e.MarkerDurable(b.h.now().Term)
		b.until("released", func() bool { return len(b.m.left()) >= 3 })
		got := b.m.left()
		if got[0] != "again" || !slices.Contains(got, "new") || !slices.Contains(got, string(announcement(b.e.cfg.MACs()[0]))) {
			t.Errorf("left: %q", got)
		}
		b.e.StopAnnouncing()
		if s := b.status(); s.Mode != "protected" || b.r.fills != 0 || b.r.resumes != 1 {
			t.Errorf("mode %s, %d fills", s.Mode, b.r.fills)
		}
		b.same()
		b.close()
	})
}

func TestOwnGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.setKeep(true)
		b.m.send("before")
		synctest.Wait()
		b.h.setSilent(true)
		b.jump(time.Second)
		b.r.setKeep(false) // the acknowledgement is read before the pulse comes
		synctest.Wait()
		if got := b.m.left(); len(got) != 0 {
			t.Fatalf("left after a standstill: %q", got)
		}
		if s := b.status(); s.EpochAcked != s.EpochCaptured || s.Mode != "deciding" {
			t.Errorf("status %+v", s)
		}
		b.h.setSilent(false)
		b.until("released", func() bool { return len(b.m.left()) == 1 })
		b.close()
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		for range 20 {
			b.jump(time.Second)
			time.Sleep(60 * time.Millisecond)
		}
		b.untilMode("protected")
		if slices.Contains(b.h.kinds, pact.GoSolo) {
			t.Error("its own standstill was taken for the replica's silence")
		}
		b.close()
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.begin()
		b.untilMode("solo")
		b.m.send("one")
		b.h.setSilent(true)
		b.jump(time.Second)
		b.m.send("two") // the vCPU wakes first
		synctest.Wait()
		if got := b.m.left(); !slices.Equal(got, []string{"one"}) {
			t.Fatalf("left: %q", got)
		}
		b.h.setSilent(false)
		b.until("released", func() bool { return len(b.m.left()) == 2 })
		b.close()
	})
}

func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.setKeep(true)
		b.m.send("lost with it")
		synctest.Wait()
		a := b.h.now()
		v := b.h.apply(pact.Command{Kind: pact.Promote, Guest: "g", ID: "promote", Term: a.Term, By: partyB, Epoch: b.r.last})
		if !v.Applied {
			t.Fatal(v.Reason)
		}
		b.e.Assigned(v.Assignment)
		b.until("ended", func() bool { return len(b.h.ended) == 1 })
		if o := <-b.h.ended; o != core.Lost {
			t.Fatalf("ended: %v", o)
		}
		if b.m.guest(func() {}) || len(b.m.left()) != 0 {
			t.Errorf("still running, or left: %q", b.m.left())
		}
		if b.r.higher != v.Assignment.Term {
			t.Errorf("the replica heard of term %d", b.r.higher)
		}
		b.close()
	})
}

func TestWordOfAHigherTermStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.h.setSilent(true)
		b.r.get(func() { go b.r.w.Write(&checkpoint.HigherTerm{Term: 99}) })
		b.untilMode("deciding")
		if b.m.send("no") {
			t.Error("the guest runs")
		}
		b.h.setSilent(false) // nothing is committed there
		b.untilMode("protected")
		b.until("it runs", func() bool { return b.m.send("yes") })
		b.close()
	})
}

func TestPowerOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.r.setKeep(true)
		b.m.send("last words")
		b.e.PowerOff("S5")
		synctest.Wait()
		if b.h.now().Mode != pact.Protected {
			t.Fatal("stopped before the last epoch was acknowledged")
		}
		b.r.setKeep(false)
		b.until("ended", func() bool { return len(b.h.ended) == 1 })
		if o := <-b.h.ended; o != core.Stopped || b.h.now().Mode != pact.Stopped {
			t.Fatalf("ended: %v, %v", o, b.h.now().Mode)
		}
		if got := b.m.left(); !slices.Equal(got, []string{"last words"}) {
			t.Errorf("left: %q", got)
		}
		if b.r.goodbye != "stopped" {
			t.Errorf("goodbye %q", b.r.goodbye)
		}
		b.close()
	})
}

func TestFaultySurrenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.m.fail = vmm.ErrMemoryFault
		b.m.send("held")
		synctest.Wait()
		if b.status().Mode != "protected" {
			t.Fatal("a page that may be healed is no reason to surrender")
		}
		b.m.fail = fmt.Errorf("KVM_GET_DIRTY_LOG: no such luck")
		b.m.send("held too")
		b.until("ended", func() bool { return len(b.h.ended) == 1 })
		if o := <-b.h.ended; o != core.Lost || b.h.now().Primary != partyB {
			t.Fatalf("ended: %v, %+v", o, b.h.now())
		}
		b.close()
	})
}

func TestSlowReplicaStopsAWritingGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1<<20)
		b.e.cfg.WriteBytes = 16 << 10
		b.protect()
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.r.setKeep(true)
		ran := 0
		for range 1000 {
			if b.m.writeDisk(0, 0, make([]byte, 4096)) {
				ran++
			}
			synctest.Wait()
		}
		if ran > 200 {
			t.Errorf("%d writes of 4 KiB while nothing is acknowledged", ran)
		}
		b.r.setKeep(false)
		b.until("it runs again", func() bool { return b.m.writeDisk(0, 0, make([]byte, 4096)) })
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.until("same", func() bool { b.m.send("x"); synctest.Wait(); s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.same()
		b.close()
	})
}

// Small writes count for more than their bytes: each is a record to keep, to send and to journal.
func TestSlowReplicaStopsAGuestThatWritesBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1<<20)
		b.e.cfg.WriteBytes = 16 << 10
		b.protect()
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.r.setKeep(true)
		ran := 0
		for range 10_000 {
			if b.m.writeDisk(0, 0, []byte{1}) {
				ran++
			}
			synctest.Wait()
		}
		if ran == 10_000 {
			t.Error("it writes on and on while nothing is acknowledged")
		}
		b.r.setKeep(false)
		b.until("it runs again", func() bool { return b.m.writeDisk(0, 0, []byte{2}) })
		b.close()
	})
}

// A synchronization sends what is empty here as zeros, and zeroing what lies side by side is one record.
func TestZeros(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1<<20)
		b.protect()
		b.same()
		b.r.get(func() {
			// The copies go by the chunk, so the quarter's neighbours may have come along.
			if b.r.zeros < 128<<10 || b.r.zeros > 256<<10 {
				t.Errorf("%d bytes came as zeros, of a quarter of a MiB", b.r.zeros)
			}
		})
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.m.guest(func() {
			for i := range int64(8) {
				b.m.out.DiskZeroed(0, 64<<10+i*512, 512, true)
			}
			b.m.out.DiskZeroed(0, 0, 512, true)
			b.m.out.DiskZeroed(0, 512, 512, false)
			clear(b.m.disks[0].data[64<<10 : 68<<10])
			clear(b.m.disks[0].data[:1024])
			b.e.mu.Lock()
			defer b.e.mu.Unlock()
			if got := len(b.e.run.writes); got != 3 || b.e.run.writeBytes != 3*zeroCost {
				t.Errorf("%d records, counted as %d bytes", got, b.e.run.writeBytes)
			}
		})
		b.until("nothing in flight", func() bool {
			b.m.send("x")
			synctest.Wait()
			s := b.status()
			return s.EpochAcked == s.EpochCaptured
		})
		b.same()
		b.close()
	})
}

func TestNotProtectedBeforeTheDisksAreCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1<<20)
		b.m.slowDisk = make(chan struct{})
		b.begin()
		b.e.SetPeer(link.Peer{Party: partyB, Address: "b:1"})
		for range 200 {
			b.m.send("x")
			time.Sleep(10 * time.Millisecond)
		}
		if s := b.status(); s.Mode != "syncing" || s.SyncDone >= s.SyncTotal || len(b.m.left()) != 200 {
			t.Errorf("mode %s, %d of %d, %d frames left", s.Mode, s.SyncDone, s.SyncTotal, len(b.m.left()))
		}
		close(b.m.slowDisk)
		b.untilMode("protected")
		b.until("nothing in flight", func() bool { s := b.status(); return s.EpochAcked == s.EpochCaptured })
		b.same()
		b.close()
	})
}

func TestReceivedFramesAreForwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.protect()
		b.m.guest(func() { b.m.receive(0, []byte("request")) })
		b.until("forwarded", func() bool {
			ok := false
			b.r.get(func() { ok = slices.Contains(b.r.recv, "request") })
			return ok
		})
		b.close()
	})
}

func TestUnsyncedBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 1<<20)
		b.protect()
		b.until("durable", func() bool { s := b.status(); return s.EpochDurable == s.EpochCaptured })
		for range 4 { // the sets move on with what is durable
			b.m.send("x")
			synctest.Wait()
		}
		if n := blockSet(b.e.Unsynced()[0]).count(); n != 0 {
			t.Errorf("%d blocks although all is durable", n)
		}
		b.r.get(func() { b.r.gone = true })
		b.r.cut()
		b.untilMode("solo")
		b.m.writeDisk(0, 5*BlockBytes-1, []byte("ab"))
		if got := b.e.Unsynced()[0]; got[0] != 1<<4|1<<5 {
			t.Errorf("blocks %#x", got[0])
		}
		b.close()
	})
}

func TestRefusedReplicaIsCalledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 0)
		b.r.refuse = "not yet"
		b.begin()
		b.e.SetPeer(link.Peer{Party: partyB, Address: "b:1"})
		b.until("the reason shows", func() bool { return b.status().Detail != "" })
		b.r.get(func() { b.r.refuse = "" })
		b.untilMode("protected")
		b.close()
	})
}
