package lockstep

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/vmm"
)

// Engine drives a primary. It is also its machine's platform.Output, from before the machine is made;
// until Begin nothing leaves it. One Engine serves one time as the primary.
type Engine struct {
	cfg Config
	log *zap.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ended  chan struct{} // closed before Host.Ended is called

	mu   sync.Mutex
	core *core.Core
	out  Release
	// later is what the core asked for and what must not be done under the mutex.
	later []func()

	begun bool
	over  bool

	// The machine, as OnPause left it.
	stay       bool          // the vCPUs are to stand still
	staying    bool          // they do
	finish     bool          // with a captured epoch
	switchover bool          // which is a switchover's final one
	endEpoch   bool          // a checkpoint is wanted soon, whatever there is to say
	stalled    bool          // standing still until the replica has caught up
	pressed    bool          // memory is dirtied faster than it can be sent
	asked      bool          // a pause is under way
	capturing  bool          // in that pause, without the mutex
	settled    chan struct{} // closed when that is over
	blocked    bool          // the last capture has met a damaged page: no other until it is mended, or the next pulse

	extra   int                // epochs that may be in flight beyond Config.InFlight
	repairs map[uint32]*repair // of damaged pages, by page index

	run      running
	inflight []*epoch // captured and not acknowledged, ascending
	free     []*vmm.Capture
	durable  pact.Epoch
	logging  bool // dirty pages are recorded

	peer    link.Peer
	sealed  chan struct{} // closed, and made anew, when an epoch has been captured
	callNow chan struct{} // capacity 1: it may be time to call the peer
	stream  *stream       // nil: none
	image   image
	final   Final
	detail  string // why there is no stream
	contact time.Duration
	nextID  func() uint64

	written []diskBlocks

	lastPulse  time.Duration
	lastAsked  time.Duration
	lastEnd    time.Duration // when the running epoch began
	switchedAt time.Duration // when a switchover was ordered; 0: none
	announcing bool
	announced  int

	stats counters
}

// running is the epoch under way.
type running struct {
	writes     []checkpoint.DiskWrite
	writeBytes int
	mirroring  bool // writes are kept for the replica
	received   []checkpoint.Frame
	recvBytes  int
}

// epoch is one that was captured.
type epoch struct {
	checkpoint.Epoch
	capture *vmm.Capture
	slab    []byte // of Background
	digest  checkpoint.Digest
	sums    *checkpoint.PageSums // that follow it; may be nil
	bytes   int                  // of its disk writes

	captured, sentAt time.Duration
}

// image is what a replica's process holds, as far as resuming goes.
type image struct {
	party pact.Party // nobody: nothing to resume
	whole pact.Epoch // first epoch with which it was complete
	last  pact.Epoch // newest acknowledged
	sum   checkpoint.Digest
}

// diskBlocks are the blocks of a disk that the replica's disk may lack: those written after a point
// that is durable there. Two sets, so that it can be moved on: older holds what was written between
// the durable point and mark, newer what came after mark.
type diskBlocks struct {
	older, newer blockSet
	mark         pact.Epoch
}

// New makes an Engine that waits for Begin.
func New(cfg Config) (*Engine, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log.With(zap.String("guest", cfg.Guest)),
		core:    core.New(core.Config{Guest: cfg.Guest, Self: cfg.Self}),
		out:     &outputCommit{limit: cfg.HoldBytes},
		ended:   make(chan struct{}),
		sealed:  make(chan struct{}),
		callNow: make(chan struct{}, 1),
		nextID:  randomID,
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	for _, d := range cfg.Disks {
		e.written = append(e.written, diskBlocks{older: newBlockSet(d.Size()), newer: newBlockSet(d.Size())})
	}
	return e, nil
}

// Start is how a process becomes the primary.
type Start struct {
	Assignment pact.Assignment
	// Last is the epoch that the machine holds (see core.Begin).
	Last pact.Epoch
	// Digest is that epoch's, where the twin holds it too: after a switchover.
	Digest checkpoint.Digest
	// Marker is the term of the durable disk marker that was written already; 0: none.
	Marker pact.Term
	// Frames are those that the epoch Last and earlier ones still held. They are sent again.
	Frames []checkpoint.Frame
	// Since is when the assignment was known to stand, on the clock of Config.Now; 0: now. A standstill
	// from there on counts as one of the Engine's own.
	Since time.Duration
}

