package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/cpu"
)

// HostCPU finds out what processor this machine can give to guests. A daemon without one tells nothing of its
// CPU, and makes guests whose CPU is that of whatever host they run on.
type HostCPU func() (cpu.Host, error)

// probeCPU asks what this host's processor is, for the roster. A host that can't say it is a member
// nevertheless: it may be a voter, and may be put right later.
func (d *Daemon) probeCPU(probe HostCPU) {
	if probe == nil || !d.isHost() {
		return
	}
	d.models = true
	h, err := probe()
	if err != nil {
		d.log.Error("this host's CPU is not known: it can't run guests", zap.Error(err))
		d.record(audit.Fault, "", 0, "daemon", map[string]any{"what": "the host's CPU is not known: it can't run guests", "reason": err.Error()})
		return
	}
	d.cpu = h.Text()
}

// cpuText is what a host has said of its processor. Of itself a daemon knows it first hand: its entry in the
// roster may still be that of an earlier boot.
func (d *Daemon) cpuText(host string) (text string, member bool) {
	if host == d.name && d.models {
		return d.cpu, true
	}
	m, ok := d.node.Member(host)
	return m.CPU, ok
}

func (d *Daemon) cpuOf(host string) (cpu.Host, error) {
	text, ok := d.cpuText(host)
	if !ok {
		return cpu.Host{}, errNoMember(host)
	}
	return parseCPU(host, text)
}

func parseCPU(host, text string) (cpu.Host, error) {
	if text == "" {
		return cpu.Host{}, errors.New("has not told what its CPU can do: its daemon could not ask KVM, and its log says why")
	}
	h, err := cpu.ParseHost(text)
	h.Name = host
	if err != nil {
		return h, fmt.Errorf("tells of its CPU in a way that this daemon does not understand: bring both to the same version (%w)", err)
	}
	return h, nil
}

// HostCPU is what a host has said of its processor, for the API.
func (d *Daemon) HostCPU(host string) (cpu.Host, error) { return d.cpuOf(host) }

// ChooseCPU decides a guest's processor: that of a policy's name, for these hosts. ErrRefused says which
// host lacks what.
func (d *Daemon) ChooseCPU(policy string, hosts []string) (pact.CPUSpec, error) {
	p, err := cpu.ParsePolicy(policy)
	if err != nil {
		return pact.CPUSpec{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	list := make([]cpu.Host, 0, len(hosts))
	var errs []error
	for _, name := range hosts {
		h, err := d.cpuOf(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %w", name, err))
			continue
		}
		list = append(list, h)
	}
	if len(list) == 0 && !d.models {
		return pact.CPUSpec{Policy: string(p)}, nil // nobody in this cluster speaks of CPUs
	}
	if len(errs) > 0 {
		return pact.CPUSpec{}, fmt.Errorf("%w: the guest's CPU can't be chosen: %w", ErrRefused, errors.Join(errs...))
	}
	m, err := cpu.For(p, list)
	if err != nil {
		return pact.CPUSpec{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return pact.CPUSpec{Policy: string(p), Model: m.Text()}, nil
}

// Unfit says why a host can't run a guest; "" if it can, or if nobody can say.
func (d *Daemon) Unfit(a pact.Assignment, host string) string {
	if a.Spec.CPU.Model == "" {
		return ""
	}
	text, ok := d.cpuText(host)
	if !ok {
		return "" // it is no member any more
	}
	key := fit{host, text, a.Spec.CPU.Model}
	d.mu.Lock()
	why, known := d.fits[key]
	d.mu.Unlock()
	if known {
		return why
	}
	why = unfit(key)
	d.mu.Lock()
	if len(d.fits) >= fitsMax {
		clear(d.fits)
	}
	d.fits[key] = why
	d.mu.Unlock()
	return why
}

// fit is a host and a model. What came of the question is remembered: it is asked at every look at a guest.
type fit struct{ host, cpu, model string }

const fitsMax = 4096

func unfit(f fit) string {
	m, err := cpu.ParseModel(f.model)
	if err != nil {
		return fmt.Sprintf("the guest's CPU model can't be read: %v", err)
	}
	h, err := parseCPU(f.host, f.cpu)
	if err == nil {
		err = h.Check(&m)
	}
	if err != nil {
		return fmt.Sprintf("%s can't run the guest: it %v", f.host, err)
	}
	return ""
}

// nobodyFits says why none of a guest's hosts can be its replica; nil where one can.
func (d *Daemon) nobodyFits(a pact.Assignment) error {
	var why []string
	unfit := false
	for _, h := range a.Spec.Hosts {
		if h == a.Primary.Host {
			continue
		}
		u := d.Unfit(a, h)
		unfit = unfit || u != ""
		if u == "" {
			u = d.keptOut(h)
		}
		if u == "" {
			return nil
		}
		why = append(why, u)
	}
	if !unfit {
		return fmt.Errorf("%w: %s", ErrRefused, strings.Join(why, "; "))
	}
	return fmt.Errorf("%w: %s. To change the guest's CPU, stop it and order `pollux guest cpu %s`", ErrRefused, strings.Join(why, "; "), a.Guest)
}

// CheckSetCPU says what processor a guest would get, or why it can't get another one.
func (d *Daemon) CheckSetCPU(name, policy string) (pact.Assignment, error) {
	a, err := d.lookup(name)
	if err != nil {
		return a, err
	}
	if a.Mode != pact.Stopped || a.Desired != pact.DesiredStopped {
		return a, fmt.Errorf("%w: the guest is %s and meant to be %s; stop it first", ErrRefused, a.Mode, a.Desired)
	}
	if policy == "" {
		policy = a.Spec.CPU.Policy
	}
	a.Spec.CPU, err = d.ChooseCPU(policy, a.Spec.Hosts)
	return a, err
}

// SetCPU chooses a stopped guest's processor anew, from what its hosts have by now.
func (d *Daemon) SetCPU(ctx context.Context, name, policy, operator string) error {
	a, err := d.CheckSetCPU(name, policy)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "set-cpu", map[string]any{"policy": a.Spec.CPU.Policy, "model": a.Spec.CPU.Model}); err != nil {
		return err
	}
	_, err = d.commit(ctx, pact.Command{Kind: pact.SetCPU, Guest: name, Term: a.Term, CPU: &a.Spec.CPU, Operator: operator})
	return err
}
