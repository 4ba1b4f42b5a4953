package dataplane

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// logTimeout bounds how long a change waits for the event log before it is not made.
const logTimeout = 5 * time.Second

// actor is who writes, in every event.
const actor = "dataplane"

// eventLog is the host's, or what leads there.
type eventLog interface {
	Append(ctx context.Context, e audit.Event) error
	Close() error
}

// events writes to the host's event log: at once and durably before a change (Log), or beside it,
// where the change may not wait or its record is a Raft entry (Note).
type events struct {
	log   eventLog
	zap   *zap.Logger
	guest string
	term  func() pact.Term
	queue chan audit.Event
	done  chan struct{}

	mu     sync.RWMutex
	closed bool
}

func newEvents(cfg link.ProcessConfig, log *zap.Logger, term func() pact.Term) (*events, error) {
	l, err := openEventLog(cfg)
	if err != nil {
		return nil, err
	}
	e := &events{log: l, zap: log, guest: cfg.Guest, term: term, queue: make(chan audit.Event, 1024), done: make(chan struct{})}
	go e.write()
	return e, nil
}

// openEventLog opens it, or has it opened by somebody whom the guest can't reach.
func openEventLog(cfg link.ProcessConfig) (eventLog, error) {
	if cfg.Confine.Off() {
		return audit.Open(cfg.EventLog, cfg.Party.Host)
	}
	return startScribe(cfg)
}

func (e *events) event(kind audit.Kind, detail map[string]any) audit.Event {
	return audit.Event{Time: time.Now(), Kind: kind, Guest: e.guest, Term: uint64(e.term()), Actor: actor, Detail: detail}
}

// Log returns once the event is durable. On an error what it announces must not happen.
func (e *events) Log(kind audit.Kind, detail map[string]any) error {
	ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
	defer cancel()
	return e.log.Append(ctx, e.event(kind, detail))
}

// Note writes the event when the log has time. What comes after Close, as a signal to a process that is
// ending already, is no event any more.
func (e *events) Note(kind audit.Kind, detail map[string]any) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		e.zap.Info("after the last event", zap.String("kind", string(kind)), zap.Any("detail", detail))
		return
	}
	select {
	case e.queue <- e.event(kind, detail):
	default:
		e.zap.Error("the event log is stuck; this is only here", zap.String("kind", string(kind)), zap.Any("detail", detail))
	}
}

func (e *events) write() {
	defer close(e.done)
	for ev := range e.queue {
		ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
		if err := e.log.Append(ctx, ev); err != nil {
			e.zap.Error("the event log can't be written; this is only here", zap.String("kind", string(ev.Kind)), zap.Any("detail", ev.Detail), zap.Error(err))
		}
		cancel()
	}
}

// Close writes what is queued.
func (e *events) Close() {
	e.mu.Lock()
	e.closed = true
	close(e.queue)
	e.mu.Unlock()
	<-e.done
	if err := e.log.Close(); err != nil {
		e.zap.Error("close the event log", zap.Error(err))
	}
}
