package history

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Workload is a set of clients, each with one TCP connection and one request at a time, that work
// on the same few keys and record what they see.
//
// Three kinds of keys are in use at any time: registers (SET and GET), counters (INCR and GET) and
// texts (APPEND and GET). Every value and every appended piece is unique in the recording. After
// OperationsPerGeneration requests the clients move on to fresh keys, which keeps the histories of
// single keys, and so the linearizability check, small; the old keys are read again by Verify.
type Workload struct {
	// Dial opens a connection to the server.
	Dial func(context.Context) (net.Conn, error)
	// Recorder takes the operations.
	Recorder *Recorder
	// Connections is how many clients work at once. 0 means 6.
	Connections int
	// Think is the mean pause of a client between a reply and its next request; the pauses are
	// random. 0 means none.
	Think time.Duration
	// OperationsPerGeneration is the number of requests after which the keys change. 0 means 3,000.
	OperationsPerGeneration int
	// Prefix begins the name of every key, and keeps runs against one server apart.
	Prefix string
	// Seed makes the choice of requests repeatable (their interleaving is not).
	Seed uint64

	count    atomic.Int64 // requests begun
	stopping atomic.Bool
	resets   atomic.Int64
	errors   atomic.Int64
	mu       sync.Mutex
	failures []string // the first few
}

// keysPerKind is the number of keys of each kind in a generation.
const keysPerKind = 2

// Resets is how many established connections ended without the client's wish.
func (w *Workload) Resets() int { return int(w.resets.Load()) }

// ServerErrors is how many error replies there were.
func (w *Workload) ServerErrors() int { return int(w.errors.Load()) }

// Failures describes the first resets and error replies.
func (w *Workload) Failures() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.failures...)
}

// Stop lets each client get the reply that it waits for, and no more; Run returns then.
func (w *Workload) Stop() { w.stopping.Store(true) }

// Run works until Stop is called or ctx ends, or until limit requests have been made where limit is
// above 0. Requests that have no reply when ctx ends are recorded as such. Where a connection breaks, that is counted
// and the client opens another. Run returns an error if a client can't connect at its start.
func (w *Workload) Run(ctx context.Context, limit int64) error {
	connections := w.connections()
	opened := make([]net.Conn, connections)
	for i := range opened {
		c, err := w.Dial(ctx)
		if err != nil {
			for _, c := range opened[:i] {
				c.Close()
			}
			return fmt.Errorf("connect checking client %d: %w", i, err)
		}
		opened[i] = c
	}
	var clients sync.WaitGroup
	for i, c := range opened {
		clients.Add(1)
		go func() {
			defer clients.Done()
			w.client(ctx, i, c, limit)
		}()
	}
	clients.Wait()
	return nil
}

func (w *Workload) connections() int {
	if w.Connections == 0 {
		return 6
	}
	return w.Connections
}

func (w *Workload) perGeneration() int64 {
	if w.OperationsPerGeneration == 0 {
		return 3000
	}
	return int64(w.OperationsPerGeneration)
}

// client is one client's life.
func (w *Workload) client(ctx context.Context, number int, first net.Conn, limit int64) {
	random := rand.New(rand.NewPCG(w.Seed, uint64(number)+1))
	conn := NewConn(first)
	release := closeWhenDone(ctx, first)
	defer func() { release(); conn.Close() }()
	for sequence := 0; ctx.Err() == nil && !w.stopping.Load(); sequence++ {
		n := w.count.Add(1)
		if limit > 0 && n > limit {
			return
		}
		o := w.choose(random, number, sequence, n/w.perGeneration())
		if !w.do(ctx, conn, &o) {
			release()
			conn.Close()
			c, err := w.redial(ctx)
			if err != nil {
				return
			}
			conn, release = NewConn(c), closeWhenDone(ctx, c)
			continue
		}
		if w.Think > 0 {
			pause(ctx, time.Duration(random.Int64N(int64(2*w.Think))))
		}
	}
}

