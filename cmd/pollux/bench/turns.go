package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/tests/history"
)

// probeLimit is a probe's share of the time that all turns may take.
const probeLimit = 5 * time.Minute

// probe measures the same on the guest with and without its twin.
type probe interface {
	// half takes samples of one kind.
	half(ctx context.Context, s *stage, protected bool) error
	rows() []Row
}

// stage is what probes work on.
type stage struct {
	*demo.Stage
	control *history.Conn // to the guest, for orders
	primary string        // the host that runs the guest
	replica string        // the host of its twin, which is off in solo halves
}

// turns has the probes measure a protected guest and one that runs alone, in turns, so that whatever
// else goes on in the machine meets both.
func (b *bench) turns(ctx context.Context, group []metric) (err error) {
	cluster, err := demo.NewStage(ctx, b.tell)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Close(err != nil)) }()
	s := &stage{Stage: cluster}
	c, err := cluster.Dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to the guest: %w", err)
	}
	s.control = history.NewConn(c)
	defer s.control.Close()

	var probes []probe
	for _, m := range group {
		probes = append(probes, m.probe(b))
	}
	defer func() {
		for _, p := range probes {
			for _, r := range p.rows() {
				b.add(r)
			}
		}
	}()
	elections, halves := uint64(0), 0
	for turn := range b.count(6, 2) {
		b.tell("turn %d", turn+1)
		n, err := b.protectedHalf(ctx, s, probes)
		if err != nil {
			return fmt.Errorf("turn %d, protected: %w", turn+1, err)
		}
		elections, halves = elections+n, halves+1
		if s.replica, err = s.Separate(ctx); err != nil {
			return err
		}
		for _, p := range probes {
			if err := p.half(ctx, s, false); err != nil {
				return fmt.Errorf("turn %d, alone: %w", turn+1, err)
			}
		}
		if err := s.Reunite(ctx, s.replica); err != nil {
			return err
		}
	}
	r := row("P4", "unwanted elections", "elections", samples{float64(elections)}).atMost(0).
		noted("changes of Raft's term while nothing was wrong and the guest was under the load of the other rows, %d times", halves)
	b.add(r)
	return nil
}

// protectedHalf returns how many elections there were meanwhile.
func (b *bench) protectedHalf(ctx context.Context, s *stage, probes []probe) (uint64, error) {
	g, err := s.Fresh(ctx)
	if err != nil {
		return 0, err
	}
	s.primary, s.replica = g.Primary, g.Replica
	before, err := s.RaftTerm(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range probes {
		if err := p.half(ctx, s, true); err != nil {
			return 0, err
		}
	}
	now, err := s.Fresh(ctx)
	if err != nil {
		return 0, err
	}
	if err := unchanged(g, now); err != nil {
		return 0, err
	}
	after, err := s.RaftTerm(ctx)
	return after - before, err
}

// unchanged says what happened to the guest between two looks.
func unchanged(before, now *console.Guest) error {
	if now.State != before.State || now.Term != before.Term {
		return fmt.Errorf("the guest was %s in term %d and is %s in term %d (%s): what was measured is of neither",
			before.State, before.Term, now.State, now.Term, now.Detail)
	}
	return nil
}

// order gives the guest an order.
func (s *stage) order(args ...string) (history.Reply, error) {
	r, err := s.control.Do(args...)
	if err == nil && r.Type == history.ErrorReply {
		err = fmt.Errorf("the guest refuses %s: %s", args[0], r.Text)
	}
	return r, err
}

// epochs is what the primary says of its last epochs.
func (s *stage) epochs() map[string]Phase {
	status := s.Primary()
	if status == nil {
		return nil
	}
	m := make(map[string]Phase)
	for _, name := range phaseOrder {
		if t, ok := status.TimingsUs[name]; ok {
			m[name] = Phase{Unit: "us", P50: round(t.P50), P90: round(t.P90), P99: round(t.P99), Samples: t.Samples}
		}
	}
	return m
}

// pair is samples of the same with and without protection.
type pair struct{ protected, solo samples }

func (p *pair) of(protected bool) *samples {
	if protected {
		return &p.protected
	}
	return &p.solo
}

// wait lets time pass.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
