package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/core"
	"github.com/pollux-ha/pollux/replica/mark"
	"github.com/pollux-ha/pollux/replica/store"
)

const (
	pages     = 64
	diskBytes = 1 << 20
	// bound is how long a test waits for something before it calls it missing.
	bound = 20 * time.Second
)

var a1, b2 = pact.Party{Host: "a", Incarnation: 1}, pact.Party{Host: "b", Incarnation: 2}

type memory []byte

func newMemory() memory            { return make(memory, pages*checkpoint.PageSize) }
func (m memory) Pages() int        { return len(m) / checkpoint.PageSize }
func (m memory) Page(i int) []byte { return m[i*checkpoint.PageSize : (i+1)*checkpoint.PageSize] }

// fakeHandler is the process around the Side.
type fakeHandler struct {
	proposals chan pact.Command
	activated chan *Image
	ended     chan core.Ending
	notes     chan string
	take      *Image
	logErr    error
}

func (h *fakeHandler) Propose(c pact.Command) { h.proposals <- c }
func (h *fakeHandler) Heard(pact.Term)        {}
func (h *fakeHandler) Note(kind, text string) {
	select {
	case h.notes <- kind + ": " + text:
	default:
	}
}
func (h *fakeHandler) ColdStart(pact.Assignment, time.Duration) error {
	h.Note("cold-started", "")
	return nil
}
func (h *fakeHandler) Log(string, string) error                    { return h.logErr }
func (h *fakeHandler) End(how core.Ending, why string)             { h.ended <- how }
func (h *fakeHandler) TakeReplica(pact.Assignment) (*Image, error) { return h.take, nil }
func (h *fakeHandler) Activate(_ pact.Assignment, i *Image) error {
	h.activated <- i
	return nil
}

