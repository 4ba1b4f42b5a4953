package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/console"
)

// rounds plays the unattended rounds.
func (r *run) rounds(ctx context.Context, result *Result) error {
	for round := 1; round <= r.options.Rounds; round++ {
		strikes, err := r.round(ctx, round)
		result.Strikes = append(result.Strikes, strikes...)
		for _, s := range strikes {
			r.tellStrike(s)
		}
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		result.Rounds = round
	}
	return nil
}

// round plays one round. It begins and ends with a protected guest.
func (r *run) round(ctx context.Context, round int) ([]Strike, error) {
	name, err := r.awaitProtected(ctx)
	if err != nil {
		return nil, err
	}
	victim, err := r.cluster.host(name)
	if err != nil {
		return nil, err
	}
	switch r.options.Victim {
	case VictimReplica:
		victim = r.cluster.other(victim)
	case VictimWitness:
		victim = r.cluster.witness
	}
	r.pause(ctx, 100*time.Millisecond, 1500*time.Millisecond)

	var strikes []Strike
	hit := func(victim *node) error {
		s, err := r.strike(ctx, round, r.options.Fault, victim)
		strikes = append(strikes, s)
		return err
	}
	switch r.options.During {
	case DuringSwitchover:
		err = r.hitDuringSwitchover(ctx, victim, hit)
	case DuringResync:
		err = r.hitDuringResync(ctx, round, victim, &strikes)
	default:
		err = hit(victim)
	}
	if err != nil || !r.options.Twice {
		return strikes, err
	}
	// Again at once, on whoever has that part now.
	if r.options.Victim != VictimWitness {
		if victim, err = r.cluster.host(r.monitor.now().Primary); err != nil {
			return strikes, err
		}
		if r.options.Victim == VictimReplica {
			victim = r.cluster.other(victim)
		}
	}
	return strikes, hit(victim)
}

// hitDuringSwitchover orders a switchover and lets the fault come while it is under way, on either host.
func (r *run) hitDuringSwitchover(ctx context.Context, primary *node, hit func(*node) error) error {
	victim := primary
	if r.random.IntN(2) == 1 {
		victim = r.cluster.other(primary)
	}
	ordered := make(chan error, 1)
	order, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	go func() {
		_, err := primary.client().Switchover(order, guestName, console.SwitchoverRequest{Operator: "demo", Wait: console.Wait{WaitSeconds: -1}})
		ordered <- err
	}()
	// A switchover takes some milliseconds, the order before it a few more.
	r.pause(ctx, 0, 40*time.Millisecond)
	r.monitor.assume("switching")
	err := hit(victim)
	cancel()
	// Whether the order was carried out is all the same here: the fault may have come first.
	if err := <-ordered; err != nil {
		r.tell("the switchover: %v", err)
	}
	return err
}

// hitDuringResync hits the primary, and once that host is back and being filled again, hits it once more.
func (r *run) hitDuringResync(ctx context.Context, round int, victim *node, strikes *[]Strike) error {
	var second *Strike
	r.afterRepair = func(ctx context.Context, _ *Strike) error {
		r.afterRepair = nil // once
		waiting, cancel := context.WithTimeout(ctx, protectedPatience)
		defer cancel()
		// A short one may be over before it is seen; then the fault hits a replica that is complete.
		if _, err := r.monitor.await(waiting, "the lost host was being filled again", func(g *console.Guest) bool {
			return (g.State == "syncing" || protected(g)) && hasProcess(g, victim.Name)
		}); err != nil {
			return err
		}
		s, err := r.strike(ctx, round, r.options.Fault, victim)
		second = &s
		return err
	}
	defer func() { r.afterRepair = nil }()
	first, err := r.strike(ctx, round, r.options.Fault, victim)
	*strikes = append(*strikes, first)
	if second != nil {
		*strikes = append(*strikes, *second)
	}
	return err
}

func hasProcess(g *console.Guest, host string) bool {
	for _, p := range g.Processes {
		if p.Host == host {
			return true
		}
	}
	return false
}

func (r *run) tellStrike(s Strike) {
	text := fmt.Sprintf("round %d: %s", s.Round, s.Fault)
	if s.Variant != "" {
		text += " (" + s.Variant + ")"
	}
	text += fmt.Sprintf(" hit %s, the %s, while %s", s.Host, s.Victim, s.State)
	if s.Error != "" {
		r.tell("%s: %s", text, s.Error)
		return
	}
	r.tell("%s: first reply after %.1f ms, longest gap %.1f ms, goes on on %s, protected again after %.1f s",
		text, s.TakeoverMs, s.GapMs, s.PrimaryAfter, s.ProtectedAgainMs/1000)
}
