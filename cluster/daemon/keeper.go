package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/consensus"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	lookEvery = 250 * time.Millisecond
	// grace is how long a process that is not wanted, or has lost its right, may take to end by itself.
	grace = 15 * time.Second
	// forceAfter is how long a process may take to stop after the order to stop at once.
	forceAfter = 2 * time.Second
	backoffMin = 200 * time.Millisecond
	backoffMax = 30 * time.Second
	// steady is how long a process must have lived for its end not to count as a failure to start. One that
	// was part of a protected pair has shown that it can work, however soon it was struck.
	steady = 20 * time.Second
)

// keeper looks after one guest on this host. Its loop never waits: what takes time is done beside it
// and comes back as an event.
type keeper struct {
	d     *Daemon
	guest string
	log   *zap.Logger

	events chan any
	done   chan struct{}

	mu    sync.Mutex
	procs []*process // living
	// asking are proposals of processes under way, by ID.
	asking map[string]bool
	// note is why the guest is not where it should be, for people.
	note string

	// Of the loop alone:
	cold     map[pact.Party]bool
	models   map[pact.Party]string // the CPU model that a process was started with
	spawned  map[pact.Party]time.Time
	unwanted map[pact.Party]time.Time // since when a process should have ended
	saying   map[string]bool          // what is being proposed, by key
	startID  string                   // of the Start under way: repeated until it is answered
	startFor pact.Command
	started  pact.Term // of the last start that was applied; this host's log may still be on its way there
	spawning bool
	backoff  time.Duration
	notUntil time.Time
	order    *startOrder
	unfit    string // why this host can't run the guest, as the event log has it
	stop     stopping
	last     pact.Assignment
}

// stopping is the way of a guest that should be stopped.
type stopping struct {
	pressed  bool      // the power button
	force    time.Time // when it is forced; zero: the default after pressing
	killed   time.Time // when the order to stop at once went out
	byForce  bool
	operator string
}

// Orders to a keeper.
type (
	orderStart struct{ o startOrder }
	orderStop  struct {
		force    bool
		after    time.Duration
		operator string
	}
	orderSwitchover struct{ answer chan error }
	orderPrimary    struct { // for the process that runs the guest
		o      link.Order
		answer chan error
	}
	orderCopy struct { // for the process that holds this host's copy
		o      link.Order
		answer chan error
	}
	spawnedOne struct {
		p     *process
		cold  bool
		model string // of the CPU
		err   error
	}
	said struct {
		key string
		v   pact.Verdict
		err error
	}
)

func newKeeper(d *Daemon, guest string) *keeper {
	return &keeper{
		d: d, guest: guest, log: d.log.With(zap.String("guest", guest)),
		events: make(chan any, 64), done: make(chan struct{}),
		cold: map[pact.Party]bool{}, models: map[pact.Party]string{}, spawned: map[pact.Party]time.Time{}, unwanted: map[pact.Party]time.Time{},
		saying: map[string]bool{}, asking: map[string]bool{},
	}
}

// tell hands the keeper an event.
func (k *keeper) tell(e any) {
	select {
	case k.events <- e:
	case <-k.done:
	}
}

// nudge makes it look again.
func (k *keeper) nudge() {
	select {
	case k.events <- nil:
	default: // it has enough to look at
	}
}

func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	defer k.off()
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-k.events:
			k.take(ctx, e)
		case <-t.C:
		}
		if k.look(ctx) {
			return
		}
		k.turned()
	}
}