type rig struct {
	t     *testing.T
	side  *Side
	h     *fakeHandler
	ram   memory
	store *store.Store
	disk  string
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{
		t: t, ram: newMemory(), disk: filepath.Join(dir, "disk0.raw"),
		h: &fakeHandler{
			proposals: make(chan pact.Command, 100), activated: make(chan *Image, 1),
			ended: make(chan core.Ending, 1), notes: make(chan string, 100),
		},
	}
	var err error
	r.store, err = store.Open(context.Background(), store.Config{
		Guest: "g", Journal: filepath.Join(dir, "journal"), JournalBytes: 1 << 20,
		Disks: []store.DiskConfig{{Path: r.disk, Size: diskBytes}},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Guest: "g", Self: b2, RAM: r.ram, Disks: r.store, Handler: r.h, Limits: checkpoint.DefaultLimits(),
		Silence: time.Hour, Heartbeat: time.Millisecond, AskAgain: time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	r.side = New(cfg)
	t.Cleanup(func() {
		r.side.Close()
		r.store.Close()
	})
	return r
}

func (r *rig) applied(term pact.Term, mode pact.Mode, primary, replica pact.Party, base pact.Epoch) {
	r.side.Step(core.Applied{Assignment: pact.Assignment{
		Guest: "g", Term: term, Mode: mode, Primary: primary, Replica: replica, Base: base, BaseTerm: term - 1,
		CurrentDisk: pact.DiskCopy{Host: "a", Term: 1},
	}})
}

// settle waits until everything that was decided so far has been done.
func (r *rig) settle() {
	r.side.mu.Lock()
	defer r.side.mu.Unlock()
	for r.side.pending > 0 {
		r.side.idle.Wait()
	}
}

// twin is a primary's end of a stream.
type twin struct {
	t        *testing.T
	conn     net.Conn
	cut      *cutter
	w        *checkpoint.Writer
	enc      *checkpoint.Encoder
	ram      memory
	messages chan checkpoint.Message
	welcome  *checkpoint.Welcome
}

func (r *rig) dial(hello checkpoint.Hello) *twin {
	r.t.Helper()
	here, there := net.Pipe()
	go r.side.Serve(there, "a")
	cut := &cutter{Conn: here, left: -1}
	p := &twin{
		t: r.t, conn: here, cut: cut, w: checkpoint.NewWriter(cut), ram: newMemory(),
		enc: checkpoint.NewEncoder(checkpoint.EncoderConfig{CachePages: 16}), messages: make(chan checkpoint.Message, 1000),
	}
	r.t.Cleanup(func() { here.Close() })
	go func() {
		defer close(p.messages)
		for rd := checkpoint.NewReader(here, nil, checkpoint.DefaultLimits()); ; {
			m, err := rd.Next()
			if err != nil {
				return
			}
			p.messages <- m
		}
	}()
	hello.Version, hello.Guest, hello.Primary, hello.Replica = checkpoint.Version, "g", a1, b2
	hello.RAMPages, hello.DiskSizes = pages, []uint64{diskBytes}
	if err := p.w.Write(&hello); err != nil {
		r.t.Fatal(err)
	}
	p.welcome = expect[*checkpoint.Welcome](p)
	if p.welcome.Refused == "" {
		p.enc.Reset(p.welcome.LastDigest)
	}
	return p
}

// expect waits for the next message of a kind and skips others.
func expect[M checkpoint.Message](p *twin) M {
	p.t.Helper()
	timeout := time.After(bound)
	for {
		select {
		case m, ok := <-p.messages:
			if !ok {
				var none M
				p.t.Fatalf("the stream ended while waiting for a %T", none)
			}
			if m, ok := m.(M); ok {
				return m
			}
		case <-timeout:
			var none M
			p.t.Fatalf("no %T", none)
		}
	}
}

func (p *twin) send(e pact.Epoch, term pact.Term, flags checkpoint.Flags, change func(ep *checkpoint.Epoch)) {
	p.t.Helper()
	page := int(e) % pages
	for i := range p.ram.Page(page) {
		p.ram.Page(page)[i] = byte(e)
	}
	ep := &checkpoint.Epoch{
		Number: e, Term: term, Flags: flags, Pages: []uint32{uint32(page)}, Data: p.ram.Page(page), State: []byte(fmt.Sprint("state ", e)),
		Writes: []checkpoint.DiskWrite{{Offset: int64(e) * 512, Data: []byte(fmt.Sprint("write ", e))}},
		Frames: []checkpoint.Frame{{Epoch: e, Data: []byte(fmt.Sprint("frame ", e))}},
	}
	if change != nil {
		change(ep)
	}
	if _, err := p.enc.Encode(p.w, ep); err != nil {
		p.t.Fatal(err)
	}
}

func (p *twin) acked(e pact.Epoch) {
	p.t.Helper()
	if got := expect[*checkpoint.Ack](p); got.Epoch != e {
		p.t.Fatalf("epoch %d acknowledged, want %d", got.Epoch, e)
	}
}

func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(bound):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func TestProtectAndTakeOver(t *testing.T) {
	r := newRig(t)
	r.applied(1, pact.Solo, a1, pact.Party{}, 0)
	p := r.dial(checkpoint.Hello{Term: 1})
	if p.welcome.Refused != "" || p.welcome.LastEpoch != 0 {
		t.Fatalf("%+v", p.welcome)
	}
	if d := expect[*checkpoint.DiskDigests](p); !d.Last || len(d.Digests) != diskBytes/store.ChunkBytes {
		t.Errorf("digests: %+v", d)
	}
	if m, _ := mark.Read(r.disk); m.State != mark.Inconsistent {
		t.Errorf("during a synchronization: %+v", m)
	}
	for e := pact.Epoch(1); e <= 3; e++ {
		p.send(e, 1, checkpoint.FlagSyncing, nil)
		p.acked(e)
	}
	p.send(4, 1, 0, nil)
	p.acked(4)
	r.applied(2, pact.Protected, a1, b2, 4)
	for e := pact.Epoch(5); e <= 20; e++ {
		p.send(e, 2, 0, nil)
		p.acked(e)
	}
	for expect[*checkpoint.Durable](p).Epoch < 20 {
	}
	if err := p.w.Write(&checkpoint.Received{Frames: []checkpoint.Frame{{Epoch: 19, Data: []byte("old")}, {Epoch: 21, Data: []byte("new")}}}); err != nil {
		t.Fatal(err)
	}
	p.conn.Close()

	c := await(t, r.h.proposals, "proposal")
	if c.Kind != pact.Promote || c.Term != 2 || c.By != b2 || c.Epoch != 20 {
		t.Fatalf("%+v", c)
	}
	again := await(t, r.h.proposals, "repeated proposal")
	if again.ID != c.ID {
		t.Fatalf("repeated as %+v", again)
	}
	r.applied(3, pact.Solo, b2, pact.Party{}, 20)
	img := await(t, r.h.activated, "activation")
	if img.Epoch != 20 || string(img.State) != "state 20" {
		t.Errorf("goes on from %+v", img)
	}
	if n := len(img.Resend); n != resendEpochs || string(img.Resend[n-1].Data) != "frame 20" {
		t.Errorf("to be sent again: %d frames", n)
	}
	if len(img.Received) != 1 || string(img.Received[0].Data) != "new" {
		t.Errorf("received: %+v", img.Received)
	}
	if string(r.ram) != string(p.ram) {
		t.Error("the memory is not the primary's")
	}
	if err := r.store.Flush(); err != nil {
		t.Fatal(err)
	}
	for e := 1; e <= 20; e++ {
		want := fmt.Sprint("write ", e)
		got := make([]byte, len(want))
		if _, err := r.store.Disks()[0].ReadAt(got, int64(e)*512); err != nil || string(got) != want {
			t.Errorf("epoch %d's write: %q, %v", e, got, err)
		}
	}
}

func TestSilenceAsks(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Silence = 50 * time.Millisecond })
	r.applied(1, pact.Solo, a1, pact.Party{}, 0)
	p := r.dial(checkpoint.Hello{Term: 1})
	p.send(1, 1, 0, nil)
	p.acked(1)
	r.applied(2, pact.Protected, a1, b2, 1)
	c := await(t, r.h.proposals, "proposal")
	if c.Kind != pact.Promote {
		t.Fatalf("%+v", c)
	}
	// It acknowledges nothing while it asks; a refusal under an unchanged assignment lets it go on.
	p.send(2, 2, 0, nil)
	if s, acked, _ := r.side.State(); s != core.Promoting || acked != 1 {
		t.Fatalf("%v at %d", s, acked)
	}
	r.side.Step(core.Answered{ID: c.ID, Verdict: pact.Verdict{Reason: "no", Assignment: pact.Assignment{Term: 2}}})
	p.acked(2)
}

