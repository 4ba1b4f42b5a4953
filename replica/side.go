package replica

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/fencing"
	"github.com/pollux-ha/pollux/replica/core"
	"github.com/pollux-ha/pollux/replica/store"
)

// Disks is what a Side needs of replica/store.
type Disks interface {
	Sizes() []uint64
	BeginResync(pact.Term) error
	MarkOutdated(pact.Term) error
	Reserve(writes []checkpoint.DiskWrite, syncing bool) (store.Reservation, error)
	Cancel(store.Reservation)
	Commit(r store.Reservation, t pact.Term, e pact.Epoch, syncing bool)
	Durable() pact.Epoch
	Digests(send func(*checkpoint.DiskDigests) error) error
}

// Handler is the process around a Side. Propose, Heard and Note return at once; the other methods run
// one after the other on a goroutine of the Side's, and may take their time.
type Handler interface {
	// Propose puts a question to Raft, through the daemon.
	Propose(pact.Command)
	// Heard says that somebody spoke of a higher term while this process is the primary.
	Heard(pact.Term)
	// Note is something that happened.
	Note(kind, text string)

	// Log makes a line of the event log durable before what it tells of takes effect.
	Log(kind, text string) error
	// ColdStart boots the guest. Afterwards the primary's side decides. decided is as in Image.
	ColdStart(a pact.Assignment, decided time.Duration) error
	// Activate makes the image run. Afterwards the primary's side decides.
	Activate(pact.Assignment, *Image) error
	// TakeReplica stops what is left of the primary that this process was, and returns the image as of
	// the final epoch.
	TakeReplica(pact.Assignment) (*Image, error)
	// End stops everything that still runs, drops what is held, and drains the disks.
	End(how core.Ending, why string)
}

// Config makes a Side.
type Config struct {
	Guest   string
	Self    pact.Party
	RAM     checkpoint.Base
	Disks   Disks
	Handler Handler
	Limits  checkpoint.Limits
	// Boot is the digest of what the guest would boot from here (checkpoint.BootDigest): it must be the primary's.
	Boot checkpoint.Digest
	// Check proves that a machine state can be loaded here, before the first whole epoch of a stream
	// is acknowledged: a replica that can't run the guest must not say that it could. May be nil.
	Check func(state []byte) error

	Silence   time.Duration // on the stream, until it asks Raft
	Heartbeat time.Duration // between signs of life on an idle stream
	AskAgain  time.Duration // between repetitions of a question
	// FirstContact is how much longer than Silence the new primary of a switchover has to open its stream.
	FirstContact time.Duration

	Clock fencing.Clock // nil: fencing.Boot
	Log   *zap.Logger   // nil: none
}

// Side is the replica's side of a process. Its methods are safe from any goroutine.
type Side struct {
	cfg     Config
	log     *zap.Logger
	silence *fencing.Silence

	mu       sync.Mutex
	core     *core.Core
	sessions map[core.Conn]*session
	conns    core.Conn
	again    *time.Timer     // runs while there is a question to repeat
	losing   map[uint32]bool // pages of it that were lost, and the session does not know yet
	image    *Image          // used by the one session that owns it, or by work
	closed   bool

	work    chan func() // what takes its time, in order
	pending int         // of work
	idle    *sync.Cond  // work is done, an assignment has been applied
	quit    chan struct{}
	running sync.WaitGroup
}

// New makes a Side and starts its goroutines. Close ends them.
func New(cfg Config) *Side {
	if cfg.Clock == nil {
		cfg.Clock = fencing.Boot
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Side{
		cfg: cfg, log: cfg.Log,
		silence:  fencing.NewSilence(),
		core:     core.New(cfg.Guest, cfg.Self),
		sessions: map[core.Conn]*session{},
		image:    &Image{},
		work:     make(chan func(), 64),
		quit:     make(chan struct{}),
	}
	s.idle = sync.NewCond(&s.mu)
	s.again = time.AfterFunc(time.Hour, func() { s.Step(core.Again{}) })
	s.again.Stop()
	s.running.Go(s.worker)
	s.running.Go(s.watch)
	return s
}

// Close drops all streams and ends the Side's goroutines. Nothing is decided any more.
func (s *Side) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	s.again.Stop()
	for _, x := range s.sessions {
		x.abort()
	}
	close(s.quit)
	s.idle.Broadcast()
	s.mu.Unlock()
	s.running.Wait()
}

// State is where the state machine is, for status and tests.
func (s *Side) State() (state core.State, acked pact.Epoch, complete bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	acked, complete = s.core.Acked()
	return s.core.State(), acked, complete
}

// Asking is the open question to Raft, if there is one.
func (s *Side) Asking() (pact.Command, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.Asking()
}

// Step gives the state machine an event and does what it says.
func (s *Side) Step(e core.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.step(e)
}

// step is Step with s.mu held.
func (s *Side) step(e core.Event) {
	if s.closed {
		return
	}
	before := s.core.State()
	for _, a := range s.core.Step(e) {
		s.do(a)
	}
	if _, ok := e.(core.Applied); ok {
		s.idle.Broadcast() // a stream may wait for it
	}
	if after := s.core.State(); after != before {
		s.log.Info("role", zap.String("from", string(before)), zap.String("to", string(after)))
	}
}