// forgetter is what a machine that is not running yet can do about its record of written pages.
type forgetter interface{ ForgetDirty() error }

// Begin makes this process the primary. The machine must not be running yet: its Start comes after.
func (e *Engine) Begin(s Start) error {
	if s.Assignment.Primary != e.cfg.Self {
		return fmt.Errorf("lockstep: begin as the primary under an assignment that names %v", s.Assignment.Primary)
	}
	resumable := false
	if s.Assignment.Mode == pact.Protected {
		// Both sides hold the epoch Last. What the guest writes from now on has to be recorded, and only that.
		if f, ok := e.cfg.Machine.(forgetter); ok {
			if err := e.cfg.Machine.SetDirtyLogging(true); err != nil {
				return fmt.Errorf("begin as the primary: %w", err)
			}
			if err := f.ForgetDirty(); err != nil {
				return fmt.Errorf("begin as the primary: %w", err)
			}
			resumable = true
		}
	}
	e.cfg.Machine.OnReceive(e.received)
	e.mu.Lock()
	defer e.unlock()
	if e.begun {
		return fmt.Errorf("lockstep: begun already in term %d", e.core.Term())
	}
	now := e.cfg.Now()
	e.begun, e.logging = true, resumable
	e.lastPulse, e.lastEnd = now, now
	if s.Since != 0 {
		e.lastPulse = min(now, s.Since)
	}
	if s.Assignment.Mode == pact.Protected {
		e.contact = now
	}
	if resumable {
		e.image = image{party: s.Assignment.Replica, whole: s.Last, last: s.Last, sum: s.Digest}
		e.run.mirroring = true
	}
	for _, f := range s.Frames {
		f.Epoch = s.Last
		e.out.put(f)
	}
	e.out.seal(s.Last)
	e.step(core.Begin{Assignment: s.Assignment, Last: s.Last, Marker: s.Marker})
	if s.Assignment.Mode == pact.Protected && !resumable {
		e.step(core.StreamDown{Why: "this machine has no record of what it writes from the switchover on"})
	}
	e.wg.Go(e.pulse)
	e.wg.Go(e.connect)
	if e.cfg.ScrubPages > 0 {
		e.wg.Go(e.scrub)
	}
	return nil
}

// Close ends all goroutines. The machine is left as it is: Kill or a term stops a guest.
func (e *Engine) Close() {
	e.cancel()
	e.mu.Lock()
	e.over = true
	if e.stream != nil {
		e.stream.close()
	}
	e.unlock()
	e.wg.Wait()
}

// step feeds the core and does at once what belongs under the mutex, which is held.
func (e *Engine) step(ev core.Event) {
	for _, a := range e.core.Step(ev) {
		if _, hot := a.(core.Release); !hot {
			e.log.Debug("core", zap.Stringer("action", a.(fmt.Stringer)))
		}
		switch a := a.(type) {
		case core.Hold:
			e.out.hold()
		case core.Open:
			e.out.open()
		case core.Release:
			e.out.release(a.UpTo)
		case core.Drop:
			e.out.drop()
		case core.Pause:
			e.stay, e.finish = true, false
		case core.Finish:
			e.stay, e.finish, e.switchover = false, true, a.Switchover
		case core.Resume:
			e.stay, e.finish, e.switchover = false, false, false
		case core.EndEpoch:
			e.endEpoch = true
		case core.Propose:
			e.lastAsked = e.cfg.Now()
			e.later = append(e.later, func() { e.cfg.Host.Propose(a.Command) })
		case core.WriteMarker:
			e.later = append(e.later, func() { e.cfg.Host.WriteMarker(a.Term) })
		case core.Fetch:
			e.fetch(a)
		case core.Mend:
			e.mend(a.Page)
		case core.GiveUp:
			e.giveUp()
		case core.Refuse:
			e.later = append(e.later, func() { e.cfg.Host.Refused(a.Why) })
		case core.CloseStream:
			if s := e.stream; s != nil && s.id == a.Stream {
				e.detail = a.Why
				s.close()
			}
		case core.End:
			e.over = true
			e.wg.Go(func() { e.end(a) })
		}
	}
	switch ev.(type) {
	case core.Acked, core.Captured, core.Retry, core.Damaged, core.Copied:
	default:
		e.later = append(e.later, e.cfg.Host.Changed)
		select { // it may be time to call the replica
		case e.callNow <- struct{}{}:
		default:
		}
	}
	e.kick()
}

