package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	leaveAgain = 3 * time.Second // a switchover that has not come about is ordered again
	leaveLook  = 20 * time.Millisecond
	leaveAsks  = 3
)

// Leave gives the guests that this host runs to their replicas before the daemon ends, as the configuration says,
// and within its time. What can't be given away stays: its process goes on without the daemon.
func (d *Daemon) Leave() {
	if c := d.cfg.Shutdown; !d.isHost() || c.Guests != config.ShutdownSwitchover || !d.node.Current() {
		return
	}
	d.leaving.Store(true)
	ctx, cancel := context.WithTimeout(d.ctx, d.cfg.Shutdown.Within.D())
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range d.node.Guests() {
		if !a.Runs() || a.Primary.Host != d.name {
			continue
		}
		wg.Go(func() {
			what := "given away before the daemon's end"
			if err := d.giveAway(ctx, a); err != nil {
				what = "stays here after the daemon's end: " + err.Error()
			}
			d.log.Info(what, zap.String("guest", a.Guest))
			d.record(audit.RoleChange, a.Guest, a.Term, "daemon", map[string]any{"what": what})
		})
	}
	wg.Wait()
}

// giveAway switches one guest over.
func (d *Daemon) giveAway(ctx context.Context, a pact.Assignment) error {
	for {
		if why := d.notTo(ctx, a); why != "" {
			return errors.New(why)
		}
		if err := d.tellHost(ctx, d.name, order{Kind: "switchover", Guest: a.Guest, Operator: "daemon"}); err != nil {
			d.log.Info("order a switchover before the end", zap.String("guest", a.Guest), zap.Error(err))
		}
		for ordered := time.Now(); time.Since(ordered) < leaveAgain; {
			is, exists := d.node.Guest(a.Guest)
			if !exists || !is.Runs() || is.Primary.Host != d.name {
				d.settle(ctx, a.Primary)
				return nil
			}
			if !sleep(ctx, leaveLook) {
				return fmt.Errorf("its switchover was not done within %v", d.cfg.Shutdown.Within)
			}
			a = is
		}
	}
}

// notTo says why a guest can't go to its replica. Two hosts that are both about to end don't pass their guests to
// and fro.
func (d *Daemon) notTo(ctx context.Context, a pact.Assignment) string {
	if a.Mode != pact.Protected {
		return fmt.Sprintf("it is %s", a.Mode)
	}
	if why := d.keptOut(a.Replica.Host); why != "" {
		return why
	}
	var info HostInfo
	var err error
	for range leaveAsks { // a connection that was kept may have died unnoticed
		if info, err = d.askHost(ctx, a.Replica.Host, pollTimeout); err == nil || !sleep(ctx, leaveLook) {
			break
		}
	}
	switch {
	case err != nil:
		return fmt.Sprintf("the daemon of its replica's host %s does not answer (%v)", a.Replica.Host, err)
	case info.Leaving:
		return fmt.Sprintf("its replica's host %s is ending too", a.Replica.Host)
	}
	return ""
}

// settle waits until a process that was the primary has taken note: it hears it from this daemon alone.
func (d *Daemon) settle(ctx context.Context, p pact.Party) {
	for _, k := range d.allKeepers() {
		o := k.process(p)
		for o != nil && k.process(p) == o {
			if _, s, said := o.said(); said && s.Role != link.RolePrimary || !sleep(ctx, leaveLook) {
				return
			}
		}
	}
}
