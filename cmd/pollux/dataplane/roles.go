package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/fencing"
	"github.com/pollux-ha/pollux/lockstep"
	primary "github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/replica"
	"github.com/pollux-ha/pollux/replica/core"
	"github.com/pollux-ha/pollux/replica/mark"
)

// roles is the process as its replica's side sees it.
type roles process

var _ replica.Handler = (*roles)(nil)

func (r *roles) Propose(c pact.Command) {
	p := (*process)(r)
	if c.Kind == pact.Promote {
		p.mu.Lock()
		p.takeover.asked(c.ID)
		p.mu.Unlock()
	}
	p.control.say(link.Message{Proposal: &c})
	p.change("")
}

func (r *roles) Heard(t pact.Term) {
	// Called with the Side's lock held; the engine may take its time.
	if e := (*process)(r).currentEngine(); e != nil {
		go e.Word(t)
	}
}

func (r *roles) Note(kind, text string) {
	p := (*process)(r)
	p.log.Info(kind, zap.String("text", text))
	p.events.Note(audit.RoleChange, map[string]any{"what": kind, "reason": text})
	p.change(text)
}

func (r *roles) Log(kind, text string) error {
	return r.events.Log(audit.DiskMark, map[string]any{"what": kind, "reason": text})
}

// ColdStart boots the guest from this host's disks. The Start entry is the permission; local marks
// only forbid.
func (r *roles) ColdStart(a pact.Assignment, decided time.Duration) error {
	p := (*process)(r)
	m, err := p.store.Mark()
	if err != nil {
		return err
	}
	p.mu.Lock()
	order := p.order
	p.mu.Unlock()
	if d := a.CurrentDisk; order == "" && (d.Host != p.cfg.Party.Host || d.Term == m.Term) {
		// Raft has found this very copy to be the current one, or has committed an operator's order to
		// start from one that is not; it applies no other Start. A disk that was being overwritten
		// needs an order of its own all the same.
		order = mark.Outdated
	}
	if err := m.MayStart(order); err != nil {
		return fmt.Errorf("cold start refused: %w", err)
	}
	detail := map[string]any{"disk": string(m.State), "marker_term": uint64(m.Term)}
	if m.State == mark.Outdated || m.State == mark.Inconsistent {
		detail["accepted"] = string(order)
	}
	if err := p.events.Log(audit.GuestStart, detail); err != nil {
		return fmt.Errorf("cold start refused, the event log can't be written: %w", err)
	}
	if err := p.store.Flush(); err != nil {
		return err
	}
	p.machine.SetGeneration(generation(p.cfg.Cluster, a))
	if err := p.machine.Boot(); err != nil {
		return err
	}
	return p.begin(lockstep.Start{Assignment: a, Since: decided}, nil)
}

// Activate makes the replica's image run.
func (r *roles) Activate(a pact.Assignment, i *replica.Image) error {
	p := (*process)(r)
	p.mu.Lock()
	p.takeover.decided()
	p.mu.Unlock()
	flushed := make(chan error, 1)
	go func() { flushed <- p.store.Flush() }()
	err := p.machine.LoadState(i.State)
	if err = errors.Join(err, <-flushed); err != nil {
		return err
	}
	kind := audit.Takeover
	if a.Mode == pact.Protected {
		kind = audit.Switchover
	}
	p.machine.AdvanceClock(fencing.Boot() - i.Arrived)
	if err := p.begin(lockstep.Start{Assignment: a, Last: i.Epoch, Digest: i.Digest, Frames: i.Resend, Since: i.Decided}, i); err != nil {
		return err
	}
	p.mu.Lock()
	p.takeover.activated()
	p.mu.Unlock()
	p.events.Note(kind, map[string]any{"epoch": uint64(i.Epoch), "mode": string(a.Mode)})
	return nil
}