func (k *keeper) take(ctx context.Context, e any) {
	switch e := e.(type) {
	case procReady:
		k.d.forward(k.guest, e.p)
	case procSaid:
	case procEnded:
		k.ended(e.p)
	case spawnedOne:
		k.spawning = false
		if e.err != nil {
			k.failed()
			k.setNote(e.err.Error())
			k.log.Error("start a data-plane process", zap.Error(e.err), zap.Duration("again_in", k.backoff))
			k.d.record(audit.Fault, k.guest, 0, "daemon", map[string]any{"what": "a data-plane process could not be started", "reason": e.err.Error()})
			return
		}
		k.setNote("")
		k.cold[e.p.party] = e.cold
		k.models[e.p.party] = e.model
		k.spawned[e.p.party] = time.Now()
		select {
		case <-e.p.exited: // its end was told before it was known
			k.forget(e.p)
			k.failed()
		default:
			k.mu.Lock()
			k.procs = append(k.procs, e.p)
			k.mu.Unlock()
			if e.p.ready() {
				k.d.forward(k.guest, e.p)
			}
		}
	case said:
		delete(k.saying, e.key)
		k.heard(e)
	case orderStart:
		k.order = &e.o
		k.notUntil = time.Time{}
	case orderStop:
		k.stop.byForce = e.force
		k.stop.operator = e.operator
		switch {
		case e.force:
			k.stop.force = time.Now()
		case e.after > 0:
			k.stop.force = time.Now().Add(e.after)
		}
	case orderSwitchover:
		e.answer <- k.switchover()
	case orderPrimary:
		e.answer <- k.tellPrimary(e.o)
	case orderCopy:
		e.answer <- k.tellCopy(e.o)
	}
}

// living returns the processes of this guest on this host.
func (k *keeper) living() []*process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.procs)
}

func (k *keeper) process(p pact.Party) *process {
	for _, o := range k.living() {
		if o.party == p {
			return o
		}
	}
	return nil
}

func (k *keeper) setNote(s string) {
	k.mu.Lock()
	k.note = s
	k.mu.Unlock()
}

func (k *keeper) getNote() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.note
}

func (k *keeper) forget(p *process) {
	k.mu.Lock()
	k.procs = slices.DeleteFunc(k.procs, func(o *process) bool { return o == p })
	k.mu.Unlock()
	delete(k.cold, p.party)
	delete(k.models, p.party)
	delete(k.spawned, p.party)
	delete(k.unwanted, p.party)
}

func (k *keeper) failed() {
	k.backoff = min(max(2*k.backoff, backoffMin), backoffMax)
	k.notUntil = time.Now().Add(k.backoff)
}

func (k *keeper) ended(p *process) {
	since, known := k.spawned[p.party]
	lived := time.Since(since)
	wanted := k.unwanted[p.party].IsZero()
	k.forget(p)
	bad := p.code != link.ExitDone && p.code != link.ExitReplaced && p.code != link.ExitDiscarded
	switch {
	case !known:
	case lived >= steady || p.wasProtected():
		k.backoff, k.notUntil = 0, time.Time{}
	case bad || wanted:
		k.failed()
	}
	if bad {
		detail := map[string]any{"what": "a data-plane process has ended", "process": p.party.String(), "code": p.code, "log": p.logPath()}
		note := fmt.Sprintf("the last process ended with code %d; %s says why", p.code, p.logPath())
		if words := p.lastWords(); words != "" {
			detail["reason"] = words
			note = fmt.Sprintf("the last process ended: %s (%s)", words, p.logPath())
		}
		k.d.record(audit.Fault, k.guest, k.last.Term, "daemon", detail)
		k.setNote(note)
	}
}

// look compares what is with what should be, and does what can be done at once. It reports that there is
// nothing left to keep.
func (k *keeper) look(ctx context.Context) (done bool) {
	if !k.d.up.Load() || !k.d.node.Current() {
		return false // what this host's log says may be long past
	}
	a, exists := k.d.node.Guest(k.guest)
	k.transition(a, exists)
	v := view{host: k.d.name, guest: a, exists: exists, order: k.order, chosen: exists && k.d.chosenForReplica(a)}
	if exists {
		v.unfit = k.d.Unfit(a, k.d.name)
	}
	k.tellUnfit(v.unfit, a)
	procs := k.living()
	for _, p := range procs {
		model, known := k.models[p.party]
		v.procs = append(v.procs, procView{party: p.party, ready: p.ready(), cold: k.cold[p.party] && (!known || model == a.Spec.CPU.Model)})
	}
	if exists && (a.Mode == pact.Stopped || len(a.Unproven) > 0 || len(a.Gone) > 0 || len(procs) == 0) {
		v.disk = readDisks(k.d.cfg, a)
	}
	p := decide(v)
	k.say(ctx, p.say)
	k.dismiss(p, procs, a, exists)
	switch {
	case p.blocked != "":
		k.setNote(p.blocked)
	case p.spawn:
		k.spawn(ctx, a, p.cold)
	case p.start != nil:
		k.start(ctx, *p.start, v.disk)
	}
	if exists && !p.primary.IsZero() {
		k.tendPrimary(ctx, a, p.primary)
	} else {
		k.stop = stopping{}
	}
	if !exists && len(k.living()) == 0 && !k.spawning && len(k.saying) == 0 {
		k.d.gone(k, k.last)
		return true
	}
	return false
}