func TestAPartialEpochIsDiscarded(t *testing.T) {
	r := newRig(t)
	r.applied(1, pact.Solo, a1, pact.Party{}, 0)
	p := r.dial(checkpoint.Hello{Term: 1})
	p.send(1, 1, 0, nil)
	p.acked(1)
	r.applied(2, pact.Protected, a1, b2, 1)
	// An epoch's beginning, then the end of the primary.
	p.cut.after(200)
	if _, err := p.enc.Encode(p.w, &checkpoint.Epoch{Number: 2, Term: 2, State: []byte("x"), Pages: []uint32{3}, Data: noise()}); err == nil {
		t.Fatal("the stream was not cut")
	}
	if c := await(t, r.h.proposals, "proposal"); c.Epoch != 1 {
		t.Fatalf("%+v", c)
	}
	if string(r.ram) != string(p.ram) {
		t.Error("a part of the epoch is in the image")
	}
}

func noise() []byte {
	b := make([]byte, checkpoint.PageSize)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// cutter is a connection that breaks after so many more bytes.
type cutter struct {
	net.Conn
	mu   sync.Mutex
	left int // -1: it holds
}

func (c *cutter) after(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = n
}

func (c *cutter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < 0 || len(p) <= c.left {
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:c.left])
	c.Conn.Close()
	return n, net.ErrClosed
}

type recorder struct{ b []byte }

func (r *recorder) Write(p []byte) (int, error) {
	r.b = append(r.b, p...)
	return len(p), nil
}

func TestResume(t *testing.T) {
	r := newRig(t)
	r.h.take = &Image{Epoch: 9, Digest: checkpoint.Digest{1}, State: []byte("final")}
	// This process is the primary and hands over.
	r.applied(1, pact.Solo, b2, pact.Party{}, 0)
	waitState(t, r.side, core.Primary)
	r.side.Step(core.Applied{Assignment: pact.Assignment{Guest: "g", Term: 3, Mode: pact.Protected, Primary: a1, Replica: b2, Base: 9, BaseTerm: 2, CurrentDisk: pact.DiskCopy{Host: "b", Term: 1}}})
	p := r.dial(checkpoint.Hello{Term: 3, Resume: true})
	if p.welcome.Refused != "" || p.welcome.LastEpoch != 9 || p.welcome.LastDigest != (checkpoint.Digest{1}) {
		t.Fatalf("%+v", p.welcome)
	}
	p.send(10, 3, 0, nil)
	p.acked(10)
	if m, _ := mark.Read(r.disk); m.State == mark.Inconsistent {
		t.Errorf("a resumed stream marks the disk %+v", m)
	}
	// A second stream of the same primary takes the first one's place, and nobody promotes.
	q := r.dial(checkpoint.Hello{Term: 3, Resume: true})
	if q.welcome.LastEpoch != 10 {
		t.Fatalf("%+v", q.welcome)
	}
	q.ram = p.ram
	q.send(11, 3, 0, nil)
	q.acked(11)
	select {
	case c := <-r.h.proposals:
		t.Errorf("proposed %+v", c)
	default:
	}
}

