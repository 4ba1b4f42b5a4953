package lockstep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/blockfile"
	"github.com/pollux-ha/pollux/vmm/memory"
)

var (
	partyA = pact.Party{Host: "a", Incarnation: 0xa1}
	partyB = pact.Party{Host: "b", Incarnation: 0xb1}
)

// fakeMachine is a guest with one vCPU and one device lock, which the test moves by hand.
type fakeMachine struct {
	t       testing.TB
	ram     *memory.RAM
	disks   []*fakeDisk
	onPause func(Pause) bool
	out     interface {
		Transmit(int, []byte)
		Console([]byte)
		DiskWritten(int, int64, []byte)
		DiskZeroed(int, int64, int64, bool)
	}

	asked  chan struct{}
	closed chan struct{}

	lock     sync.Mutex // the device lock
	resumed  *sync.Cond
	staying  bool
	stopped  bool
	dirty    map[int]bool
	logging  bool
	serial   uint64 // state of the machine: counts what the guest did
	captures int
	receive  func(int, []byte)
	fail     error // of the next capture
	healed   []int
	gaveUp   bool
	slowDisk chan struct{} // copies wait for it

	check func(frame string) // of each frame that leaves

	wireMu sync.Mutex
	wire   []string // what has left
}

type fakeDisk struct {
	mu   sync.Mutex
	data []byte
}

func (d *fakeDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}
func (d *fakeDisk) Size() int64 { return int64(len(d.data)) }

// NextData takes a disk of whole zero blocks for a sparse one.
func (d *fakeDisk) NextData(offset int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := offset; at < int64(len(d.data)); at = (at + 4096) &^ 4095 {
		if !blockfile.IsZero(d.data[at:min((at+4096)&^4095, int64(len(d.data)))]) {
			return at
		}
	}
	return int64(len(d.data))
}

func newFakeMachine(t testing.TB, pages int, disks ...*fakeDisk) *fakeMachine {
	ram, err := memory.New(uint64(pages) * memory.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	m := &fakeMachine{t: t, ram: ram, disks: disks, asked: make(chan struct{}, 1), closed: make(chan struct{}), dirty: map[int]bool{}}
	m.resumed = sync.NewCond(&m.lock)
	go m.run()
	t.Cleanup(func() {
		close(m.closed)
		synctest.Wait()
		ram.Close()
	})
	return m
}

// run is the vCPU's thread as far as pauses go.
func (m *fakeMachine) run() {
	for {
		select {
		case <-m.asked:
		case <-m.closed:
			return
		}
		m.lock.Lock()
		if !m.stopped {
			m.staying = !m.onPause(m)
			m.resumed.Broadcast()
		}
		m.lock.Unlock()
	}
}

func (m *fakeMachine) RAM() *memory.RAM { return m.ram }
func (m *fakeMachine) RequestPause() {
	select {
	case m.asked <- struct{}{}:
	default:
	}
}
func (m *fakeMachine) Stop() error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.stopped = true
	return nil
}
func (m *fakeMachine) SetDirtyLogging(on bool) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.logging = on
	m.dirty = map[int]bool{}
	for i := range m.ram.Pages() {
		m.dirty[i] = on
	}
	return nil
}
func (m *fakeMachine) ForgetDirty() error { return m.Forget() }
func (m *fakeMachine) DirtyCount() (int, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	return len(m.dirty), nil
}
func (m *fakeMachine) Emit(nic int, frame []byte) error {
	if m.check != nil {
		m.check(string(frame))
	}
	m.wireMu.Lock()
	defer m.wireMu.Unlock()
	m.wire = append(m.wire, string(frame))
	return nil
}
func (m *fakeMachine) OnReceive(fn func(int, []byte)) {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.receive = fn
}
func (m *fakeMachine) CopyDisk(disk int, offset, n int64) {
	go func() {
		if m.slowDisk != nil {
			<-m.slowDisk
		}
		m.lock.Lock()
		defer m.lock.Unlock()
		b := make([]byte, n)
		m.disks[disk].ReadAt(b, offset)
		if blockfile.IsZero(b) {
			m.out.DiskZeroed(disk, offset, n, true)
			return
		}
		m.out.DiskWritten(disk, offset, b)
	}()
}

