package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/consensus"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
)

// What can become of an operator's order. Errors of a proposal are consensus's.
var (
	ErrNoGuest     = errors.New("there is no such guest")
	ErrExists      = errors.New("there is such a guest already")
	ErrRefused     = errors.New("refused")
	ErrUnprotected = errors.New("the guest is not protected")
	ErrTimeout     = errors.New("not in time")
	ErrUnreachable = errors.New("not reachable")

	errNoGuests = errors.New("a witness runs no guests")
	errEnding   = errors.New("the daemon is ending")
)

func errNoMember(name string) error {
	return fmt.Errorf("%w: %q is no member of the cluster", ErrUnreachable, name)
}
func errOrder(kind string) error { return fmt.Errorf("%w: there is no order %q", ErrRefused, kind) }

const waitEvery = 20 * time.Millisecond

// operate records what an operator wants before it is done; where it can't be recorded it is not done.
func (d *Daemon) operate(ctx context.Context, operator, guest, what string, detail map[string]any) error {
	if detail == nil {
		detail = map[string]any{}
	}
	detail["what"] = what
	if operator == "" {
		operator = "operator"
	}
	if err := d.audit.Append(ctx, audit.Event{Kind: audit.Operator, Guest: guest, Actor: operator, Detail: detail}); err != nil {
		return fmt.Errorf("not done, because the event log can't be written: %w", err)
	}
	return nil
}

// commit proposes a command and waits until this member has applied it.
func (d *Daemon) commit(ctx context.Context, c pact.Command) (pact.Verdict, error) {
	if c.ID == "" {
		c.ID = newID()
	}
	v, err := d.node.Propose(ctx, c)
	if err != nil {
		return v, err
	}
	if err := d.node.WaitApplied(ctx, v.Index); err != nil {
		return v, fmt.Errorf("%w: it is committed, and not applied here yet: %w", ErrTimeout, err)
	}
	if !v.Applied {
		return v, fmt.Errorf("%w: %s", ErrRefused, v.Reason)
	}
	return v, nil
}

func (d *Daemon) lookup(name string) (pact.Assignment, error) {
	a, ok := d.node.Guest(name)
	switch {
	case ok:
		return a, nil
	case !d.node.Current():
		return a, fmt.Errorf("%w: this daemon has not heard from the cluster since its start and does not know of %q", consensus.ErrNoQuorum, name)
	}
	return a, fmt.Errorf("%w: %q", ErrNoGuest, name)
}

// Lookup returns a guest's assignment.
func (d *Daemon) Lookup(name string) (pact.Assignment, error) { return d.lookup(name) }

// CheckCreate says why a guest can't be made.
func (d *Daemon) CheckCreate(name string, spec pact.Spec) error {
	if !pact.ValidGuestName(name) {
		return fmt.Errorf("%w: %q can't be a guest's name: lower-case letters, digits and hyphens, at most 63", ErrRefused, name)
	}
	if err := spec.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	for _, h := range spec.Hosts {
		if m, ok := d.node.Member(h); !ok || m.Role != pki.RoleHost {
			return fmt.Errorf("%w: %q is no host of this cluster", ErrRefused, h)
		}
	}
	if _, ok := d.node.Guest(name); ok {
		return fmt.Errorf("%w: %q", ErrExists, name)
	}
	return nil
}

// Create makes a guest.
func (d *Daemon) Create(ctx context.Context, name string, spec pact.Spec, start bool, operator string) error {
	if err := d.CheckCreate(name, spec); err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "create", map[string]any{"hosts": spec.Hosts, "memory_bytes": spec.MemoryBytes, "cpus": spec.CPUs, "cpu": spec.CPU.Policy, "cpu_model": spec.CPU.Model}); err != nil {
		return err
	}
	desired := pact.DesiredStopped
	if start {
		desired = pact.DesiredRunning
	}
	v, err := d.commit(ctx, pact.Command{Kind: pact.Create, Guest: name, Spec: &spec, Desired: desired, Operator: operator})
	if errors.Is(err, ErrRefused) && v.Assignment.Guest != "" {
		return fmt.Errorf("%w: %q", ErrExists, name)
	}
	return err
}

// StartOptions go with Start.
type StartOptions struct {
	Host     string
	Loss     string
	HostsOff []string
	// Inconsistent extends Loss to a copy whose blocks are of different moments.
	Inconsistent bool
	Operator     string
}