// TestStreamBeforeItsTerm: after a switchover the twin may call before this host's log says so.
func TestStreamBeforeItsTerm(t *testing.T) {
	r := newRig(t)
	r.h.take = &Image{Epoch: 9, Digest: checkpoint.Digest{1}, State: []byte("final")}
	r.applied(1, pact.Solo, b2, pact.Party{}, 0)
	waitState(t, r.side, core.Primary)
	if p := r.dial(checkpoint.Hello{Term: 3, Resume: true}); p.welcome.Refused == "" {
		t.Fatal("a stream of a term that never came was accepted")
	}
	time.AfterFunc(behindLimit/10, func() {
		r.side.Step(core.Applied{Assignment: pact.Assignment{Guest: "g", Term: 3, Mode: pact.Protected, Primary: a1, Replica: b2, Base: 9, BaseTerm: 2, CurrentDisk: pact.DiskCopy{Host: "b", Term: 1}}})
	})
	if p := r.dial(checkpoint.Hello{Term: 3, Resume: true}); p.welcome.Refused != "" || p.welcome.LastEpoch != 9 {
		t.Fatalf("%+v", p.welcome)
	}
}

func waitState(t *testing.T, s *Side, want core.State) {
	t.Helper()
	for end := time.Now().Add(bound); ; time.Sleep(time.Millisecond) {
		got, _, _ := s.State()
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s, want %s", got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.applied(5, pact.Solo, a1, pact.Party{}, 0)
	p := r.dial(checkpoint.Hello{Term: 4})
	if p.welcome.Refused == "" {
		t.Error("an older term was accepted")
	}
	here, there := net.Pipe()
	go r.side.Serve(there, "a")
	go func() {
		_ = checkpoint.NewWriter(here).Write(&checkpoint.Hello{Version: checkpoint.Version, Guest: "other", Term: 5, Primary: a1, Replica: b2})
	}()
	rd := checkpoint.NewReader(here, nil, checkpoint.DefaultLimits())
	if m, err := rd.Next(); err != nil || m.(*checkpoint.Welcome).Refused == "" {
		t.Errorf("another guest's stream: %+v, %v", m, err)
	}
}

func TestHigherTermIsTold(t *testing.T) {
	r := newRig(t)
	r.applied(5, pact.Solo, a1, pact.Party{}, 0)
	here, there := net.Pipe()
	go r.side.Serve(there, "a")
	go func() {
		_ = checkpoint.NewWriter(here).Write(&checkpoint.Hello{Version: checkpoint.Version, Guest: "g", Term: 4, Primary: a1, Replica: b2, RAMPages: pages, DiskSizes: []uint64{diskBytes}})
	}()
	rd := checkpoint.NewReader(here, nil, checkpoint.DefaultLimits())
	if m, err := rd.Next(); err != nil || m.(*checkpoint.HigherTerm).Term != 5 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestNothingUnloggedIsOverwritten(t *testing.T) {
	r := newRig(t)
	r.h.logErr = errors.New("disk full")
	r.applied(1, pact.Solo, a1, pact.Party{}, 0)
	if p := r.dial(checkpoint.Hello{Term: 1}); p.welcome.Refused == "" {
		t.Error("accepted")
	}
	r.settle()
	if m, _ := mark.Read(r.disk); m.State != mark.Outdated {
		t.Errorf("%+v", m)
	}
}

func TestAStateThatCannotBeLoadedIsNotAcknowledged(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Check = func([]byte) error { return errors.New("no such CPU feature") }
	})
	r.applied(1, pact.Solo, a1, pact.Party{}, 0)
	p := r.dial(checkpoint.Hello{Term: 1})
	p.send(1, 1, checkpoint.FlagSyncing, nil)
	p.acked(1)
	p.send(2, 1, 0, nil)
	for m := range p.messages {
		if a, ok := m.(*checkpoint.Ack); ok {
			t.Fatalf("epoch %d acknowledged", a.Epoch)
		}
	}
}

