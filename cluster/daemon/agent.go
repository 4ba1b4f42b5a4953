package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/pollux-ha/pollux/cluster/agent"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/cluster/wire"
)

// minBalloon is what a guest is left with at least, in bytes: any stock kernel lives in it.
const minBalloon = 64 << 20

// agentQuestion is what one daemon has another's guest agent do.
type agentQuestion struct {
	Guest   string `json:"guest"`
	Command string `json:"command"`
}

// running finds a guest that runs.
func (d *Daemon) running(name string) (pact.Assignment, error) {
	a, err := d.lookup(name)
	if err == nil && (!a.Runs() || a.IsGone(a.Primary)) {
		err = fmt.Errorf("%w: the guest does not run (%s)", ErrRefused, a.Mode)
	}
	return a, err
}

// CheckAgent says why a guest's agent can't be asked.
func (d *Daemon) CheckAgent(name, command string) (pact.Assignment, error) {
	if err := agent.Check(command); err != nil {
		return pact.Assignment{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return d.running(name)
}

// Agent has the agent in a guest do something, and returns its answer.
func (d *Daemon) Agent(ctx context.Context, name, command, operator string) (json.RawMessage, error) {
	a, err := d.CheckAgent(name, command)
	if err != nil {
		return nil, err
	}
	if err := d.operate(ctx, operator, name, "agent "+command, nil); err != nil {
		return nil, err
	}
	q := agentQuestion{Guest: name, Command: command}
	if a.Primary.Host == d.name {
		return d.askAgent(ctx, q)
	}
	m, ok := d.node.Member(a.Primary.Host)
	if !ok {
		return nil, errNoMember(a.Primary.Host)
	}
	var answer json.RawMessage
	if err := d.client.Call(ctx, wire.At(m.Name, m.ClusterAddress), "agent", q, &answer); err != nil {
		return nil, fmt.Errorf("ask on %s: %w", a.Primary.Host, err)
	}
	return answer, nil
}

// askedAgent answers another daemon.
func (d *Daemon) askedAgent(ctx context.Context, _ pki.Peer, body []byte) (any, error) {
	var q agentQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	return d.askAgent(ctx, q)
}

// askAgent asks the agent of a guest that runs on this host.
func (d *Daemon) askAgent(ctx context.Context, q agentQuestion) (json.RawMessage, error) {
	if !d.isHost() {
		return nil, errNoGuests
	}
	a, err := d.running(q.Guest)
	if err != nil {
		return nil, err
	}
	p := d.keeper(q.Guest).process(a.Primary)
	if a.Primary.Host != d.name || p == nil || !p.ready() {
		return nil, fmt.Errorf("%w: the guest's process is not on this host", ErrUnreachable)
	}
	answer, err := agent.Do(ctx, strings.TrimSuffix(p.path, configSuffix)+agentSuffix, q.Command)
	switch {
	case errors.Is(err, agent.ErrAgent):
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return answer, nil
}

// CheckBalloon says why a guest can't be asked to keep only so many bytes of its memory.
func (d *Daemon) CheckBalloon(name string, keep uint64) (pact.Assignment, error) {
	a, err := d.running(name)
	if err != nil {
		return a, err
	}
	if size := a.Spec.MemoryBytes; keep > size || keep < min(minBalloon, size) {
		return a, fmt.Errorf("%w: the guest keeps between %d and %d bytes of its memory", ErrRefused, min(minBalloon, size), size)
	}
	return a, nil
}

// Balloon asks a guest to keep so many bytes of its memory; it does not wait for it.
func (d *Daemon) Balloon(ctx context.Context, name string, keep uint64, operator string) error {
	a, err := d.CheckBalloon(name, keep)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "balloon", map[string]any{"memory_bytes": keep}); err != nil {
		return err
	}
	if err := d.tellHost(ctx, a.Primary.Host, order{Kind: "balloon", Guest: name, MemoryBytes: keep, Operator: orOperator(operator)}); err != nil {
		return fmt.Errorf("give the order to %s: %w", a.Primary.Host, err)
	}
	return nil
}

// tellPrimary gives an order to the process that runs the guest on this host.
func (k *keeper) tellPrimary(o link.Order) error {
	a, exists := k.d.node.Guest(k.guest)
	if !exists || !a.Runs() || a.Primary.Host != k.d.name {
		return errors.New("the guest does not run on this host")
	}
	p := k.process(a.Primary)
	if p == nil || !p.ready() {
		return errors.New("the primary's process can't be reached")
	}
	if o.Kind == link.OrderDump {
		return p.dump(o)
	}
	p.give(o)
	return nil
}

// await waits for a keeper's answer.
func (k *keeper) await(ctx context.Context, answer <-chan error) error {
	select {
	case err := <-answer:
		return err
	case <-k.done:
		return errEnding
	case <-ctx.Done():
		return ctx.Err()
	}
}
