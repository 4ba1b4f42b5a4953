package lockstep

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/lockstep/core"
)

const (
	// handshakeLimit bounds dialing and the answer to Hello: the replica marks its disks durably in between.
	handshakeLimit = 5 * time.Second
	farewellLimit  = 200 * time.Millisecond
	provideAfter   = 200 * time.Millisecond

	backoffMin = 2 * time.Millisecond // after a switchover the twin's log may be a moment behind
	backoffMax = 250 * time.Millisecond
	// barrenMax streams in a row may end without an acknowledgement before resuming is given up.
	barrenMax = 3
)

// stream is one connection to a replica. Its fields are guarded by the Engine's mutex where nothing
// else is said.
type stream struct {
	id    uint64
	party pact.Party
	conn  net.Conn
	w     *checkpoint.Writer // safe for concurrent use

	up        bool
	acked     bool  // the replica has acknowledged something on it
	fill      *fill // a synchronization under way
	sentUpTo  pact.Epoch
	beat      bool // a heartbeat is due
	beats     uint64
	lastHeard time.Duration
	lastSent  time.Duration
	lastAck   time.Duration
	why       string // it failed

	wants   []want               // pages to ask for
	forget  []uint32             // pages that the encoder is to send whole
	sums    *checkpoint.PageSums // for the epoch that is running; nil: none
	sending sync.Mutex           // held from taking something to send until it is sent; before the Engine's

	wake   chan struct{} // capacity 1: the sender has something to do
	closed chan struct{}
	once   sync.Once
}

// poke wakes the sender.
func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close ends the connection without waiting for it.
func (s *stream) close() {
	s.once.Do(func() {
		close(s.closed)
		go s.conn.Close() // TLS may want to say goodbye to a peer that reads nothing
	})
}

// fail closes it with a reason. The Engine's mutex is held.
func (s *stream) fail(err error) {
	if s.why == "" {
		s.why = err.Error()
	}
	s.close()
}

// farewell sends what is left for the replica, says a last word and closes.
func (e *Engine) farewell(s *stream, m checkpoint.Message) {
	_ = s.conn.SetWriteDeadline(time.Now().Add(farewellLimit)) // for the sender's write under way as well
	s.sending.Lock()
	defer s.sending.Unlock()
	e.mu.Lock()
	frames := e.takeReceived()
	e.mu.Unlock()
	if len(frames) > 0 {
		_ = s.w.Write(&checkpoint.Received{Frames: frames}) // to whom it may concern, as the other
	}
	_ = s.w.Write(m)
	s.close()
}

func randomID() uint64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