// unlock releases the mutex, then does what may not be done under it.
func (e *Engine) unlock() {
	later := e.later
	e.later = nil
	e.mu.Unlock()
	for _, f := range later {
		f()
	}
	e.flush()
}

// flushBatch is how many frames leave between two looks at whether they still may.
const flushBatch = 32

// flush emits what may leave, in order, on the caller's thread: it is mostly the one that has read the
// acknowledgement, so that no other has to be woken.
func (e *Engine) flush() {
	for {
		e.mu.Lock()
		e.gap()
		if e.core.Blocked() {
			later := e.later
			e.later = nil
			e.mu.Unlock()
			for _, f := range later {
				f()
			}
			return
		}
		batch := e.out.next(flushBatch)
		e.mu.Unlock()
		if batch == nil {
			return
		}
		for _, f := range batch {
			e.emit(f)
		}
		e.mu.Lock()
		e.out.done()
		e.stats.framesReleased += uint64(len(batch))
		e.mu.Unlock()
	}
}

func (e *Engine) emit(f checkpoint.Frame) {
	switch f.NIC {
	case consoleNIC:
		if e.cfg.Console != nil {
			e.cfg.Console(f.Data)
		}
		return
	case agentNIC:
		if e.cfg.Agent != nil {
			e.cfg.Agent(f.Data)
		}
		return
	}
	if err := e.cfg.Machine.Emit(int(f.NIC), f.Data); err != nil {
		e.log.Debug("a frame was not taken by the wire", zap.Uint8("nic", f.NIC), zap.Error(err))
	}
}

// end is the last thing that an Engine does.
func (e *Engine) end(a core.End) {
	e.mu.Lock()
	s := e.stream
	e.mu.Unlock()
	if s != nil {
		switch a.Outcome {
		case core.Lost:
			e.farewell(s, &checkpoint.HigherTerm{Term: a.Assignment.Term})
		case core.Exchanged, core.Stopped:
			e.farewell(s, &checkpoint.Goodbye{Reason: a.Outcome.String()})
		default:
			s.close()
		}
	}
	if err := e.cfg.Machine.Stop(); err != nil {
		e.log.Error("stop the machine", zap.Error(err))
	}
	e.cfg.Machine.OnReceive(nil)
	e.cancel()
	close(e.ended)
	e.cfg.Host.Ended(a.Outcome, a.Assignment, a.Why)
}

// Over reports that this process is not the primary any more, or is about to end being it.
func (e *Engine) Over() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.over
}

// Ended is closed when the Engine's time as a primary is over and the machine has stopped.
func (e *Engine) Ended() <-chan struct{} { return e.ended }

// feed is step for everybody outside.
func (e *Engine) feed(ev core.Event) {
	e.mu.Lock()
	e.step(ev)
	e.unlock()
}

// Assigned brings an assignment that the host's own Raft log has applied.
func (e *Engine) Assigned(a pact.Assignment) { e.feed(core.Assigned{Assignment: a}) }

// Answered brings what became of a proposal.
func (e *Engine) Answered(a link.Answer) { e.feed(core.Answered{ID: a.ID, Verdict: a.Verdict}) }

// LinkUp says that the daemon can be reached again: open questions are put again at once.
func (e *Engine) LinkUp() { e.feed(core.Retry{}) }

// Word is an authenticated word of a term, from wherever.
func (e *Engine) Word(t pact.Term) { e.feed(core.Word{Term: t}) }

// MarkerDurable says that the disk marker of the term survives a power cut.
func (e *Engine) MarkerDurable(t pact.Term) { e.feed(core.MarkerDurable{Term: t}) }

