package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// Damage is a memory error to be injected into a copy of a guest.
type Damage struct {
	link.Damage
	Replica bool // into the replica's copy
}

// CheckDamage says why a memory error can't be injected.
func (d *Daemon) CheckDamage(name string, m Damage) (pact.Assignment, error) {
	a, err := d.running(name)
	if err != nil {
		return a, err
	}
	pages := int((a.Spec.MemoryBytes + link.PageBytes - 1) / link.PageBytes)
	switch {
	case m.Page < link.AnyPage || m.Page >= pages:
		err = fmt.Errorf("%w: page %d: the guest has pages 0 to %d", ErrRefused, m.Page, pages-1)
	case m.State != "" && m.State != link.PageClean && m.State != link.PageDirty:
		err = fmt.Errorf("%w: a page is %s or %s, not %q", ErrRefused, link.PageClean, link.PageDirty, m.State)
	case m.Replica && a.Mode != pact.Protected:
		err = fmt.Errorf("%w: there is no replica (%s)", ErrRefused, a.Mode)
	case m.Replica && (m.State != "" || m.Quiet):
		err = fmt.Errorf("%w: a replica's pages are neither clean nor dirty, and no guest touches them", ErrRefused)
	}
	return a, err
}

// Inject has a memory error happen. What comes of it shows in the guest's status and in the event log.
func (d *Daemon) Inject(ctx context.Context, name string, m Damage, operator string) error {
	a, err := d.CheckDamage(name, m)
	if err != nil {
		return err
	}
	host := a.Primary.Host
	if m.Replica {
		host = a.Replica.Host
	}
	detail := map[string]any{"fault": "memory", "host": host, "page": m.Page, "state": m.State, "quiet": m.Quiet, "test_guest": a.Spec.Test}
	if err := d.operate(ctx, operator, name, "inject-fault", detail); err != nil {
		return err
	}
	if err := d.tellHost(ctx, host, order{Kind: link.OrderDamage, Guest: name, Damage: &m.Damage, Operator: orOperator(operator)}); err != nil {
		return fmt.Errorf("give the order to %s: %w", host, err)
	}
	return nil
}

// tellCopy passes an order on to the process that holds this host's copy of the guest.
func (k *keeper) tellCopy(o link.Order) error {
	a, exists := k.d.node.Guest(k.guest)
	if !exists || !a.Runs() {
		return errors.New("the guest does not run")
	}
	party := a.Primary
	if a.Primary.Host != k.d.name {
		party = a.Replica
	}
	if party.Host != k.d.name {
		return errors.New("this host holds no copy of the guest")
	}
	p := k.process(party)
	if p == nil || !p.ready() {
		return errors.New("the process that holds the copy can't be reached")
	}
	p.give(o)
	return nil
}