// CheckStart says why an order to start makes no sense.
func (d *Daemon) CheckStart(name string, o StartOptions) error {
	a, err := d.lookup(name)
	if err != nil {
		return err
	}
	if o.Loss == "" && (o.Host != "" || len(o.HostsOff) > 0) {
		return fmt.Errorf("%w: a host is chosen only by an order that accepts a loss; without one the guest starts where its current disk is (%s)", ErrRefused, a.CurrentDisk.Host)
	}
	if o.Loss == "" {
		return nil
	}
	if !slices.Contains(a.Spec.Hosts, o.Host) {
		return fmt.Errorf("%w: name the host whose disk copy is to be used, one of %v", ErrRefused, a.Spec.Hosts)
	}
	if slices.Contains(o.HostsOff, o.Host) {
		return fmt.Errorf("%w: %s can't be off and start the guest", ErrRefused, o.Host)
	}
	for _, p := range []pact.Party{a.Primary, a.Replica} {
		if a.Runs() && !p.IsZero() && !a.IsGone(p) && p.Host != o.Host && !slices.Contains(o.HostsOff, p.Host) {
			return fmt.Errorf("%w: %v may still have the guest in its memory; say that %s is off if it is (and only then)", ErrRefused, p, p.Host)
		}
	}
	return nil
}

// Start wants the guest to run; it does not wait until it does.
func (d *Daemon) Start(ctx context.Context, name string, o StartOptions) error {
	if err := d.CheckStart(name, o); err != nil {
		return err
	}
	detail := map[string]any{}
	if o.Loss != "" {
		detail = map[string]any{"accepted_loss": o.Loss, "host": o.Host, "hosts_off": o.HostsOff, "inconsistent": o.Inconsistent}
	}
	if err := d.operate(ctx, o.Operator, name, "start", detail); err != nil {
		return err
	}
	if o.Loss != "" {
		if err := d.declareOff(ctx, name, o); err != nil {
			return err
		}
	}
	v, err := d.commit(ctx, pact.Command{Kind: pact.SetDesired, Guest: name, Desired: pact.DesiredRunning, Operator: o.Operator})
	if err != nil {
		return err
	}
	if o.Loss == "" {
		return nil
	}
	if err := d.tellHost(ctx, o.Host, order{Kind: "start", Guest: name, Loss: o.Loss, Inconsistent: o.Inconsistent, Operator: orOperator(o.Operator), Index: v.Index}); err != nil {
		return fmt.Errorf("give the order to %s: %w", o.Host, err)
	}
	return nil
}

func orOperator(s string) string {
	if s == "" {
		return "operator"
	}
	return s
}

// declareOff records the operator's word that hosts are off.
func (d *Daemon) declareOff(ctx context.Context, name string, o StartOptions) error {
	a, err := d.lookup(name)
	if err != nil {
		return err
	}
	for _, p := range []pact.Party{a.Primary, a.Replica} {
		if !a.Runs() || p.IsZero() || a.IsGone(p) || !slices.Contains(o.HostsOff, p.Host) {
			continue
		}
		reason, err := d.wordOnPower(ctx, p.Host)
		if err != nil {
			return err
		}
		_, err = d.commit(ctx, pact.Command{
			Kind: pact.Disclaim, Guest: name, Term: a.Term, By: p, Operator: orOperator(o.Operator),
			Reason: reason,
		})
		if err != nil {
			return fmt.Errorf("record that %s is off: %w", p.Host, err)
		}
	}
	return nil
}

// Stop wants the guest to stop: by its power button, and by force after a while (0: the default).
func (d *Daemon) Stop(ctx context.Context, name string, force bool, after time.Duration, operator string) error {
	a, err := d.lookup(name)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "stop", map[string]any{"force": force}); err != nil {
		return err
	}
	v, err := d.commit(ctx, pact.Command{Kind: pact.SetDesired, Guest: name, Desired: pact.DesiredStopped, Operator: operator})
	if err != nil {
		return err
	}
	if !a.Runs() || !force && after == 0 {
		return nil
	}
	if err := d.tellHost(ctx, a.Primary.Host, order{Kind: "stop", Guest: name, Force: force, AfterSeconds: after.Seconds(), Operator: orOperator(operator), Index: v.Index}); err != nil {
		return fmt.Errorf("%w: the guest is meant to stop from now on, but its host %s can't be told how: %w", ErrUnreachable, a.Primary.Host, err)
	}
	return nil
}

// CheckDelete says why a guest can't be deleted.
func (d *Daemon) CheckDelete(name string) (pact.Assignment, error) {
	a, err := d.lookup(name)
	if err == nil && a.Mode != pact.Stopped {
		err = fmt.Errorf("%w: the guest is %s; stop it first", ErrRefused, a.Mode)
	}
	return a, err
}

// Delete forgets a stopped guest.
func (d *Daemon) Delete(ctx context.Context, name, operator string) error {
	a, err := d.CheckDelete(name)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "delete", nil); err != nil {
		return err
	}
	_, err = d.commit(ctx, pact.Command{Kind: pact.Delete, Guest: name, Term: a.Term, Operator: operator})
	return err
}