// connect keeps a stream to the peer for as long as one is wanted.
func (e *Engine) connect() {
	encoder := checkpoint.NewEncoder(checkpoint.EncoderConfig{CachePages: e.cfg.CachePages})
	backoff, barren := backoffMin, 0
	for e.ctx.Err() == nil {
		e.relaxLogging()
		e.mu.Lock()
		peer, resume, due := e.dialDue()
		e.mu.Unlock()
		if !due {
			backoff = backoffMin
			select {
			case <-e.callNow:
			case <-e.ctx.Done():
			}
			continue
		}
		up, acked, err := e.serve(peer, resume, encoder)
		e.log.Info("no stream to the replica", zap.Stringer("replica", peer.Party), zap.Bool("was_up", up), zap.Error(err))
		switch {
		case acked:
			backoff, barren = backoffMin, 0
		case up:
			barren++
		}
		e.mu.Lock()
		if resume && barren >= barrenMax && e.stream == nil && e.core.Entitled().IsZero() {
			// It welcomes what it then can't take: fill it from nothing.
			e.forgetImage()
			barren = 0
		}
		e.detail = fmt.Sprintf("no stream to %v: %v", peer.Party, err)
		e.mu.Unlock()
		select {
		case <-time.After(backoff):
		case <-e.ctx.Done():
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// dialDue says whom to call, and whether he holds something to go on from. e.mu is held.
func (e *Engine) dialDue() (p link.Peer, resume, due bool) {
	p = e.peer
	if e.over || p.Party.IsZero() || e.stream != nil {
		return p, false, false
	}
	entitled := e.core.Entitled()
	if e.image.party == p.Party && (entitled.IsZero() || entitled == p.Party) {
		return p, true, true
	}
	return p, false, e.core.MayFill()
}

// relaxLogging stops the recording of written pages where nobody needs it: it costs the guest.
func (e *Engine) relaxLogging() {
	e.mu.Lock()
	off := e.logging && e.stream == nil && e.image.party.IsZero()
	if off {
		e.logging, e.free = false, nil
	}
	e.mu.Unlock()
	if off {
		if err := e.cfg.Machine.SetDirtyLogging(false); err != nil {
			e.log.Warn("stop recording written pages", zap.Error(err))
		}
	}
}

// serve makes a stream and lives as long as it does. It returns whether the replica welcomed it, and
// whether it then acknowledged anything.
func (e *Engine) serve(peer link.Peer, resume bool, encoder *checkpoint.Encoder) (up, acked bool, err error) {
	ctx, cancel := context.WithTimeout(e.ctx, handshakeLimit)
	defer cancel()
	conn, err := e.cfg.Dial(ctx, peer)
	if err != nil {
		return false, false, fmt.Errorf("call the replica at %s: %w", peer.Address, err)
	}
	s := &stream{
		id: e.nextID(), party: peer.Party, conn: conn, w: checkpoint.NewWriter(conn),
		wake: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	defer s.close()
	e.mu.Lock()
	if e.over {
		e.mu.Unlock()
		return false, false, errors.New("this process is not the primary any more")
	}
	e.stream = s
	hello := &checkpoint.Hello{
		Version: checkpoint.Version, Guest: e.cfg.Guest, Term: e.core.Term(), Primary: e.cfg.Self, Replica: peer.Party,
		Stream: s.id, RAMPages: uint32(e.cfg.Machine.RAM().Pages()), Resume: resume, Boot: e.cfg.Boot,
	}
	e.mu.Unlock()
	defer e.streamGone(s)
	for _, d := range e.cfg.Disks {
		hello.DiskSizes = append(hello.DiskSizes, uint64(d.Size()))
	}
	reader := checkpoint.NewReader(conn, nil, checkpoint.DefaultLimits())
	welcome, err := e.handshake(s, hello, reader)
	if err != nil {
		return false, false, err
	}
	if resume {
		err = e.resume(s, welcome)
	} else {
		e.provide()
		err = e.startFill(s)
	}
	if err != nil {
		return false, false, err
	}
	if resume {
		encoder.Reset(welcome.LastDigest)
	} else {
		encoder.Reset(checkpoint.Digest{})
	}
	var senders sync.WaitGroup
	senders.Go(func() { e.send(s, encoder) })
	if resume {
		// After a switchover somebody waits for the first epochs; they are small, and can do without.
		senders.Go(func() {
			select {
			case <-time.After(provideAfter):
				e.provide()
			case <-s.closed:
			}
		})
	}
	e.mu.Lock()
	f := s.fill
	e.mu.Unlock()
	if f != nil {
		senders.Go(f.work)
	}
	err = e.receive(s, reader)
	e.mu.Lock()
	s.fail(err)
	err = errors.New(s.why)
	if s.up {
		s.up = false
		e.stalled = false
		e.step(core.StreamDown{Stream: s.id, Why: s.why})
	}
	acked = s.acked
	e.unlock()
	senders.Wait()
	return true, acked, err
}

// streamGone takes a stream off the Engine, once nothing works for it any more.
func (e *Engine) streamGone(s *stream) {
	e.mu.Lock()
	defer e.unlock()
	e.stream = nil
	e.stalled = false
	e.run.received, e.run.recvBytes = nil, 0
	if s.fill != nil || e.image.party != s.party {
		e.forgetImage()
	}
	e.kick()
}

// forgetImage gives up resuming. Captured epochs have no use any more; their output stays where it is.
func (e *Engine) forgetImage() {
	e.image = image{}
	for _, ep := range e.inflight {
		e.free = append(e.free, ep.capture)
	}
	e.inflight = nil
	e.run.mirroring = false
	e.run.writes, e.run.writeBytes = nil, 0
}

func (e *Engine) handshake(s *stream, hello *checkpoint.Hello, reader *checkpoint.Reader) (*checkpoint.Welcome, error) {
	_ = s.conn.SetDeadline(time.Now().Add(handshakeLimit))
	if err := s.w.Write(hello); err != nil {
		return nil, err
	}
	for {
		m, err := reader.Next()
		if err != nil {
			return nil, fmt.Errorf("wait for the replica's welcome: %w", err)
		}
		switch m := m.(type) {
		case *checkpoint.HigherTerm:
			e.Word(m.Term)
		case *checkpoint.Heartbeat:
			e.word(m.Term)
		case *checkpoint.Goodbye:
			return nil, fmt.Errorf("the replica says goodbye: %s", m.Reason)
		case *checkpoint.Welcome:
			switch {
			case m.Refused != "":
				return nil, fmt.Errorf("the replica refuses: %s", m.Refused)
			case m.Version != checkpoint.Version:
				return nil, fmt.Errorf("%w: the replica speaks %d: run the same release on both hosts", checkpoint.ErrVersion, m.Version)
			case m.Stream != hello.Stream || m.Party != hello.Replica:
				return nil, fmt.Errorf("the replica's welcome is for stream %#x, from %v", m.Stream, m.Party)
			}
			return m, s.conn.SetDeadline(time.Time{})
		default:
			return nil, fmt.Errorf("a %T instead of a welcome", m)
		}
	}
}

// resume goes on after the epoch that the replica holds.
func (e *Engine) resume(s *stream, w *checkpoint.Welcome) error {
	e.mu.Lock()
	defer e.unlock()
	holds := false
	switch {
	case e.image.party != s.party || w.LastEpoch < e.image.whole:
	case w.LastEpoch == e.image.last:
		holds = w.LastDigest == e.image.sum
	default:
		for _, ep := range e.inflight {
			if ep.Number == w.LastEpoch {
				holds = ep.digest == w.LastDigest && ep.digest != checkpoint.Digest{}
			}
		}
	}
	if !holds {
		if e.core.Entitled().IsZero() {
			e.forgetImage() // the next call fills it anew
		}
		return fmt.Errorf("the replica holds epoch %d, which can't be gone on from", w.LastEpoch)
	}
	e.dropAcked(w.LastEpoch, w.LastDigest)
	s.sentUpTo = w.LastEpoch
	return e.bringUp(s, core.StreamUp{Stream: s.id, Party: s.party, Resumed: true, Last: w.LastEpoch})
}

// startFill begins a full synchronization.
func (e *Engine) startFill(s *stream) error {
	if err := e.cfg.Machine.SetDirtyLogging(true); err != nil {
		return fmt.Errorf("record written pages: %w", err)
	}
	e.mu.Lock()
	defer e.unlock()
	e.logging = true
	if !e.core.MayFill() {
		return errors.New("the replica can't be filled before a decision has been made")
	}
	e.forgetImage()
	// Writes are mirrored from here on, before any block is compared or copied.
	e.run.mirroring = true
	s.fill = newFill(e, s)
	s.sentUpTo = e.core.Captured()
	return e.bringUp(s, core.StreamUp{Stream: s.id, Party: s.party})
}

// bringUp tells the core; e.mu is held.
func (e *Engine) bringUp(s *stream, up core.StreamUp) error {
	now := e.cfg.Now()
	s.lastHeard, s.lastSent, s.lastAck = now, now, now
	s.up = true
	e.contact = 0
	e.detail = ""
	e.step(up)
	select {
	case <-s.closed:
		s.up = false
		return fmt.Errorf("this side does not want the stream: %s", e.detail)
	default:
	}
	s.poke()
	return nil
}

// receive reads what the replica says until the stream ends.
func (e *Engine) receive(s *stream, reader *checkpoint.Reader) error {
	for {
		m, err := reader.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the replica has closed it")
			}
			return err
		}
		e.mu.Lock()
		s.lastHeard = e.cfg.Now()
		switch m := m.(type) {
		case *checkpoint.Ack:
			err = e.ack(s, m)
		case *checkpoint.Durable:
			if s.fill == nil && m.Epoch >= e.image.whole && m.Epoch <= e.core.Acked() {
				e.noteDurable(m.Epoch)
			}
		case *checkpoint.Heartbeat:
			if m.Term > e.core.Term() {
				e.step(core.Word{Term: m.Term})
			}
		case *checkpoint.HigherTerm:
			e.step(core.Word{Term: m.Term})
		case *checkpoint.DiskDigests:
			if s.fill == nil {
				err = errors.New("disk digests outside of a synchronization")
			} else {
				err = s.fill.digests(m)
			}
		case *checkpoint.PageCopy:
			e.copied(s, m)
		case *checkpoint.PagesLost:
			err = e.sendAgain(s, m)
		case *checkpoint.Goodbye:
			err = fmt.Errorf("the replica says goodbye: %s", m.Reason)
		default:
			err = fmt.Errorf("a %T where none may come", m)
		}
		e.unlock()
		if err != nil {
			return err
		}
	}
}

func (e *Engine) word(t pact.Term) {
	e.mu.Lock()
	if t > e.core.Term() {
		e.step(core.Word{Term: t})
	}
	e.unlock()
}

// ack takes an acknowledgement; e.mu is held. What it releases leaves when the mutex is given back.
func (e *Engine) ack(s *stream, m *checkpoint.Ack) error {
	var ep *epoch
	for _, i := range e.inflight {
		if i.Number == m.Epoch {
			ep = i
		}
	}
	switch {
	case ep == nil || m.Epoch > s.sentUpTo:
		return fmt.Errorf("%w: epoch %d is acknowledged, %d is the newest that was sent", checkpoint.ErrSequence, m.Epoch, s.sentUpTo)
	case ep.digest != checkpoint.Digest{} && ep.digest != m.Digest:
		return fmt.Errorf("%w: the replica holds something else as epoch %d", checkpoint.ErrCorrupt, m.Epoch)
	}
	e.gap()
	now := e.cfg.Now()
	s.lastAck = now
	if ep.sentAt == 0 {
		ep.sentAt = now // the sender has not come back from its last write yet
	}
	e.stats.add(phaseAck, now-ep.sentAt)
	e.stats.add(phaseRelease, now-ep.captured)
	s.acked = true
	e.dropAcked(m.Epoch, m.Digest)
	e.step(core.Acked{Stream: s.id, Epoch: m.Epoch})
	return nil
}

// dropAcked forgets epochs that the replica holds.
func (e *Engine) dropAcked(upTo pact.Epoch, sum checkpoint.Digest) {
	n := 0
	for _, ep := range e.inflight {
		if ep.Number > upTo {
			break
		}
		e.free = append(e.free, ep.capture)
		n++
	}
	e.inflight = append(e.inflight[:0], e.inflight[n:]...)
	if e.final.Epoch != 0 && e.final.Epoch == upTo {
		e.final.Digest, e.final.acked = sum, true
	}
	if e.image.party.IsZero() {
		return
	}
	e.image.last, e.image.sum = upTo, sum
}

// send is the sender's goroutine.
func (e *Engine) send(s *stream, encoder *checkpoint.Encoder) {
	for {
		select {
		case <-s.wake:
		case <-s.closed:
			return
		}
		for e.sendSome(s, encoder) {
		}
	}
}

// sendSome sends what is due and reports whether there may be more.
func (e *Engine) sendSome(s *stream, encoder *checkpoint.Encoder) bool {
	s.sending.Lock()
	defer s.sending.Unlock()
	e.mu.Lock()
	if !s.up {
		e.mu.Unlock()
		return false
	}
	if wanted := e.takeWanted(s); wanted != nil {
		s.lastSent = e.cfg.Now()
		e.mu.Unlock()
		return e.write(s, wanted)
	}
	received := e.takeReceived()
	var ep *epoch
	for _, i := range e.inflight {
		if i.Number > s.sentUpTo {
			ep = i
			s.sentUpTo = i.Number
			break
		}
	}
	if ep != nil {
		for _, p := range s.forget {
			encoder.Forget(p)
		}
		s.forget = s.forget[:0]
	}
	beat := s.beat && ep == nil && len(received) == 0
	s.beat = false
	term := e.core.Term()
	if ep != nil || beat || len(received) > 0 {
		s.lastSent = e.cfg.Now()
	}
	e.mu.Unlock()

	var err error
	switch {
	case len(received) > 0 || ep != nil:
		if len(received) > 0 {
			err = s.w.Write(&checkpoint.Received{Frames: received})
		}
		if ep != nil && err == nil {
			err = e.sendEpoch(s, ep, encoder)
		}
	case beat:
		s.beats++
		err = s.w.Write(&checkpoint.Heartbeat{Term: term, Sequence: s.beats})
	default:
		return false
	}
	if err != nil {
		e.mu.Lock()
		s.fail(err)
		e.mu.Unlock()
		return false
	}
	return true
}

// write sends one message and reports whether the stream still lives.
func (e *Engine) write(s *stream, m checkpoint.Message) bool {
	if err := s.w.Write(m); err != nil {
		e.mu.Lock()
		s.fail(err)
		e.mu.Unlock()
		return false
	}
	return true
}

func (e *Engine) sendEpoch(s *stream, ep *epoch, encoder *checkpoint.Encoder) error {
	stats, err := encoder.Encode(s.w, &ep.Epoch)
	if err == nil && ep.sums != nil {
		err = s.w.Write(ep.sums)
	}
	now := e.cfg.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	ep.digest, ep.sentAt = stats.Digest, now
	s.lastSent = now
	e.stats.wireBytes += stats.WireBytes
	e.stats.add(phaseEncode, stats.Encode)
	e.stats.add(phaseSend, stats.Send)
	if ep.slab != nil {
		if s.fill != nil {
			s.fill.giveBack(ep.slab)
		}
		ep.slab, ep.Background = nil, nil // a synchronization is never resumed
	}
	return err
}