// FuzzServe feeds arbitrary bytes to a stream after a proper Hello.
func FuzzServe(f *testing.F) {
	rec := &recorder{}
	w := checkpoint.NewWriter(rec)
	enc := checkpoint.NewEncoder(checkpoint.EncoderConfig{CachePages: 4})
	_ = w.Write(&checkpoint.Hello{Version: checkpoint.Version, Guest: "g", Term: 1, Primary: a1, Replica: b2, RAMPages: pages})
	hello := len(rec.b)
	_ = w.Write(&checkpoint.Heartbeat{Term: 9})
	_, _ = enc.Encode(w, &checkpoint.Epoch{Number: 1, Term: 1, State: []byte("s"), Pages: []uint32{1}, Data: make([]byte, checkpoint.PageSize)})
	_, _ = enc.Encode(w, &checkpoint.Epoch{Number: 2, Term: 7, Flags: checkpoint.FlagFinal, State: []byte("s")})
	_ = w.Write(&checkpoint.Goodbye{Reason: "x"})
	prefix := rec.b[:hello]
	f.Add(rec.b[hello:])
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := store.Open(context.Background(), store.Config{Guest: "g"})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		h := &fakeHandler{proposals: make(chan pact.Command, 1000), activated: make(chan *Image, 1), ended: make(chan core.Ending, 1), notes: make(chan string, 1)}
		s := New(Config{Guest: "g", Self: b2, RAM: newMemory(), Disks: st, Handler: h, Limits: checkpoint.DefaultLimits(),
			Silence: time.Hour, Heartbeat: time.Hour, AskAgain: time.Hour})
		defer s.Close()
		s.Step(core.Applied{Assignment: pact.Assignment{Guest: "g", Term: 1, Mode: pact.Solo, Primary: a1}})
		here, there := net.Pipe()
		go func() {
			for buf := make([]byte, 4096); ; {
				if _, err := here.Read(buf); err != nil {
					return
				}
			}
		}()
		go func() {
			_, _ = here.Write(prefix)
			_, _ = here.Write(b)
			here.Close()
		}()
		// An epoch of a term that nobody's log brings is kept for good: the bound ends that.
		bound := time.AfterFunc(20*time.Millisecond, s.Close)
		defer bound.Stop()
		s.Serve(there, "a")
	})
}

// What was decided and has not begun yet is not begun any more once the process is ending.
func TestNothingBeginsAfterTheEnd(t *testing.T) {
	r := newRig(t)
	busy := make(chan struct{})
	r.side.mu.Lock()
	r.side.later(func() { <-busy })
	r.side.mu.Unlock()
	r.applied(1, pact.Solo, b2, pact.Party{}, 0)
	r.applied(2, pact.Solo, a1, pact.Party{}, 0)
	close(busy)
	select {
	case how := <-r.h.ended:
		if how != core.EndReplaced {
			t.Errorf("it ended as %s", how)
		}
	case <-time.After(bound):
		t.Fatal("it did not end")
	}
	for len(r.h.notes) > 0 {
		if n := <-r.h.notes; n == "cold-started: " {
			t.Error("it began to run the guest after its end had been decided")
		}
	}
}

// What a reset would boot after a takeover is what the primary's guest has booted, or there is no replica.
func TestAnotherKernelIsRefused(t *testing.T) {
	same := checkpoint.BootDigest([]byte("kernel"), []byte("initrd"))
	r := newRig(t, func(c *Config) { c.Boot = same })
	r.applied(1, pact.Solo, a1, pact.Party{}, 0)
	r.settle() // the new primary's disk is the current one from now on, and this one is marked so
	before, _ := mark.Read(r.disk)
	if p := r.dial(checkpoint.Hello{Term: 1, Boot: checkpoint.BootDigest([]byte("kernelinitrd"), nil)}); !strings.Contains(p.welcome.Refused, "kernel") {
		t.Errorf("refused: %q", p.welcome.Refused)
	}
	r.settle()
	if m, _ := mark.Read(r.disk); m != before {
		t.Errorf("a refused stream has changed the disk's mark: %+v", m)
	}
	if p := r.dial(checkpoint.Hello{Term: 1, Boot: same}); p.welcome.Refused != "" {
		t.Errorf("refused: %q", p.welcome.Refused)
	}
}
