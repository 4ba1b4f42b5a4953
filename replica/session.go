package replica

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/replica/core"
	"github.com/pollux-ha/pollux/replica/journal"
	"github.com/pollux-ha/pollux/replica/store"
)

const (
	// helloTimeout bounds how long a connection may be open without saying who it is.
	helloTimeout = 5 * time.Second
	// behindLimit is how long a stream of a term that this host's log does not have yet may wait for it.
	// After a switchover the twin calls at once, and the guest's output waits for the stream.
	behindLimit = 100 * time.Millisecond
)

// Ends of a session that are no fault of the primary's host.
var (
	errEnded   = errors.New("the stream is not wanted any more")
	errGoodbye = errors.New("the primary says goodbye")
	errUnfit   = errors.New("the guest's state can't be loaded on this host, so it can't be protected here")
)

// session is one incoming checkpoint stream.
type session struct {
	s        *Side
	id       core.Conn
	conn     net.Conn
	host     string // by the peer's certificate
	hello    *checkpoint.Hello
	reader   *checkpoint.Reader
	writer   *checkpoint.Writer
	decision chan core.Action
	accepted atomic.Bool // its bytes are signs of life
	wrote    atomic.Int64
	owns     bool            // may use the image; guarded by Side.mu
	askedFor map[uint32]bool // pages that the primary is to send again
	checked  bool            // the machine state can be loaded here

	closing sync.Once
	gone    chan struct{} // closed by abort
	done    chan struct{} // the session does not touch the image any more
}

// Serve takes a checkpoint stream from a peer whose certificate says that it is host, until the stream
// ends or is not wanted any more. It closes conn.
func (s *Side) Serve(conn net.Conn, host string) {
	x := &session{
		s: s, conn: conn, host: host,
		decision: make(chan core.Action, 1), gone: make(chan struct{}), done: make(chan struct{}),
	}
	x.reader = checkpoint.NewReader(&heardReader{x}, s.cfg.RAM, s.cfg.Limits)
	x.writer = checkpoint.NewWriter(conn)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		conn.Close()
		return
	}
	s.conns++
	x.id = s.conns
	s.sessions[x.id] = x
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()

	err := x.run()
	x.reader.Close()
	x.abort()
	close(x.done)
	s.mu.Lock()
	delete(s.sessions, x.id)
	s.mu.Unlock()
	why := "closed by the peer"
	if err != nil && !errors.Is(err, io.EOF) {
		why = err.Error()
	}
	s.log.Info("stream ended", zap.Uint64("conn", uint64(x.id)), zap.String("peer", host), zap.String("why", why))
	s.Step(core.Lost{Conn: x.id, Why: why, Alive: x.alive(err)})
}