// Capture and Forget are called in OnPause, with the device lock held.
func (m *fakeMachine) Capture(c *vmm.Capture) error {
	if m.fail != nil {
		err := m.fail
		m.fail = nil
		return err
	}
	if !m.logging {
		return errors.New("dirty logging is off")
	}
	m.captures++
	own := make([]uint64, m.ram.DirtyWords())
	m.ram.HarvestDirty(own, nil)
	for i := range m.ram.Pages() {
		if own[i/64]&(1<<(i%64)) != 0 {
			m.dirty[i] = true
		}
	}
	c.Pages, c.Data = c.Pages[:0], c.Data[:0]
	for i := range m.ram.Pages() {
		if m.dirty[i] {
			c.Pages = append(c.Pages, uint32(i))
			c.Data = append(c.Data, m.ram.Page(i)...)
		}
	}
	m.dirty = map[int]bool{}
	c.State = fmt.Appendf(c.State[:0], "serial %08d", m.serial)
	return nil
}
func (m *fakeMachine) Forget() error {
	m.dirty = map[int]bool{}
	return nil
}

func (m *fakeMachine) PageDirty(page int) (bool, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	if !m.logging {
		return false, errors.New("dirty logging is off")
	}
	return m.dirty[page], nil
}
func (m *fakeMachine) Heal(page int, data []byte) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.healed = append(m.healed, page)
	copy(m.ram.Page(page), data)
	return nil
}
func (m *fakeMachine) GiveUpDamage() {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.gaveUp = true
}
func (m *fakeMachine) FoundDamaged(int) {}

// damage lets the page hold nothing of use and tells the Engine, as a machine would.
func (m *fakeMachine) damage(e *Engine, page int) {
	m.lock.Lock()
	for i := range m.ram.Page(page) {
		m.ram.Page(page)[i] ^= 0x5a
	}
	m.lock.Unlock()
	e.Damaged(vmm.MemoryFault{Page: page, VCPU: 0})
}

// guest does something as the guest would: not while it stands still. It reports whether it ran.
func (m *fakeMachine) guest(fn func()) bool {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.staying || m.stopped {
		return false
	}
	m.serial++
	fn()
	return true
}

func (m *fakeMachine) writePage(i int, fill byte) {
	for j := range m.ram.Page(i) {
		m.ram.Page(i)[j] = fill
	}
	if m.logging {
		m.dirty[i] = true
	}
}

func (m *fakeMachine) send(frame string) bool {
	return m.guest(func() {
		m.writePage(1, byte(m.serial))
		m.out.Transmit(0, []byte(frame))
	})
}

func (m *fakeMachine) writeDisk(disk int, offset int64, data []byte) bool {
	return m.guest(func() {
		d := m.disks[disk]
		d.mu.Lock()
		copy(d.data[offset:], data)
		d.mu.Unlock()
		m.out.DiskWritten(disk, offset, bytes.Clone(data))
	})
}

func (m *fakeMachine) zeroDisk(disk int, offset, n int64) bool {
	return m.guest(func() {
		d := m.disks[disk]
		d.mu.Lock()
		clear(d.data[offset : offset+n])
		d.mu.Unlock()
		m.out.DiskZeroed(disk, offset, n, m.serial%2 == 0)
	})
}

func (m *fakeMachine) left() []string {
	m.wireMu.Lock()
	defer m.wireMu.Unlock()
	return append([]string(nil), m.wire...)
}

// fakeHost is the process: Raft answers at once, unless it is told not to.
type fakeHost struct {
	t     testing.TB
	state *pact.State
	index uint64
	e     *Engine

	mu      sync.Mutex
	silent  bool // no answers
	waiting []pact.Command
	noMark  bool
	ended   chan core.Outcome
	refused []string
	kinds   []pact.Kind
}

func newFakeHost(t testing.TB) *fakeHost {
	h := &fakeHost{t: t, state: pact.NewState(), ended: make(chan core.Outcome, 1)}
	spec := pact.Spec{Hosts: []string{"a", "b"}, Kernel: "builtin:ledger", MemoryBytes: 64 << 20, CPUs: 1}
	h.apply(pact.Command{Kind: pact.Create, Guest: "g", ID: "create", Spec: &spec})
	h.apply(pact.Command{Kind: pact.Start, Guest: "g", ID: "start", By: partyA})
	return h
}