// Fault says that this host can't run the guest correctly any more.
func (e *Engine) Fault(why string) { e.feed(core.Faulty{Why: why}) }

// PowerOff says that the guest has switched itself off, or is to run no more for another reason.
func (e *Engine) PowerOff(why string) { e.feed(core.PoweredOff{Why: why}) }

// EndEpoch ends the running epoch and returns once it has been captured. Where no replica follows the guest,
// or it is about to be handed over, there is nothing to wait for. It is for somebody who writes much of the
// memory of a guest that stands still.
func (e *Engine) EndEpoch() {
	t := time.NewTicker(e.cfg.Heartbeat)
	defer t.Stop()
	e.mu.Lock()
	sealed, from := e.sealed, e.core.Captured()
	for {
		s := e.stream
		if s == nil || !s.up || !e.logging || e.over || e.stay || e.finish || s.fill != nil && s.fill.forget || e.core.Captured() > from {
			e.mu.Unlock()
			return
		}
		e.endEpoch = true
		e.kick()
		e.unlock()
		select {
		case <-sealed:
		case <-t.C:
		case <-e.ctx.Done():
		}
		e.mu.Lock()
	}
}

// Kill stops the guest at once, as if its plug were pulled.
func (e *Engine) Kill(why string) { e.feed(core.Killed{Why: why}) }

// Switchover asks for the roles to be exchanged.
func (e *Engine) Switchover() {
	e.mu.Lock()
	e.step(core.SwitchoverOrdered{})
	if e.switchedAt == 0 && e.core.Mode() == "switching" {
		e.switchedAt = e.cfg.Now()
	}
	e.unlock()
}

// SetPeer says where the would-be replica listens; a zero Party: there is none.
func (e *Engine) SetPeer(p link.Peer) {
	e.mu.Lock()
	defer e.unlock()
	if e.peer == p {
		return
	}
	e.peer = p
	if e.stream == nil && e.image.party != p.Party && e.core.Entitled() != e.image.party {
		e.forgetImage()
	}
	// A stream to somebody else is of use only while that one may be entitled.
	if s := e.stream; s != nil && s.party != p.Party && e.core.Entitled() != s.party {
		e.detail = "the replica has changed"
		s.close()
	}
	select {
	case e.callNow <- struct{}{}:
	default:
	}
	e.later = append(e.later, e.cfg.Host.Changed)
}

// Status fills in what the primary's side knows.
func (e *Engine) Status(s *link.Status) {
	e.mu.Lock()
	defer e.unlock()
	s.Term, s.Mode, s.Detail = e.core.Term(), e.core.Mode(), e.core.Detail()
	if s.Detail == "" {
		s.Detail = e.detail
	}
	if e.stalled {
		s.Detail = "the guest waits for the replica to catch up"
	}
	s.EpochCaptured, s.EpochAcked, s.EpochDurable = e.core.Captured(), e.core.Acked(), e.durable
	s.Epochs, s.DirtyPages, s.DirtyBytes = e.stats.epochs, e.stats.dirtyPages, e.stats.dirtyPages*checkpoint.PageSize
	s.WireBytes, s.FramesReleased = e.stats.wireBytes, e.stats.framesReleased
	s.Heals, s.Resent, s.Scrubbed, s.Diverged = e.stats.heals, e.stats.resent, e.stats.scrubbed, e.stats.diverged
	s.FramesHeld, _ = e.out.counts()
	if st := e.stream; st != nil && st.fill != nil {
		s.SyncTotal, s.SyncDone = st.fill.progress()
	}
	s.TimingsUs = e.stats.timings()
}

// Unsynced returns, for each disk, a bitmap of the blocks (BlockBytes each) that were written after
// the last epoch that the replica has reported as durable: where a resync would have to start. It may
// hold more than necessary. It is kept in memory only and covers this process's time as the primary.
func (e *Engine) Unsynced() [][]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	sets := make([][]uint64, len(e.written))
	for i, w := range e.written {
		s := append(blockSet(nil), w.older...)
		s.addAll(w.newer)
		sets[i] = s
	}
	return sets
}