// tellUnfit notes in the event log that this host can't run the guest any more, or can again.
func (k *keeper) tellUnfit(why string, a pact.Assignment) {
	if why == k.unfit {
		return
	}
	detail := map[string]any{"what": "this host can run the guest again"}
	if why != "" {
		detail = map[string]any{"what": "this host can't run the guest, nor be its replica", "reason": why}
	}
	k.unfit = why
	k.setNote(why)
	k.d.record(audit.Fault, k.guest, a.Term, "daemon", detail)
}

// transition notes what has changed since the last look, in the event log and for the counters.
func (k *keeper) transition(a pact.Assignment, exists bool) {
	if !exists {
		return
	}
	if a.Term != k.last.Term && k.last.Guest != "" {
		if k.order != nil && a.Runs() {
			k.order = nil // it has been carried out, or the guest runs without it: what it accepts was meant for then
		}
		if k.startID != "" && k.startFor.Term != a.Term {
			k.startID = ""
		}
		detail := map[string]any{"mode": string(a.Mode), "primary": a.Primary.String(), "replica": a.Replica.String(), "from_mode": string(k.last.Mode), "from_term": uint64(k.last.Term)}
		k.d.record(audit.RoleChange, k.guest, a.Term, "daemon", detail)
		if a.Runs() {
			k.setNote("")
		}
	}
	k.last = a
}

// say proposes what only this host can say. Each is proposed once at a time, and again while it is true.
func (k *keeper) say(ctx context.Context, cmds []pact.Command) {
	for _, c := range cmds {
		key := fmt.Sprint(c.Kind, c.By, c.Term, c.NoMarker)
		if k.saying[key] || len(k.saying) > 8 {
			continue
		}
		k.saying[key] = true
		c.ID = newID()
		k.propose(ctx, key, c)
	}
}

