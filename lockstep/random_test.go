package lockstep

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

var seedFlag = flag.Uint64("seed", 0, "run this one schedule")

// TestRandomSchedules lets a guest, a network, Raft and a clock misbehave in random order, and checks
// that while the committed assignment says protected no frame leaves before the replica has
// acknowledged its epoch; that frames leave in order and none twice; and that in the end, when
// everything works again, the guest is protected and both sides hold the same.
func TestRandomSchedules(t *testing.T) {
	n := 40
	if testing.Short() {
		n = 8
	}
	base := rand.Uint64N(1 << 40)
	if *seedFlag != 0 {
		base, n = *seedFlag, 1
	}
	for i := range n {
		seed := base + uint64(i)
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomSchedule(t, seed) })
		})
		if !ok {
			t.Fatalf("repeat with: go test -run TestRandomSchedules -seed %d", seed)
		}
	}
}

func randomSchedule(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	b := newBench(t, 1<<20)
	b.m.check = func(frame string) {
		safe := false
		b.r.get(func() { safe = b.r.safe[frame] })
		// The assignment is looked at after the frame: had it been solo before, it would still be.
		if a := b.h.now(); a.Mode == pact.Protected && !safe {
			t.Errorf("%q leaves in term %d (%s), the replica has not acknowledged it", frame, a.Term, a.Mode)
		}
	}
	b.begin()
	b.e.SetPeer(link.Peer{Party: partyB, Address: "b:1"})
	sent := 0
	for range 150 + rng.IntN(250) {
		switch rng.IntN(24) {
		case 0, 1, 2, 3, 4, 5:
			if b.m.send(fmt.Sprintf("frame %d", sent)) {
				sent++
			}
		case 6, 7, 8:
			b.m.guest(func() {
				for range rng.IntN(30) {
					b.m.writePage(2+rng.IntN(testPages-2), byte(rng.Uint32()))
				}
			})
		case 9, 10:
			data := make([]byte, 1+rng.IntN(9000))
			b.m.writeDisk(0, int64(rng.IntN(1<<20-len(data))), append(data[:0:0], data...))
		case 11:
			n := 1 + rng.Int64N(200<<10)
			b.m.zeroDisk(0, rng.Int64N(1<<20-n), n)
		case 12, 13, 14:
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		case 15:
			b.r.cut()
		case 16, 17:
			b.r.setKeep(rng.IntN(2) == 0)
		case 18:
			b.h.setSilent(rng.IntN(2) == 0)
		case 19:
			if rng.IntN(3) == 0 {
				b.jump(time.Duration(rng.IntN(400)) * time.Millisecond)
			}
		case 20:
			b.r.get(func() { b.r.gone = rng.IntN(3) == 0 })
		case 21:
			b.r.get(func() { b.r.mute = rng.IntN(4) == 0 })
		case 22:
			b.e.LinkUp()
		case 23:
			synctest.Wait()
		}
	}
	b.h.setSilent(false)
	b.r.get(func() { b.r.gone, b.r.mute = false, false })
	b.r.setKeep(false)
	b.untilMode("protected")
	b.until("the guest runs", func() bool { return b.m.send(fmt.Sprintf("frame %d", sent)) })
	sent++
	b.until("everything has left", func() bool { return len(b.m.left()) == sent })
	for i, f := range b.m.left() {
		if want := fmt.Sprintf("frame %d", i); f != want {
			t.Fatalf("number %d of what left is %q", i, f)
		}
	}
	b.until("both hold the same", func() bool {
		s := b.status()
		dirty, _ := b.m.DirtyCount()
		return s.EpochAcked == s.EpochCaptured && s.Mode == "protected" && dirty == 0
	})
	b.same()
	b.close()
}
