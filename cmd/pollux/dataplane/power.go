package dataplane

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/fencing"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// A guest that resets over and over must not take the pair's time, nor fill the event log: after the first few
// resets in a row each waits twice as long as the one before.
const (
	resetsFree    = 3
	resetPauseMin = 100 * time.Millisecond
	resetPauseMax = 10 * time.Second
	resetsInARow  = 30 * time.Second // a guest that has run for so long has booted
)

// resetPace says how long a reset waits.
type resetPace struct {
	last time.Duration // when the last one was due
	row  int           // resets in a row
}

func (r *resetPace) next(now time.Duration) time.Duration {
	if r.row > 0 && now-r.last > resetsInARow {
		r.row = 0
	}
	r.row++
	pause := time.Duration(0)
	if n := r.row - resetsFree; n > 0 {
		pause = min(resetPauseMin<<min(n-1, 20), resetPauseMax)
	}
	r.last = now + pause
	return pause
}

// life is what becomes of the guest as its policy, or an operator, will have it. It is this process's for as
// long as it is the primary; what it forgets is part of the machine's state, and told again by a machine that
// has been restored.
type life struct {
	mu   sync.Mutex
	turn uint64              // rises with each event and order: what waits under an older one is void
	kept platform.PowerEvent // the guest stands still after it, until somebody orders otherwise; 0: it does not
	pace resetPace
	dump *link.Dump
}

// begin voids all that waits, and returns what stands for the event or order that begins.
func (l *life) begin(kept platform.PowerEvent) (turn uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn++
	l.kept = kept
	return l.turn
}

func (l *life) is(turn uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turn == turn
}

// died says what the event is in words.
func died(ev platform.PowerEvent) string {
	switch ev {
	case platform.Panicked:
		return "the guest's kernel has panicked"
	case platform.WatchdogExpired:
		return "the guest's watchdog has expired"
	}
	return "the guest has crashed"
}

// power takes what the guest asked of its platform, or what became of it: one event of the pair's, never a
// fault of this host. The guest stands still meanwhile.
func (p *process) power(ev platform.PowerEvent) {
	if !ev.Died() {
		if ev == platform.Reset {
			p.reset(p.life.begin(0), "the guest asked for it", true)
			return
		}
		p.life.begin(0)
		p.stopGuest("the guest asked for " + ev.String())
		return
	}
	switch why := died(ev); p.cfg.Spec.OnPanic {
	case pact.PanicStop:
		p.life.begin(0)
		p.stopGuest(why)
	case pact.PanicKeep:
		p.life.begin(ev)
		p.events.Note(audit.GuestKept, map[string]any{"event": ev.String(), "reason": why})
		p.change("")
	default:
		p.reset(p.life.begin(0), why, true)
	}
}

func (p *process) stopGuest(why string) {
	p.events.Note(audit.GuestStop, map[string]any{"reason": why})
	if e := p.currentEngine(); e != nil {
		e.PowerOff(why)
	}
}

// reset has the guest boot again, after a pause if paced is set and it comes too often.
func (p *process) reset(turn uint64, why string, paced bool) {
	detail := map[string]any{"reason": why}
	var pause time.Duration
	if paced {
		p.life.mu.Lock()
		pause = p.life.pace.next(fencing.Boot())
		p.life.mu.Unlock()
	}
	if pause > 0 {
		detail["waits_seconds"] = pause.Seconds()
	}
	p.events.Note(audit.GuestReset, detail)
	p.watchers.Go(func() {
		select {
		case <-time.After(pause):
		case <-p.stopped:
			return
		}
		e := p.currentEngine()
		if e == nil || !p.life.is(turn) {
			return
		}
		began := time.Now()
		switch err := p.machine.Reset(e.EndEpoch); {
		case err == nil:
			p.log.Info("the guest boots again", zap.String("why", why), zap.Duration("took", time.Since(began)))
		case errors.Is(err, vmm.ErrStopped): // whoever goes on with the guest begins anew
		case errors.Is(err, vmm.ErrPoweredOff):
			p.log.Info("no reset", zap.Error(err))
		default:
			p.events.Note(audit.Fault, map[string]any{"what": "reset", "reason": err.Error()})
			e.Fault(err.Error())
		}
	})
}

// hostFault takes what this host can't do for the guest any more: a fault of its own.
func (p *process) hostFault(err error) {
	p.events.Note(audit.Fault, map[string]any{"what": "kvm", "reason": err.Error()})
	if e := p.currentEngine(); e != nil {
		e.Fault(err.Error())
	}
}

// powerButton presses the guest's; one that stands still for good is stopped by it.
func (p *process) powerButton() {
	p.life.mu.Lock()
	kept := p.life.kept
	p.life.mu.Unlock()
	if kept == 0 {
		p.machine.PowerButton()
		return
	}
	p.life.begin(kept)
	p.stopGuest(died(kept) + ", and an operator has stopped it")
}

// noDump tells of a dump that was ordered of a guest that does not run here.
func (p *process) noDump(o link.Order) {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if o.Kind == link.OrderDump && (p.life.dump == nil || p.life.dump.Done) {
		p.life.dump = &link.Dump{Path: o.Path, Done: true, Error: errNotHere.Error()}
	}
}

// writeDump writes the memory of a guest that stands still to a file of this host: f, which the daemon has made at
// path, or one that is made now.
func (p *process) writeDump(path string, f *os.File) {
	p.life.mu.Lock()
	if d := p.life.dump; d != nil && !d.Done {
		p.life.mu.Unlock()
		if f != nil {
			f.Close()
		}
		(*host)(p).Refused("a dump is being written to " + d.Path)
		return
	}
	p.life.dump = &link.Dump{Path: path}
	p.life.mu.Unlock()
	p.watchers.Go(func() {
		bytes, err := p.dumpTo(path, f)
		done := &link.Dump{Path: path, Done: true, Bytes: bytes}
		detail := map[string]any{"path": path, "bytes": bytes}
		if err != nil {
			done.Error = err.Error()
			detail["error"] = done.Error
			p.log.Warn("no dump", zap.String("path", path), zap.Error(err))
		}
		p.events.Note(audit.GuestDump, detail)
		p.life.mu.Lock()
		p.life.dump = done
		p.life.mu.Unlock()
		p.change("")
	})
}

func (p *process) dumpTo(path string, f *os.File) (bytes int64, err error) {
	remove := func(string) error { return nil } // who has made the file removes it
	if f == nil {
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return 0, err
		}
		remove = os.Remove
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
		if err != nil {
			bytes, err = 0, errors.Join(fmt.Errorf("dump the guest: %w", err), remove(path))
		}
	}()
	if err := p.machine.Dump(f); err != nil {
		return 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// tellLife adds to the status what an operator has to know.
func (p *process) tellLife(s *link.Status) {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	s.Dump = p.life.dump
	if p.life.kept != 0 && s.Role == link.RolePrimary {
		s.Kept = p.life.kept.String()
		if s.Detail == "" {
			s.Detail = died(p.life.kept) + ", kept for a dump"
		}
	}
}