func (h *fakeHost) apply(c pact.Command) pact.Verdict {
	h.index++
	return h.state.Apply(c, h.index)
}

func (h *fakeHost) now() pact.Assignment {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, _ := h.state.Guest("g")
	return a
}

func (h *fakeHost) Propose(c pact.Command) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kinds = append(h.kinds, c.Kind)
	if h.silent {
		h.waiting = append(h.waiting, c)
		return
	}
	go h.commit(c)
}

// commit applies a command, then tells the Engine as the daemon would.
func (h *fakeHost) commit(c pact.Command) {
	h.mu.Lock()
	v := h.apply(c)
	h.mu.Unlock()
	h.e.Assigned(v.Assignment)
	h.e.Answered(link.Answer{ID: c.ID, Verdict: &v})
}

func (h *fakeHost) setSilent(silent bool) {
	h.mu.Lock()
	h.silent = silent
	waiting := h.waiting
	h.waiting = nil
	h.mu.Unlock()
	if !silent {
		for _, c := range waiting {
			h.commit(c)
		}
	}
}

func (h *fakeHost) WriteMarker(t pact.Term) {
	if !h.noMark {
		go h.e.MarkerDurable(t)
	}
}
func (h *fakeHost) Refused(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused = append(h.refused, why)
}
func (h *fakeHost) Ended(o core.Outcome, _ pact.Assignment, _ string) { h.ended <- o }
func (h *fakeHost) Healed(int, time.Duration)                         {}
func (h *fakeHost) ReplicaLost([]uint32, bool)                        {}
func (h *fakeHost) Changed()                                          {}

// fakeReplica holds an image and acknowledges, as far as the test lets it.
type fakeReplica struct {
	t     testing.TB
	party pact.Party
	ram   *memory.RAM
	disks []*fakeDisk
	zeros int64 // bytes of disks that came as zeros

	mu         sync.Mutex
	safe       map[string]bool // frames of acknowledged epochs
	conn       net.Conn
	w          *checkpoint.Writer
	last       pact.Epoch
	sum        checkpoint.Digest
	whole      bool
	state      string
	frames     []checkpoint.Frame
	recv       []string
	recvEpochs []pact.Epoch
	flags      checkpoint.Flags
	keep       bool // acknowledge nothing
	kept       []*checkpoint.Ack
	mute       bool // no heartbeats
	epochs     int
	pages      int
	fills      int
	resumes    int
	refuse     string
	goodbye    string
	higher     pact.Term
	wanted     []uint32
	compared   int           // pages, by their sums
	differed   []uint32      // those of them that were something else
	slowCopy   chan struct{} // copies of pages wait for it
	gone       bool
}