// alive says that the stream's end does not mean that the primary has failed.
func (x *session) alive(err error) bool {
	for _, e := range []error{errEnded, errGoodbye, checkpoint.ErrCorrupt, checkpoint.ErrLimit, checkpoint.ErrSequence, checkpoint.ErrVersion, journal.ErrTooLarge, errUnfit} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// abort ends the session; its goroutine notices at once.
func (x *session) abort() {
	x.closing.Do(func() {
		close(x.gone)
		x.s.idle.Broadcast()
		// Closing a TLS connection would wait for its lock to say goodbye.
		if t, ok := x.conn.(*tls.Conn); ok {
			t.NetConn().Close()
			return
		}
		x.conn.Close()
	})
}

func (x *session) aborted() bool {
	select {
	case <-x.gone:
		return true
	default:
		return false
	}
}

// heardReader is the connection, with every byte a sign of life.
type heardReader struct{ x *session }

func (r *heardReader) Read(p []byte) (int, error) {
	n, err := r.x.conn.Read(p)
	if n > 0 && r.x.accepted.Load() {
		r.x.s.silence.Heard(r.x.s.cfg.Clock())
	}
	return n, err
}

func (x *session) run() error {
	if err := x.open(); err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	x.s.running.Go(func() { x.beat(ended) })
	if !x.hello.Resume {
		x.s.running.Go(x.digests)
	}
	for {
		m, err := x.reader.Next()
		if err != nil {
			return err
		}
		if err := x.take(m); err != nil {
			return err
		}
		if err := x.askAgain(); err != nil {
			return err
		}
	}
}

// open reads the Hello and has it answered.
func (x *session) open() error {
	_ = x.conn.SetDeadline(time.Now().Add(helloTimeout))
	m, err := x.reader.Next()
	if err != nil {
		return err
	}
	hello, ok := m.(*checkpoint.Hello)
	if !ok {
		return fmt.Errorf("%w: the stream begins with a %T", checkpoint.ErrCorrupt, m)
	}
	x.hello = hello
	if no := x.unfit(); no != "" {
		return x.refuse(core.Refuse{Why: no})
	}
	if x.host == hello.Primary.Host {
		x.s.awaitTerm(x, hello.Term)
	}
	x.s.Step(core.Opened{Conn: x.id, Host: x.host, Term: hello.Term, Primary: hello.Primary, Replica: hello.Replica, Resume: hello.Resume})
	for {
		a, err := x.decided()
		if err != nil {
			return err
		}
		switch a := a.(type) {
		case core.Refuse:
			return x.refuse(a)
		case core.Prepare:
			x.prepare()
		case core.Welcome:
			return x.welcome(a)
		}
	}
}

// unfit says why the guest at the other end is not the one here.
func (x *session) unfit() string {
	h, s := x.hello, x.s
	switch sizes := s.cfg.Disks.Sizes(); {
	case h.Version != checkpoint.Version:
		return fmt.Sprintf("stream version %d, this program speaks %d: run the same release on both hosts", h.Version, checkpoint.Version)
	case h.Guest != s.cfg.Guest:
		return fmt.Sprintf("this is guest %q", s.cfg.Guest)
	case int(h.RAMPages) != s.cfg.RAM.Pages():
		return fmt.Sprintf("%d pages of memory there, %d here", h.RAMPages, s.cfg.RAM.Pages())
	case len(h.DiskSizes) != len(sizes):
		return fmt.Sprintf("%d disks there, %d here", len(h.DiskSizes), len(sizes))
	default:
		for i := range sizes {
			if sizes[i] != h.DiskSizes[i] {
				return fmt.Sprintf("disk %d has %d bytes there, %d here", i, h.DiskSizes[i], sizes[i])
			}
		}
		if h.Boot != s.cfg.Boot {
			return "the guest's kernel or initial RAM disk is not what it was started with: a reset after a takeover would boot something else. " +
				"Put the same files on both hosts; files that were replaced count from the guest's next start on"
		}
	}
	return ""
}

// decided waits for the state machine's word on this session.
func (x *session) decided() (core.Action, error) {
	select {
	case a := <-x.decision:
		return a, nil
	default:
	}
	select {
	case a := <-x.decision:
		return a, nil
	case <-x.gone:
	}
	// Ended from outside. The state machine may not know yet, and have just decided; after this it
	// decides nothing more for this session.
	x.s.Step(core.Lost{Conn: x.id, Why: errEnded.Error(), Alive: true})
	select {
	case a := <-x.decision:
		return a, nil
	default:
		return nil, errEnded
	}
}

func (x *session) refuse(r core.Refuse) error {
	x.s.log.Info("stream refused", zap.String("peer", x.host), zap.String("why", r.Why))
	if r.Term != 0 {
		if err := x.writer.Write(&checkpoint.HigherTerm{Term: r.Term}); err != nil {
			return err
		}
	}
	w := &checkpoint.Welcome{Version: checkpoint.Version, Stream: x.hello.Stream, Party: x.s.cfg.Self, Refused: r.Why}
	if r.Blank {
		w.Refused = "" // the last epoch, none, says it in a way that a program understands
	}
	err := x.writer.Write(w)
	return errors.Join(err, errEnded)
}

// prepare makes image and disks ready to be overwritten.
func (x *session) prepare() {
	s := x.s
	s.waitSessions(x.id)
	e := core.Prepared{Conn: x.id}
	if !s.waitIdle(x) {
		e.Err = errEnded.Error()
	} else if err := s.cfg.Handler.Log("resync", fmt.Sprintf("memory and disks are about to be overwritten from %v in term %d", x.hello.Primary, x.hello.Term)); err != nil {
		e.Err = "the event log can't be written: " + err.Error()
	} else if err := s.cfg.Disks.BeginResync(x.hello.Term); err != nil {
		e.Err = "prepare the disks for a resync: " + err.Error()
	}
	s.image = &Image{}
	s.Step(e)
}

func (x *session) welcome(a core.Welcome) error {
	s := x.s
	s.waitSessions(x.id)
	if !s.waitIdle(x) {
		return errEnded
	}
	if a.Last != s.image.Epoch {
		return fmt.Errorf("the image is at epoch %d, %d was acknowledged", s.image.Epoch, a.Last)
	}
	if a.Last != 0 {
		x.reader.Expect(a.Last, s.image.Digest)
		for _, p := range s.image.lost {
			x.reader.Lose(p)
		}
	}
	_ = x.conn.SetDeadline(time.Time{})
	s.silence.Heard(s.cfg.Clock())
	x.accepted.Store(true)
	s.log.Info("stream accepted", zap.String("peer", x.host), zap.Uint64("term", uint64(x.hello.Term)),
		zap.Bool("resume", x.hello.Resume), zap.Uint64("last_epoch", uint64(a.Last)))
	return x.writer.Write(&checkpoint.Welcome{
		Version: checkpoint.Version, Stream: x.hello.Stream, Party: s.cfg.Self, LastEpoch: a.Last, LastDigest: s.image.Digest,
	})
}

// take handles one message of an accepted stream.
func (x *session) take(m checkpoint.Message) error {
	switch m := m.(type) {
	case *checkpoint.Staged:
		return x.epoch(m)
	case *checkpoint.Heartbeat:
		x.heard(m.Term)
	case *checkpoint.HigherTerm:
		x.heard(m.Term)
	case *checkpoint.Received:
		x.s.image.received(m.Frames)
	case *checkpoint.PagesWanted:
		return x.copies(m)
	case *checkpoint.PageSums:
		return x.compare(m)
	case *checkpoint.Goodbye:
		return fmt.Errorf("%w: %s", errGoodbye, m.Reason)
	default:
		return fmt.Errorf("%w: a %T in the middle of a stream", checkpoint.ErrCorrupt, m)
	}
	return nil
}

// heard passes an authenticated word of a term on. Most are of the known one.
func (x *session) heard(t pact.Term) {
	if t > x.hello.Term {
		x.s.Step(core.HeardTerm{Term: t})
	}
}

// epoch commits a staged epoch, or drops it. This is the guest's critical path up to the ack.
func (x *session) epoch(e *checkpoint.Staged) error {
	s := x.s
	syncing := e.Flags&checkpoint.FlagSyncing != 0
	if err := x.check(e, syncing); err != nil {
		e.Release()
		return err
	}
	r, err := s.cfg.Disks.Reserve(e.Writes, syncing)
	if err != nil {
		e.Release()
		if !errors.Is(err, checkpoint.ErrCorrupt) && !errors.Is(err, journal.ErrTooLarge) {
			// This host's own disks: it must not ask for a guest that it could not run.
			s.Step(core.Failed{Err: err.Error()})
		}
		return fmt.Errorf("epoch %d: %w", e.Number, err)
	}
	s.stepStaged(core.Staged{Conn: x.id, Epoch: e.Number, Term: e.Term, Syncing: syncing, Final: e.Flags&checkpoint.FlagFinal != 0, Lost: len(e.Lost) > 0})
	a, err := x.decided()
	_, ack := a.(core.Ack)
	if _, silent := a.(core.Take); !ack && !silent {
		s.cfg.Disks.Cancel(r)
		e.Release()
		return err // the stream goes on, unless it was closed
	}
	// Committed: from here on nothing may keep the epoch out of the image, least of all a broken stream.
	var ackErr error
	if ack {
		ackErr = x.write(&checkpoint.Ack{Epoch: e.Number, Digest: e.Digest})
	}
	e.Apply(s.cfg.RAM)
	s.image.advance(e, s.cfg.Clock())
	s.cfg.Disks.Commit(r, e.Term, e.Number, syncing)
	e.Release()
	return ackErr
}

func (x *session) check(e *checkpoint.Staged, syncing bool) error {
	if syncing || x.checked || x.s.cfg.Check == nil {
		return nil
	}
	if err := x.s.cfg.Check(e.State); err != nil {
		err = fmt.Errorf("%w: %w", errUnfit, err)
		x.s.cfg.Handler.Note("replica-unfit", err.Error())
		return err
	}
	x.checked = true
	return nil
}

func (x *session) write(m checkpoint.Message) error {
	x.wrote.Store(int64(x.s.cfg.Clock()))
	return x.writer.Write(m)
}

// beat shows the primary that this side is alive, and how far its disks are.
func (x *session) beat(ended <-chan struct{}) {
	t := time.NewTicker(x.s.cfg.Heartbeat)
	defer t.Stop()
	var durable pact.Epoch
	for n := uint64(1); ; n++ {
		select {
		case <-ended:
			return
		case <-t.C:
		}
		if d := x.s.cfg.Disks.Durable(); d != durable {
			if x.write(&checkpoint.Durable{Epoch: d}) != nil {
				return
			}
			durable = d
			continue
		}
		if x.s.cfg.Clock()-time.Duration(x.wrote.Load()) < x.s.cfg.Heartbeat {
			continue
		}
		if x.write(&checkpoint.Heartbeat{Term: x.hello.Term, Sequence: n}) != nil {
			return
		}
	}
}

// digests tells the primary what the disks hold, so that it sends only what differs.
func (x *session) digests() {
	err := x.s.cfg.Disks.Digests(func(m *checkpoint.DiskDigests) error { return x.write(m) })
	if err == nil {
		return
	}
	select {
	case <-x.gone:
	default:
		x.s.log.Warn("disk digests", zap.Error(err))
		x.abort()
	}
}

var _ Disks = (*store.Store)(nil)