// CheckSwitchover says why the roles can't be exchanged.
func (d *Daemon) CheckSwitchover(name string) (pact.Assignment, error) {
	a, err := d.lookup(name)
	if err == nil && a.Mode != pact.Protected {
		err = fmt.Errorf("%w: it is %s", ErrUnprotected, a.Mode)
	}
	if err == nil {
		if why := d.keptOut(a.Replica.Host); why != "" {
			err = fmt.Errorf("%w: %s", ErrRefused, why)
		}
	}
	return a, err
}

// Switchover orders the exchange of roles; it does not wait for it.
func (d *Daemon) Switchover(ctx context.Context, name, operator string) error {
	a, err := d.CheckSwitchover(name)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "switchover", map[string]any{"from": a.Primary.Host, "to": a.Replica.Host}); err != nil {
		return err
	}
	if err := d.tellHost(ctx, a.Primary.Host, order{Kind: "switchover", Guest: name, Operator: orOperator(operator)}); err != nil {
		return fmt.Errorf("give the order to %s: %w", a.Primary.Host, err)
	}
	return nil
}

// Protect asks anew for a replica. The daemons do that by themselves; this shortens their pauses.
func (d *Daemon) Protect(ctx context.Context, name, operator string) error {
	a, err := d.lookup(name)
	if err != nil {
		return err
	}
	switch {
	case len(a.Spec.Hosts) < 2:
		return fmt.Errorf("%w: the guest has one host only, %s", ErrRefused, a.Spec.Hosts[0])
	case !a.Runs():
		return fmt.Errorf("%w: the guest is %s; start it first", ErrRefused, a.Mode)
	}
	if a.Mode == pact.Solo {
		if err := d.nobodyFits(a); err != nil {
			return err
		}
	}
	return d.operate(ctx, operator, name, "protect", nil)
}

// Await waits until a guest's assignment is so. ErrTimeout: it is not, and says what it waits for.
func (d *Daemon) Await(ctx context.Context, name string, ok func(pact.Assignment) bool) error {
	for {
		a, err := d.lookup(name)
		if err != nil {
			return err
		}
		if ok(a) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: the guest is %s (term %d, wanted %s)%s", ErrTimeout, a.Mode, a.Term, a.Desired, d.why(name))
		case <-time.After(waitEvery):
		}
	}
}

// why collects what the hosts say keeps a guest from being where it should be.
func (d *Daemon) why(name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var s string
	for host, info := range d.Ask(ctx, time.Second) {
		if n := info.Notes[name]; n != "" {
			s += fmt.Sprintf("; %s: %s", host, n)
		}
	}
	return s
}

// Token issues a join token.
func (d *Daemon) Token(ctx context.Context, name string, role pki.Role, valid time.Duration, operator string) (pki.Token, time.Time, error) {
	if d.issuer == nil {
		return pki.Token{}, time.Time{}, fmt.Errorf("%w: %w; it lies on the host that founded the cluster", ErrRefused, pki.ErrNoIssuer)
	}
	if name == d.name {
		return pki.Token{}, time.Time{}, fmt.Errorf("%w: %s is this host", ErrRefused, name)
	}
	if err := d.operate(ctx, operator, "", "issue a join token", map[string]any{"name": name, "role": string(role), "valid_seconds": valid.Seconds()}); err != nil {
		return pki.Token{}, time.Time{}, err
	}
	return d.issuer.Issue(name, role, d.cfg.ClusterAddress, valid)
}

// CheckRemove says why a member can't be removed.
func (d *Daemon) CheckRemove(name string) (consensus.Member, error) {
	m, ok := d.node.Member(name)
	if !ok {
		return m, errNoMember(name)
	}
	for _, a := range d.node.Guests() {
		if a.Runs() && (a.Primary.Host == name && !a.IsGone(a.Primary) || a.Replica.Host == name && !a.IsGone(a.Replica)) {
			return m, fmt.Errorf("%w: %s holds a copy of guest %s (%s); move it away or stop it first", ErrRefused, name, a.Guest, a.Mode)
		}
	}
	return m, nil
}

// Remove takes a member out of the cluster for good.
func (d *Daemon) Remove(ctx context.Context, name, operator string) error {
	if _, err := d.CheckRemove(name); err != nil {
		return err
	}
	if err := d.operate(ctx, operator, "", "remove a member", map[string]any{"name": name}); err != nil {
		return err
	}
	v, err := d.node.Remove(ctx, name, operator)
	if err == nil && !v.Applied {
		err = fmt.Errorf("%w: %s", ErrRefused, v.Reason)
	}
	return err
}