func newFakeReplica(t testing.TB, pages int, disks ...*fakeDisk) *fakeReplica {
	ram, err := memory.New(uint64(pages) * memory.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	return &fakeReplica{t: t, party: partyB, ram: ram, disks: disks}
}

func (r *fakeReplica) dial(context.Context, link.Peer) (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	go r.serve(there)
	return here, nil
}

func (r *fakeReplica) serve(conn net.Conn) {
	defer conn.Close()
	rd := checkpoint.NewReader(conn, r.ram, checkpoint.DefaultLimits())
	defer rd.Close()
	w := checkpoint.NewWriter(conn)
	m, err := rd.Next()
	if err != nil {
		return
	}
	hello := m.(*checkpoint.Hello)
	r.mu.Lock()
	welcome := &checkpoint.Welcome{Version: checkpoint.Version, Stream: hello.Stream, Party: r.party, Refused: r.refuse}
	if hello.Resume {
		// What it says here counts as acknowledged.
		welcome.LastEpoch, welcome.LastDigest = r.last, r.sum
		r.acknowledge(r.frames)
		rd.Expect(r.last, r.sum)
		r.resumes++
	} else {
		r.fills++
		r.whole = false
		for i := range r.ram.Bytes() {
			r.ram.Bytes()[i] = 0xee // whatever was there
		}
	}
	r.conn, r.w = conn, w
	refuse := r.refuse
	r.mu.Unlock()
	if w.Write(welcome) != nil || refuse != "" {
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for n := uint64(0); ; n++ {
			r.mu.Lock()
			mute := r.mute
			r.mu.Unlock()
			if !mute && w.Write(&checkpoint.Heartbeat{Term: hello.Term, Sequence: n}) != nil {
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(25 * time.Millisecond):
			}
		}
	}()
	if !hello.Resume {
		for i, d := range r.disks {
			const chunk = 64 << 10
			m := &checkpoint.DiskDigests{Disk: uint8(i), ChunkBytes: chunk, Last: true}
			for off := 0; off < len(d.data); off += chunk {
				if off+chunk <= len(d.data) && len(m.Digests) == 0 && blockfile.IsZero(d.data[off:off+chunk]) {
					m.Zeros++
					continue
				}
				m.Digests = append(m.Digests, xxh3.Hash128(d.data[off:min(off+chunk, len(d.data))]).Bytes())
			}
			if w.Write(m) != nil {
				return
			}
		}
	}
	for {
		m, err := rd.Next()
		if err != nil {
			return
		}
		r.mu.Lock()
		switch m := m.(type) {
		case *checkpoint.Staged:
			m.Apply(r.ram)
			for _, wr := range m.Writes {
				copy(r.disks[wr.Disk].data[wr.Offset:], wr.Data)
				clear(r.disks[wr.Disk].data[wr.Offset:][:wr.Zeros])
				r.zeros += wr.Zeros
			}
			r.last, r.sum, r.state, r.flags = m.Number, m.Digest, string(m.State), m.Flags
			r.whole = m.Flags&checkpoint.FlagSyncing == 0
			r.frames = append(r.frames, m.Frames...)
			r.epochs++
			r.pages += m.PageCount()
			m.Release()
			if !r.keep {
				r.acknowledge(m.Frames)
			}
			ack := &checkpoint.Ack{Epoch: m.Number, Digest: m.Digest}
			if r.keep {
				r.kept = append(r.kept, ack)
				break
			}
			r.mu.Unlock()
			if w.Write(ack) != nil || w.Write(&checkpoint.Durable{Epoch: ack.Epoch}) != nil {
				return
			}
			r.mu.Lock()
		case *checkpoint.Received:
			for _, f := range m.Frames {
				r.recv = append(r.recv, string(f.Data))
				r.recvEpochs = append(r.recvEpochs, f.Epoch)
			}
		case *checkpoint.PageSums:
			differs := &checkpoint.PagesLost{Differs: true}
			for i, p := range m.Pages {
				if checkpoint.PageSum(r.ram.Page(int(p))) != m.Sums[i] {
					differs.Pages = append(differs.Pages, p)
				}
			}
			r.compared += len(m.Pages)
			if m.Epoch != r.last {
				r.t.Errorf("sums of epoch %d at epoch %d", m.Epoch, r.last)
			}
			if len(differs.Pages) > 0 {
				r.differed = append(r.differed, differs.Pages...)
				r.mu.Unlock()
				if w.Write(differs) != nil {
					return
				}
				r.mu.Lock()
			}
		case *checkpoint.PagesWanted:
			r.wanted = append(r.wanted, m.Pages...)
			last := r.last
			r.mu.Unlock()
			if r.slowCopy != nil {
				<-r.slowCopy
			}
			for _, p := range m.Pages {
				if w.Write(&checkpoint.PageCopy{Page: p, Epoch: last, Data: bytes.Clone(r.ram.Page(int(p)))}) != nil {
					return
				}
			}
			r.mu.Lock()
		case *checkpoint.Goodbye:
			r.goodbye = m.Reason
		case *checkpoint.HigherTerm:
			r.higher = m.Term
		}
		r.mu.Unlock()
	}
}

func (r *fakeReplica) acknowledge(frames []checkpoint.Frame) {
	if r.safe == nil {
		r.safe = map[string]bool{}
	}
	for _, f := range frames {
		r.safe[string(f.Data)] = true
	}
}

func (r *fakeReplica) setKeep(keep bool) {
	r.mu.Lock()
	r.keep = keep
	kept, w := r.kept, r.w
	if !keep {
		r.kept = nil
		r.acknowledge(r.frames)
	}
	r.mu.Unlock()
	if !keep {
		for _, a := range kept {
			w.Write(a)
		}
	}
}

func (r *fakeReplica) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = nil
	if r.conn != nil {
		r.conn.Close()
	}
}

