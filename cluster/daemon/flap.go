package daemon

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/fencing"
)

// history follows the log's entries for what assignments alone don't tell: which host has lost a guest by a fault.
// Every member counts, a witness too; who counts enough proposes that the host is kept out, and the log decides.
type history struct {
	clock fencing.Clock

	mu   sync.Mutex
	last map[string]pact.Assignment // by guest
	flap *fencing.Flap              // nil: nobody is kept out for that
	out  map[string]pact.Out        // as they were last told of
}

func newHistory(c config.Flapping, clock fencing.Clock) *history {
	h := &history{clock: clock, last: map[string]pact.Assignment{}, out: map[string]pact.Out{}}
	if !c.Off {
		h.flap = fencing.NewFlap(c.Faults, c.Within.D())
	}
	return h
}

// changed takes the next assignment of a guest, as entries are applied, and returns the one before. It names the
// host that has just lost the guest by a fault, and says whether that was one fault too many. live: the entry is of
// now, and not of a past that this member is catching up with.
func (h *history) changed(a pact.Assignment, exists, live bool) (was pact.Assignment, lost string, flapping bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was, known := h.last[a.Guest]
	switch {
	case !exists:
		delete(h.last, a.Guest)
		return was, "", false
	case known && was.Created == a.Created && a.Term < was.Term:
		return was, "", false // told once more, and late
	}
	h.last[a.Guest] = a
	if !known || !live {
		return was, "", false
	}
	if lost = pact.LostBy(was, a); lost == "" || h.flap == nil {
		return was, lost, false
	}
	return was, lost, h.flap.Fault(lost, h.clock())
}

// outNow compares who is kept out with what was so the last time.
func (h *history) outNow(now []pact.Out) (come, gone []pact.Out) {
	h.mu.Lock()
	defer h.mu.Unlock()
	left := h.out
	h.out = make(map[string]pact.Out, len(now))
	for _, o := range now {
		key := o.Host + " " + string(o.Kind)
		if was, known := left[key]; !known || was.Since != o.Since {
			come = append(come, o)
		}
		delete(left, key)
		h.out[key] = o
		if o.Kind == pact.OutFlapping && h.flap != nil {
			h.flap.Forget(o.Host) // it begins anew when an operator has reset it
		}
	}
	for _, o := range left {
		gone = append(gone, o)
	}
	return come, gone
}

// follow looks at an applied entry for faults. It does not block.
func (d *Daemon) follow(a pact.Assignment, exists bool) {
	was, lost, flapping := d.history.changed(a, exists, d.node.Current())
	if lost == "" {
		return
	}
	if a.Primary.Host == d.name && !was.IsGone(was.Primary) {
		d.fencer.lost(d.ctx, loser{guest: a.Guest, term: a.Term, party: was.Primary})
	}
	if flapping {
		d.begin(func() { d.keepOut(lost) })
	}
}

func (d *Daemon) keepOut(host string) {
	f := d.cfg.Flapping
	reason := fmt.Sprintf("it has lost guests by %d faults within %v", f.Faults, f.Within)
	c := pact.Command{Kind: pact.KeepOut, ID: newID(), Out: pact.OutFlapping, By: pact.Party{Host: d.name}, Other: pact.Party{Host: host}, Reason: reason}
	for {
		_, err := d.node.Propose(d.ctx, c)
		if err == nil || !sleep(d.ctx, lookEvery) {
			return
		}
		d.log.Warn("propose to keep out a host that fails again and again", zap.String("host", host), zap.Error(err))
	}
}

const outEvery = time.Second

// tellOut notes in the event log who is kept out, and who not any more.
func (d *Daemon) tellOut() {
	for sleep(d.ctx, outEvery) {
		come, gone := d.history.outNow(d.node.Out())
		for _, o := range come {
			d.log.Warn("a host is kept out", zap.String("host", o.Host), zap.String("why", string(o.Kind)), zap.String("by", o.By), zap.String("reason", o.Reason))
			d.record(audit.Membership, "", 0, "daemon", map[string]any{"member": o.Host, "state": "kept out: " + string(o.Kind), "by": o.By, "reason": o.Reason})
		}
		for _, o := range gone {
			d.log.Info("a host is not kept out any more", zap.String("host", o.Host), zap.String("why", string(o.Kind)))
			d.record(audit.Membership, "", 0, "daemon", map[string]any{"member": o.Host, "state": "not kept out any more: " + string(o.Kind)})
		}
		if len(come)+len(gone) > 0 {
			d.nudgeAll()
		}
	}
}

// keptOut says why no replica is placed on a host; "" if one may be.
func (d *Daemon) keptOut(host string) string {
	for _, o := range d.node.Out() {
		if o.Host == host {
			return OutText(o)
		}
	}
	return ""
}

// OutText says it for people.
func OutText(o pact.Out) string {
	if o.Kind == pact.OutFencing {
		return fmt.Sprintf("%s is kept out while %s fences it (%s); where that one is gone, pollux member reset %s ends it", o.Host, o.By, o.Reason, o.Host)
	}
	return fmt.Sprintf("%s is kept out: %s; repair it, then: pollux member reset %s", o.Host, o.Reason, o.Host)
}

// noReplica says why no replica of a guest is wanted on a host; "" if one may be.
func (d *Daemon) noReplica(a pact.Assignment, host string) string {
	return cmp.Or(d.Unfit(a, host), d.keptOut(host))
}

// CheckReadmit says why a host needs no reset.
func (d *Daemon) CheckReadmit(name string) ([]pact.Out, error) {
	var all []pact.Out
	for _, o := range d.node.Out() {
		if o.Host == name {
			all = append(all, o)
		}
	}
	if len(all) > 0 {
		return all, nil
	}
	if _, ok := d.node.Member(name); !ok {
		return nil, errNoMember(name)
	}
	return nil, fmt.Errorf("%w: %s is not kept out", ErrRefused, name)
}

// Readmit ends it that a host is kept out, whatever for.
func (d *Daemon) Readmit(ctx context.Context, name, operator string) error {
	all, err := d.CheckReadmit(name)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, "", "reset a member that is kept out", map[string]any{"name": name}); err != nil {
		return err
	}
	for _, o := range all {
		if _, err := d.commit(ctx, pact.Command{Kind: pact.Readmit, Out: o.Kind, By: pact.Party{Host: d.name}, Other: pact.Party{Host: name}, Operator: orOperator(operator)}); err != nil {
			return err
		}
	}
	return nil
}