func (k *keeper) propose(ctx context.Context, key string, c pact.Command) {
	k.d.begin(func() {
		v, err := k.d.node.Propose(ctx, c)
		if err == nil && !v.Applied {
			k.log.Info("a command was refused", zap.String("kind", string(c.Kind)), zap.Stringer("by", c.By), zap.String("reason", v.Reason))
			pause(ctx, lookEvery) // it would be refused again at once
		}
		k.tell(said{key, v, err})
	})
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

const startKey = "start"

// heard takes the outcome of what was proposed.
func (k *keeper) heard(s said) {
	if s.key != startKey || errors.Is(s.err, consensus.ErrUnknown) {
		return // an unknown outcome: the same command is proposed again
	}
	k.startID = ""
	if s.err == nil && s.v.Applied {
		k.started = s.v.Assignment.Term
	}
	if s.err == nil && !s.v.Applied {
		k.setNote("the start was refused: " + s.v.Reason)
		k.failed()
	}
}

// start proposes the cold start by a process that is ready.
func (k *keeper) start(ctx context.Context, c pact.Command, disk diskView) {
	if k.saying[startKey] || c.Term < k.started || time.Now().Before(k.notUntil) {
		return
	}
	if k.startID == "" || k.startFor.By != c.By || k.startFor.Term != c.Term {
		k.startID, k.startFor = newID(), c
		if p := k.process(c.By); p != nil && c.AcceptLoss != "" && disk.state == "inconsistent" {
			p.order(link.OrderAcceptInconsistent)
		}
	}
	c = k.startFor
	c.ID = k.startID
	k.saying[startKey] = true
	k.propose(ctx, startKey, c)
}

// spawn starts a new process beside the loop.
func (k *keeper) spawn(ctx context.Context, a pact.Assignment, cold bool) {
	if k.spawning || time.Now().Before(k.notUntil) || ctx.Err() != nil {
		return
	}
	k.spawning = true
	k.d.begin(func() {
		p, err := k.d.spawn(a, k.tellFrom)
		k.tell(spawnedOne{p, cold, a.Spec.CPU.Model, err})
	})
}

// dismiss ends processes that are not wanted: by order first, by force after a while.
func (k *keeper) dismiss(p plan, procs []*process, a pact.Assignment, exists bool) {
	for _, o := range procs {
		_, s, _ := o.said()
		abandon, stray := slices.Contains(p.abandon, o.party), slices.Contains(p.stray, o.party)
		// It acts as the primary or drains as the loser, and the guest is not its own any more.
		loser := (s.Role == link.RolePrimary || s.Role == link.RoleLoser) && exists && !(a.Runs() && a.Primary == o.party)
		if !abandon && !loser && !stray {
			delete(k.unwanted, o.party)
			continue
		}
		since, known := k.unwanted[o.party]
		switch {
		case !known:
			k.unwanted[o.party] = time.Now()
			if abandon {
				o.order(link.OrderAbandon)
			}
			if stray && !k.stop.killed.IsZero() {
				o.kill() // it was to stop at once
			}
		case time.Since(since) > grace:
			k.log.Warn("a process that is not wanted does not end; it is killed", zap.Stringer("process", o.party))
			o.kill()
		}
	}
}

// tendPrimary sees to what the primary's host does for it: where its twin is, and whether it should stop.
func (k *keeper) tendPrimary(ctx context.Context, a pact.Assignment, self pact.Party) {
	p := k.process(self)
	if p == nil || !p.ready() {
		return
	}
	p.meet(k.d.peers.twin(a))
	if a.Desired != pact.DesiredStopped {
		k.stop = stopping{}
		return
	}
	now := time.Now()
	if k.stop.force.IsZero() {
		k.stop.force = now.Add(k.d.cfg.Timeouts.Stop.D())
	}
	if !k.stop.pressed && !k.stop.byForce {
		k.stop.pressed = true
		k.log.Info("power button", zap.Time("forced_at", k.stop.force))
		p.order(link.OrderPowerButton)
	}
	switch {
	case now.Before(k.stop.force):
	case k.stop.killed.IsZero():
		k.stop.killed = now
		k.d.record(audit.Operator, k.guest, a.Term, orDaemon(k.stop.operator), map[string]any{"what": "the guest is stopped by force"})
		p.order(link.OrderKill)
	case now.Sub(k.stop.killed) > forceAfter:
		// The process does not do it: say it for it, so that no replica takes over, and end the process as
		// soon as nobody can take it for a fault (dismiss).
		k.say(ctx, []pact.Command{{Kind: pact.Stop, Guest: a.Guest, Term: a.Term, By: self, Operator: k.stop.operator, Reason: "stopped by force"}})
	}
}

func (k *keeper) switchover() error {
	a, exists := k.d.node.Guest(k.guest)
	if !exists || a.Mode != pact.Protected || a.Primary.Host != k.d.name {
		return errors.New("the guest is not protected with its primary on this host")
	}
	p := k.process(a.Primary)
	if p == nil || !p.ready() {
		return errors.New("the primary's process can't be reached")
	}
	p.order(link.OrderSwitchover)
	return nil
}

// tellFrom takes what a process tells. A proposal does not wait for the loop: a takeover may hang on it.
func (k *keeper) tellFrom(e any) {
	if e, ok := e.(procAsks); ok {
		k.ask(e.p, e.cmd)
		return
	}
	k.tell(e)
}

// ask proposes what a process asks for, and gives it the answer.
func (k *keeper) ask(p *process, c pact.Command) {
	if why := mayAsk(p, c); why != "" {
		k.log.Error("a process asks for what it may not", zap.Stringer("process", p.party), zap.String("kind", string(c.Kind)), zap.String("reason", why))
		p.answer(link.Answer{ID: c.ID, Unknown: why})
		return
	}
	if !k.d.up.Load() {
		p.answer(link.Answer{ID: c.ID, Unknown: "the daemon is starting"})
		return
	}
	k.mu.Lock()
	if k.asking[c.ID] || len(k.asking) >= askingMax {
		k.mu.Unlock()
		return // its answer is on the way, or it will ask again
	}
	k.asking[c.ID] = true
	k.mu.Unlock()
	ok := k.d.begin(func() {
		begun := time.Now()
		v, err := k.d.node.Propose(k.d.ctx, c)
		if err != nil {
			p.answer(link.Answer{ID: c.ID, Unknown: err.Error()})
		} else {
			p.answer(link.Answer{ID: c.ID, Verdict: &v})
		}
		k.log.Info("proposal", zap.String("kind", string(c.Kind)), zap.Stringer("by", c.By), zap.Uint64("term", uint64(c.Term)),
			zap.Bool("applied", v.Applied), zap.String("refused", v.Reason), zap.Duration("took", time.Since(begun)), zap.Error(err))
		k.mu.Lock()
		delete(k.asking, c.ID)
		k.mu.Unlock()
		k.nudge()
	})
	if !ok {
		p.answer(link.Answer{ID: c.ID, Unknown: "the daemon is ending"})
	}
}

const askingMax = 64

// mayAsk: a process speaks for itself, of its own guest, about its own role.
func mayAsk(p *process, c pact.Command) string {
	switch {
	case c.Guest != p.guest:
		return fmt.Sprintf("guest %q is not its own", c.Guest)
	case c.By != p.party:
		return fmt.Sprintf("%v is not itself", c.By)
	case c.ID == "":
		return "the proposal has no ID"
	case c.Operator != "" || c.AcceptLoss != "" || c.NoMarker:
		return "that is not its to say"
	}
	switch c.Kind {
	case pact.Stop, pact.Protect, pact.Promote, pact.GoSolo, pact.Surrender, pact.Switchover, pact.Cancel, pact.Mark, pact.Confirm:
		return ""
	}
	return fmt.Sprintf("%q is not a process's to propose", c.Kind)
}

func (p *process) logPath() string {
	return p.path[:len(p.path)-len(configSuffix)] + processSuffix
}

func orDaemon(operator string) string {
	if operator == "" {
		return "daemon"
	}
	return operator
}

func newID() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func newIncarnation() pact.Incarnation {
	for {
		var b [8]byte
		rand.Read(b[:])
		if n := binary.LittleEndian.Uint64(b[:]); n != 0 {
			return pact.Incarnation(n)
		}
	}
}

// spawn prepares this host for a guest and starts a process.
func (d *Daemon) spawn(a pact.Assignment, tell func(any)) (*process, error) {
	if err := prepareDir(d.cfg, a); err != nil {
		return nil, err
	}
	taps, err := prepareTaps(d.cfg, a)
	if err != nil {
		return nil, err
	}
	dir := d.cfg.GuestDir(a.Guest)
	t := d.cfg.Timeouts
	c := link.ProcessConfig{
		Guest: a.Guest, Party: pact.Party{Host: d.name, Incarnation: newIncarnation()}, Spec: a.Spec,
		Journal: journalPath(dir), Taps: taps,
		StreamListen: net.JoinHostPort(d.cfg.ReplicationAddress, "0"),
		PKI:          d.cfg.PKIDir(), EventLog: d.cfg.EventLog(), ConsoleLog: consolePath(dir),
		Timeouts: link.ProcessTimeouts{Silence: t.Silence.D(), Heartbeat: t.StreamHeartbeat.D()},
		Cluster:  d.ClusterID(),
	}
	for i := range a.Spec.AllDisks() {
		c.Disks = append(c.Disks, diskPath(dir, a.Spec, i))
	}
	c.Firmware = link.FirmwareImage(d.cfg.Firmware)
	if err := d.confiner.confine(&c); err != nil {
		return nil, err
	}
	return spawn(d.program(), c, d.cfg.ProcessDir(), d.log, tell)
}