func (r *fakeReplica) get(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
}

// bench is a primary with its surroundings, in a synctest bubble.
type bench struct {
	t  testing.TB
	m  *fakeMachine
	h  *fakeHost
	r  *fakeReplica
	e  *Engine
	mu sync.Mutex
	// skew is how far the clock has jumped without anybody running.
	skew time.Duration
}

const testPages = 600

func newBench(t testing.TB, diskBytes int) *bench {
	rng := rand.New(rand.NewPCG(1, 2))
	var here, there []*fakeDisk
	if diskBytes > 0 {
		a, b := &fakeDisk{data: make([]byte, diskBytes)}, &fakeDisk{data: make([]byte, diskBytes)}
		for i := range a.data {
			a.data[i] = byte(rng.Uint32())
		}
		copy(b.data[diskBytes/2:], a.data[diskBytes/2:]) // the other half differs
		clear(a.data[diskBytes/2 : diskBytes*3/4])       // what is empty here and not there
		clear(a.data[:diskBytes/8])                      // and on both
		here, there = append(here, a), append(there, b)
	}
	b := &bench{t: t, m: newFakeMachine(t, testPages, here...), h: newFakeHost(t), r: newFakeReplica(t, testPages, there...)}
	for i := range b.m.ram.Bytes() {
		b.m.ram.Bytes()[i] = byte(rng.Uint32())
	}
	clear(b.m.ram.Page(7))
	start := time.Now()
	cfg := Config{
		ScrubPages: -1, // pages that a test damages are its own to find
		Guest:      "g", Self: partyA, Machine: b.m, Host: b.h, Dial: b.r.dial, FillPages: 128, MACs: func() []net.HardwareAddr { return []net.HardwareAddr{{2, 0, 0, 0, 0, 1}} },
		Now: func() time.Duration {
			b.mu.Lock()
			defer b.mu.Unlock()
			return time.Hour + time.Since(start) + b.skew
		},
		Console: func(p []byte) { b.m.Emit(0, append([]byte("console: "), p...)) },
	}
	for _, d := range here {
		cfg.Disks = append(cfg.Disks, d)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.e, b.h.e, b.m.out, b.m.onPause = e, e, e, e.pause
	return b
}

func (b *bench) begin() {
	b.t.Helper()
	if err := b.e.Begin(Start{Assignment: b.h.now()}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) status() link.Status {
	var s link.Status
	b.e.Status(&s)
	return s
}

// until lets (fake) time pass until something is so.
func (b *bench) until(what string, fn func() bool) {
	b.t.Helper()
	for range 4000 {
		synctest.Wait()
		if fn() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.t.Fatalf("never: %s (mode %s: %s)", what, b.status().Mode, b.status().Detail)
}

func (b *bench) untilMode(mode string) {
	b.t.Helper()
	b.until(mode, func() bool { return b.status().Mode == mode })
}

// protect brings the guest to protected.
func (b *bench) protect() {
	b.t.Helper()
	b.begin()
	b.e.SetPeer(link.Peer{Party: partyB, Address: "b:1"})
	b.untilMode("protected")
}

// same compares the two copies. Nothing may be under way.
func (b *bench) same() {
	b.t.Helper()
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	b.m.lock.Lock()
	defer b.m.lock.Unlock()
	for i := range testPages {
		if !bytes.Equal(b.m.ram.Page(i), b.r.ram.Page(i)) {
			b.t.Fatalf("page %d differs", i)
		}
	}
	for i := range b.m.disks {
		if !bytes.Equal(b.m.disks[i].data, b.r.disks[i].data) {
			b.t.Fatalf("disk %d differs", i)
		}
	}
	if want := fmt.Sprintf("serial %08d", b.m.serial); b.r.state != want {
		b.t.Fatalf("state %q, want %q", b.r.state, want)
	}
}

// jump is a standstill of the whole process.
func (b *bench) jump(d time.Duration) {
	b.mu.Lock()
	b.skew += d
	b.mu.Unlock()
}

func (b *bench) close() {
	b.e.Close()
	synctest.Wait()
}