// do makes one request and records it. It returns false if the connection is of no more use.
func (w *Workload) do(ctx context.Context, conn *Conn, o *Operation) bool {
	o.Call = w.Recorder.Now()
	reply, err := conn.Do(o.command()...)
	o.Return = w.Recorder.Now()
	if err != nil {
		o.Return, o.Failure = Never, err.Error()
		w.Recorder.Add(*o)
		if ctx.Err() == nil {
			w.resets.Add(1)
			w.note("connection of client %d lost at %v: %s", o.Client, w.Recorder.Now().Round(time.Millisecond), describeLoss(err))
		}
		return false
	}
	if !o.take(reply) {
		w.errors.Add(1)
		w.note("%s %s was answered with %s", o.Kind, o.Key, o.Failure)
	}
	w.Recorder.Add(*o)
	return true
}

func (w *Workload) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failures) < 20 {
		w.failures = append(w.failures, fmt.Sprintf(format, args...))
	}
}

func describeLoss(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		return "reset by the peer"
	case errors.Is(err, syscall.ETIMEDOUT):
		return "timed out"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed by the peer"
	}
	return err.Error()
}

// redial opens a connection in place of a lost one, and goes on trying until ctx ends.
func (w *Workload) redial(ctx context.Context) (net.Conn, error) {
	for {
		c, err := w.Dial(ctx)
		if err == nil {
			return c, nil
		}
		pause(ctx, 20*time.Millisecond)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// closeWhenDone ends what blocks on c when ctx ends. The returned function takes that back.
func closeWhenDone(ctx context.Context, c net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return func() { stop() }
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// choose picks a client's next request.
func (w *Workload) choose(random *rand.Rand, client, sequence int, generation int64) Operation {
	o := Operation{Client: client, Kind: Get}
	key := func(kind string) string {
		return fmt.Sprintf("%s:%d:%s%d", w.Prefix, generation, kind, random.IntN(keysPerKind))
	}
	switch p := random.IntN(100); {
	case p < 25:
		o.Kind, o.Key = Set, key("register")
		o.Value = fmt.Sprintf("v-%d-%d", client, sequence)
	case p < 50:
		o.Key = key("register")
	case p < 65:
		o.Kind, o.Key = Incr, key("counter")
	case p < 75:
		o.Key = key("counter")
	case p < 90:
		o.Kind, o.Key = Append, key("text")
		o.Value = piece(client, sequence)
	default:
		o.Key = key("text")
	}
	return o
}

// piece is what an APPEND carries: twelve bytes, unique by client and sequence.
func piece(client, sequence int) string {
	return fmt.Sprintf("%03x.%07x;", client&0xfff, sequence&0xfffffff)
}

func (o *Operation) command() []string {
	switch o.Kind {
	case Set, Append:
		return []string{o.Kind.String(), o.Key, o.Value}
	}
	return []string{o.Kind.String(), o.Key}
}

// take notes what a reply says. A reply that doesn't fit the request leaves the outcome unknown, and
// take returns false.
func (o *Operation) take(r Reply) bool {
	switch {
	case o.Kind == Get && r.Type == Bulk:
		o.Text, o.Absent = r.Text, r.Nil
		return true
	case o.Kind == Set && r.Type == SimpleString && r.Text == "OK":
		return true
	case (o.Kind == Incr || o.Kind == Append) && r.Type == Integer:
		o.Number = r.Number
		return true
	case r.Type == ErrorReply:
		o.Failure = fmt.Sprintf("the error %q", r.Text)
	default:
		o.Failure = fmt.Sprintf("a reply of type %q (%q)", byte(r.Type), r.Text)
	}
	o.Return = Never
	return false
}

// Verify reads every key that the recording mentions once more and records what it finds. Only
// after it can a lost write be told from one that nobody has looked for.
func (w *Workload) Verify(ctx context.Context) error {
	keys := make(map[string]bool)
	var order []string
	for _, o := range w.Recorder.Operations() {
		if !keys[o.Key] {
			keys[o.Key] = true
			order = append(order, o.Key)
		}
	}
	c, err := w.Dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to verify: %w", err)
	}
	conn := NewConn(c)
	defer conn.Close()
	defer closeWhenDone(ctx, c)()
	for _, key := range order {
		o := Operation{Client: w.connections(), Kind: Get, Key: key}
		if !w.do(ctx, conn, &o) {
			return fmt.Errorf("verify %s: %s", key, o.Failure)
		}
	}
	return nil
}
