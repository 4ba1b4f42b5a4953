package lockstep

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/vmm/platform"
)

func names(f []checkpoint.Frame) (s []string) {
	for _, x := range f {
		s = append(s, string(x.Data))
	}
	return s
}

func TestOutputCommit(t *testing.T) {
	o := &outputCommit{limit: 10}
	put := func(s string) bool { return o.put(checkpoint.Frame{Data: []byte(s)}) }
	if put("a") {
		t.Fatal("it begins open")
	}
	o.seal(1)
	put("b")
	o.seal(2)
	put("c")
	o.release(1)
	if got := names(o.next(10)); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("released %q", got)
	}
	if o.next(10) != nil {
		t.Fatal("two emitters at once")
	}
	o.open()
	if put("d") {
		t.Fatal("a frame overtakes those that are being emitted")
	}
	o.done()
	if put("e") {
		t.Fatal("a frame overtakes those that wait for an emitter")
	}
	var got []string
	for f := o.next(2); f != nil; f = o.next(2) {
		got = append(got, names(f)...)
		o.done()
	}
	if !slices.Equal(got, []string{"b", "c", "d", "e"}) {
		t.Fatalf("left %q", got)
	}
	if !put("f") {
		t.Fatal("open, and nothing is before it")
	}
	o.hold()
	for range 4 {
		put("1234")
	}
	if n, bytes := o.counts(); n != 2 || bytes != 8 || o.dropped != 2 {
		t.Errorf("%d frames of %d bytes held, %d dropped", n, bytes, o.dropped)
	}
	o.drop()
	if n, _ := o.counts(); n != 0 || o.next(1) != nil {
		t.Error("something is left after drop")
	}
}

func TestConsoleDoesNotTravel(t *testing.T) {
	o := &outputCommit{limit: 100}
	o.put(checkpoint.Frame{Data: []byte("a")})
	o.put(checkpoint.Frame{NIC: consoleNIC, Data: []byte("console")})
	o.put(checkpoint.Frame{Data: []byte("b")})
	if got := names(o.seal(1)); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("travels: %q", got)
	}
	o.release(1)
	if got := names(o.next(10)); !slices.Equal(got, []string{"a", "console", "b"}) {
		t.Errorf("released: %q", got)
	}
}

func TestPageSet(t *testing.T) {
	var s pageSet
	s.fill(130)
	for _, p := range []int{0, 5, 64, 129, 129} {
		s.remove(p)
	}
	if s.left != 126 || s.next(0) != 1 || s.next(64) != 65 || s.next(129) != -1 || s.next(200) != -1 {
		t.Errorf("left %d, next %d %d %d", s.left, s.next(0), s.next(64), s.next(129))
	}
	n := 0
	for p := s.next(0); p >= 0; p = s.next(p + 1) {
		n++
	}
	if n != 126 {
		t.Errorf("%d pages found", n)
	}
}

func TestRollingSummary(t *testing.T) {
	var r rolling
	for i := range 3 * samples {
		r.add(time.Duration(i%samples) * time.Microsecond)
	}
	if s := r.summary(); s.Samples != samples || s.P50 < 500 || s.P50 > 520 || s.Max != samples-1 {
		t.Errorf("%+v", s)
	}
}

func TestAnnouncement(t *testing.T) {
	f := announcement([]byte{2, 0, 0, 0, 0, 1})
	if !bytes.Equal(f[:platform.FrameHeaderBytes], make([]byte, platform.FrameHeaderBytes)) {
		t.Errorf("no plain frame: % x", f)
	}
	if f = f[platform.FrameHeaderBytes:]; len(f) != 60 || f[12] != 0x80 || f[13] != 0x35 || f[6] != 2 || f[11] != 1 {
		t.Errorf("% x", f)
	}
}

// What a guest writes byte by byte takes no more memory than it has bytes, by and large, and stays in order with
// everything else.
func TestTextIsHeldTogether(t *testing.T) {
	o := &outputCommit{limit: 1 << 20}
	var want []byte
	for i := range 3 * textBytes {
		o.put(checkpoint.Frame{NIC: consoleNIC, Data: []byte{byte(i)}})
		want = append(want, byte(i))
	}
	o.put(checkpoint.Frame{NIC: agentNIC, Data: []byte("agent")})
	o.put(checkpoint.Frame{NIC: 0, Data: []byte("frame")})
	o.put(checkpoint.Frame{NIC: 0, Data: []byte("frame")})
	o.put(checkpoint.Frame{NIC: consoleNIC, Data: []byte("more")})
	if n, bytes := o.counts(); n > 8 || bytes != 3*textBytes+19 {
		t.Errorf("%d items of %d bytes are held", n, bytes)
	}
	if frames := o.seal(1); len(frames) != 2 {
		t.Errorf("%d frames travel", len(frames))
	}
	o.put(checkpoint.Frame{NIC: consoleNIC, Data: []byte("of the next epoch")})
	o.release(1)
	var console []byte
	for _, f := range o.next(100) {
		if f.NIC == consoleNIC {
			console = append(console, f.Data...)
		}
	}
	if string(console) != string(want)+"more" {
		t.Errorf("the console has got %d bytes", len(console))
	}
	if n, bytes := o.counts(); n != 1 || bytes != 17 {
		t.Errorf("%d items of %d bytes are left", n, bytes)
	}
}