// do performs an action, or leads it on its way; s.mu is held, so nothing here waits for anything.
func (s *Side) do(a core.Action) {
	switch a := a.(type) {
	case core.Prepare:
		s.own(a.Conn)
		s.tell(a.Conn, a)
	case core.Welcome:
		s.own(a.Conn)
		s.tell(a.Conn, a)
	case core.Refuse:
		s.tell(a.Conn, a)
	case core.Ack:
		s.tell(a.Conn, a)
	case core.Take:
		s.tell(a.Conn, a)
	case core.Keep: // the session waits for the Ack, Take or Drop that follows
	case core.Drop:
		s.tell(a.Conn, a)
	case core.Close:
		if x := s.sessions[a.Conn]; x != nil {
			s.log.Info("stream closed", zap.Uint64("conn", uint64(a.Conn)), zap.String("why", a.Why))
			x.abort()
		}
	case core.Propose:
		s.cfg.Handler.Propose(a.Command)
	case core.AskLater:
		s.again.Reset(s.cfg.AskAgain)
	case core.Arm:
		limit, grace := s.cfg.Silence, time.Duration(0)
		if a.FirstContact {
			grace = s.cfg.FirstContact
		}
		if s.core.State() == core.Syncing {
			// Nobody's output waits and nothing could be taken over yet: giving up a busy primary would
			// only have everything copied again.
			limit *= link.SyncSilences
		}
		s.silence.Arm(s.cfg.Clock(), limit, grace)
	case core.Disarm:
		s.silence.Disarm()
	case core.Heard:
		s.cfg.Handler.Heard(a.Term)
	case core.Note:
		s.cfg.Handler.Note(a.Kind, a.Text)
	case core.Outdated:
		s.later(func() {
			if err := s.cfg.Disks.MarkOutdated(a.Term); err != nil {
				s.cfg.Handler.Note("disk-mark-failed", err.Error())
			}
		})
	case core.ColdStart:
		decided := s.cfg.Clock()
		s.later(func() {
			if s.activating() {
				s.started(s.cfg.Handler.ColdStart(a.Assignment, decided))
			}
		})
	case core.Activate:
		decided := s.cfg.Clock()
		s.later(func() {
			s.waitSessions(0)
			if !s.activating() {
				return
			}
			s.image.Decided = decided
			if s.image.Epoch != a.From {
				s.Step(core.Failed{Err: fmt.Sprintf("the image is at epoch %d, %d was acknowledged", s.image.Epoch, a.From)})
				return
			}
			s.started(s.cfg.Handler.Activate(a.Assignment, s.image))
		})
	case core.TakeReplica:
		s.later(func() {
			image, err := s.cfg.Handler.TakeReplica(a.Assignment)
			if err == nil && image.Epoch != a.Base {
				err = fmt.Errorf("the final epoch here is %d, the switchover names %d", image.Epoch, a.Base)
			}
			if err != nil {
				s.Step(core.Failed{Err: "become the replica after a switchover: " + err.Error()})
				return
			}
			s.image = image
		})
	case core.End:
		s.later(func() {
			s.waitSessions(0)
			s.cfg.Handler.End(a.How, a.Why)
		})
	}
}

// activating says that what was decided still stands: a process that is ending runs nothing any more.
func (s *Side) activating() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.State() == core.Activating
}

func (s *Side) started(err error) {
	if err != nil {
		s.Step(core.Failed{Err: err.Error()})
		return
	}
	s.Step(core.Activated{})
}

// own notes that the session may use the image from now on; s.mu is held.
func (s *Side) own(c core.Conn) {
	if x := s.sessions[c]; x != nil {
		x.owns = true
	}
}

// tell gives a decision to the session that waits for it; s.mu is held. A session has at most one
// question open, so the channel has room; one that is ending does not listen any more.
func (s *Side) tell(c core.Conn, a core.Action) {
	if x := s.sessions[c]; x != nil {
		select {
		case x.decision <- a:
		default:
		}
	}
}

// later runs fn after all that was put there before; s.mu is held.
func (s *Side) later(fn func()) {
	s.pending++
	select {
	case s.work <- fn:
	default:
		// 64 things that take their time are waiting: assignments come faster than disks can be marked.
		s.running.Go(func() {
			select {
			case s.work <- fn:
			case <-s.quit:
			}
		})
	}
}

func (s *Side) worker() {
	for {
		select {
		case fn := <-s.work:
			fn()
			s.mu.Lock()
			s.pending--
			s.idle.Broadcast()
			s.mu.Unlock()
		case <-s.quit:
			return
		}
	}
}

// awaitTerm gives this host's log a moment to arrive at the term of a stream. That the term exists counts
// at once.
func (s *Side) awaitTerm(x *session, t pact.Term) {
	s.Step(core.HeardTerm{Term: t})
	end := time.Now().Add(behindLimit)
	defer time.AfterFunc(behindLimit, s.idle.Broadcast).Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.closed && !x.aborted() && time.Now().Before(end) {
		if a, ok := s.core.Assignment(); ok && a.Term >= t {
			return
		}
		s.idle.Wait()
	}
}

// waitIdle waits until nothing is under way that may use the image. False: x has to end instead.
func (s *Side) waitIdle(x *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.pending > 0 && !s.closed && !x.aborted() {
		s.idle.Wait()
	}
	return !s.closed && !x.aborted()
}

// waitSessions waits for the end of all streams that came before the given one and may use the image;
// 0 means all.
func (s *Side) waitSessions(before core.Conn) {
	s.mu.Lock()
	var wait []*session
	for c, x := range s.sessions {
		if x.owns && (before == 0 || c < before) {
			wait = append(wait, x)
		}
	}
	s.mu.Unlock()
	for _, x := range wait {
		select {
		case <-x.done:
		case <-s.quit:
			return
		}
	}
}

// watch asks the silence detector.
func (s *Side) watch() {
	t := time.NewTicker(max(s.cfg.Silence/10, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if s.silence.Check(s.cfg.Clock()) {
				s.Step(core.Silent{})
			}
		case <-s.quit:
			return
		}
	}
}