// begin makes this process the primary and runs the machine, which is loaded. i is nil at a cold start.
func (p *process) begin(s lockstep.Start, i *replica.Image) error {
	t := p.cfg.Timeouts
	var disks []lockstep.Disk
	for _, d := range p.store.Disks() {
		disks = append(disks, d)
	}
	e, err := lockstep.New(lockstep.Config{
		Guest: p.cfg.Guest, Self: p.cfg.Party, Machine: p.machine, Host: (*host)(p), Dial: p.dial, Disks: disks, Boot: bootDigest(p.config),
		Console: p.writeConsole, Agent: p.agentSaid, MACs: p.machine.MACs, Log: p.log.Named("lockstep"),
		Heartbeat: t.Heartbeat, Silence: t.Silence, MaxEpoch: t.MaxEpoch, AskAgain: t.AskAgain, CachePages: p.cfg.CachePages,
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.engine, p.last = e, s.Last
	p.life.begin(0)
	peer, applied := p.peer, p.applied
	p.mu.Unlock()
	p.outlet.engine.Store(e)
	e.SetPeer(peer)
	if err := e.Begin(s); err != nil {
		return err
	}
	if applied.Term >= s.Assignment.Term {
		e.Assigned(applied) // it may have gone on meanwhile
	}
	if e.Over() {
		return nil // it has gone on, and somebody else runs the guest
	}
	if i != nil {
		e.Announce()
	}
	if err := p.machine.Start(); err != nil {
		return err
	}
	if i != nil {
		for _, f := range i.Received {
			p.machine.Inject(int(f.NIC), f.Data)
		}
	}
	return nil
}

// TakeReplica turns the primary that this process was into its twin's replica, after a switchover.
func (r *roles) TakeReplica(a pact.Assignment) (*replica.Image, error) {
	p := (*process)(r)
	e := p.currentEngine()
	if e == nil {
		return nil, errNotExchanged
	}
	<-e.Ended() // the vCPUs have stopped, the disks' workers have drained
	image, err := final(e)
	if err != nil {
		return nil, err
	}
	p.outlet.engine.Store(nil)
	p.life.begin(0)
	p.mu.Lock()
	p.engine = nil
	p.mu.Unlock()
	e.Close()
	if err := p.store.BeginJournal(); err != nil {
		return nil, err
	}
	p.events.Note(audit.Switchover, map[string]any{"epoch": uint64(image.Epoch), "to": a.Primary.String(), "role": "replica"})
	p.change("")
	return image, nil
}

func (r *roles) End(how core.Ending, why string) {
	p := (*process)(r)
	code := map[core.Ending]int{
		core.EndDone: link.ExitDone, core.EndReplaced: link.ExitReplaced,
		core.EndDiscarded: link.ExitDiscarded, core.EndFailed: link.ExitFailed,
	}[how]
	p.events.Note(audit.RoleChange, map[string]any{"to": "ended", "how": string(how), "reason": why})
	p.change(why)
	if e := p.currentEngine(); e != nil && how != core.EndFailed {
		<-e.Ended() // it says goodbye on its stream first
	}
	p.end(code, why)
}

// host is the process as its primary's side sees it.
type host process

var _ lockstep.Host = (*host)(nil)

func (h *host) Propose(c pact.Command) {
	(*process)(h).control.say(link.Message{Proposal: &c})
}

func (h *host) WriteMarker(t pact.Term) {
	p := (*process)(h)
	p.mu.Lock()
	e, epoch := p.engine, p.last
	p.mu.Unlock()
	go func() {
		if err := p.store.WriteMarker(t, epoch); err != nil {
			p.log.Error("write the disk marker", zap.Error(err))
			return // the store has failed, and says so
		}
		p.events.Note(audit.DiskMark, map[string]any{"state": "current", "marker_term": uint64(t), "epoch": uint64(epoch)})
		e.MarkerDurable(t)
	}()
}

func (h *host) Refused(why string) {
	p := (*process)(h)
	p.log.Info("an order is refused", zap.String("why", why))
	p.events.Note(audit.Operator, map[string]any{"outcome": "refused", "reason": why})
	p.change(why)
}

func (h *host) Ended(o primary.Outcome, a pact.Assignment, why string) {
	p := (*process)(h)
	p.log.Info("the primary's side has ended", zap.Stringer("outcome", o), zap.Uint64("term", uint64(a.Term)), zap.String("why", why))
	p.change(why)
	if o == primary.Failed || o == primary.Lost && a.Primary == p.cfg.Party {
		// The replica's side knows of no other primary that would end this process.
		go p.side.Step(core.Failed{Err: why})
	}
}

func (h *host) Changed() { (*process)(h).change("") }

// dial opens the checkpoint stream to the twin.
func (p *process) dial(ctx context.Context, peer link.Peer) (net.Conn, error) {
	if p.identity == nil {
		return nil, errors.New("this process has no certificate: no checkpoint stream can be opened")
	}
	d := tls.Dialer{Config: p.identity.ClientConfig(peer.Party.Host, pki.ALPNStream)}
	conn, err := d.DialContext(ctx, "tcp", peer.Address)
	if t, ok := conn.(*tls.Conn); ok {
		p.identity.CutOff(t)
	}
	return conn, err
}

func (p *process) writeConsole(b []byte) {
	if p.console == nil {
		return
	}
	if _, err := p.console.Write(b); err != nil {
		p.log.Warn("write the console log", zap.Error(err))
	}
}

// takeover keeps the phases of the last one.
type takeover struct {
	id                     string
	ask, decide, run       time.Duration
	decideTook, activation time.Duration
}

func (t *takeover) asked(id string) {
	if t.id != id {
		*t = takeover{id: id, ask: fencing.Boot()}
	}
}

func (t *takeover) decided() {
	t.decide = fencing.Boot()
	if t.ask != 0 {
		t.decideTook = t.decide - t.ask
	}
}

func (t *takeover) activated() {
	t.run = fencing.Boot()
	t.activation = t.run - t.decide
}

func (t *takeover) timings(into map[string]link.Summary) {
	one := func(name string, d time.Duration) {
		if d > 0 {
			us := float64(d) / float64(time.Microsecond)
			into[name] = link.Summary{P50: us, P90: us, P99: us, Max: us, Samples: 1}
		}
	}
	one("decide", t.decideTook)
	one("activate", t.activation)
}
