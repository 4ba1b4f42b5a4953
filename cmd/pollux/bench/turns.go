package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
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

	var t tape
	var probes []probe
	for _, m := range group {
		probes = append(probes, m.probe(b, &t))
	}
	defer func() {
		for _, p := range probes {
			for _, r := range p.rows() {
				b.add(r)
			}
		}
	}()
	elections, spoiled, halves := uint64(0), 0, 0
	defer func() {
		b.add(row("P4", "unwanted elections", "elections", samples{float64(elections)}).atMost(0).
			noted("changes of Raft's term while nothing was wrong and the guest was under the load of the other rows, in %d stretches", halves))
		b.add(row("P4", "protection lost for nothing", "stretches", samples{float64(spoiled)}).atMost(0).
			noted("of %d stretches under load, those in which the guest went on alone or on its twin with nothing wrong, for a silence that was taken for a fault; what was measured in them does not count", halves))
	}()
	turns := b.count(8, 2)
	for turn := 0; turn < turns; {
		b.tell("turn %d", turn+1)
		t.mark()
		n, err := b.protectedHalf(ctx, s, probes)
		halves++
		elections += n
		if errors.Is(err, errSpoiled) && spoiled < maxSpoiled*turns {
			b.tell("%v", err)
			spoiled++
			t.rewind()
			if _, err := s.AwaitProtected(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("turn %d, protected: %w", turn+1, err)
		}
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
		turn++
	}
	return nil
}

// maxSpoiled is how many stretches may be lost for each that is wanted, before the run is given up.
const maxSpoiled = 2

var errSpoiled = errors.New("what was measured is of neither")

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
	var failed error
	for _, p := range probes {
		if failed = p.half(ctx, s, true); failed != nil {
			break
		}
	}
	now, err := s.Fresh(ctx)
	if err != nil {
		return 0, errors.Join(failed, err)
	}
	after, err := s.RaftTerm(ctx)
	if err != nil {
		return 0, errors.Join(failed, err)
	}
	// A takeover explains everything else.
	return after - before, cmp.Or(unchanged(g, now), failed)
}

// unchanged says what happened to the guest between two looks.
func unchanged(before, now *console.Guest) error {
	if now.State != before.State || now.Term != before.Term {
		return fmt.Errorf("the guest was %s on %s in term %d and is %s on %s in term %d (%s): %w",
			before.State, before.Primary, before.Term, now.State, now.Primary, now.Term, now.Detail, errSpoiled)
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
	for _, name := range epochPhases {
		if t, ok := status.TimingsUs[name]; ok {
			m[name] = Phase{Unit: "us", P50: round(t.P50), P90: round(t.P90), P99: round(t.P99), Samples: t.Samples}
		}
	}
	return m
}

// counters are what the primary's process has counted so far, and when it was asked.
func (s *stage) counters(ctx context.Context) (link.Status, time.Time, error) {
	if _, err := s.Fresh(ctx); err != nil {
		return link.Status{}, time.Time{}, err
	}
	status := s.Primary()
	if status == nil {
		return link.Status{}, time.Time{}, errors.New("the primary tells nothing of itself")
	}
	return *status, time.Now(), nil
}

// tape holds all samples of the probes, and takes back those that turned out to be worth nothing.
type tape struct {
	all   []*samples
	marks []int
}

// samples are new ones, on the tape.
func (t *tape) samples() *samples {
	s := new(samples)
	t.all, t.marks = append(t.all, s), append(t.marks, 0)
	return s
}

func (t *tape) pair() *pair { return &pair{protected: t.samples(), solo: t.samples()} }

func (t *tape) mark() {
	for i, s := range t.all {
		t.marks[i] = len(*s)
	}
}

// rewind takes back what came after the last mark.
func (t *tape) rewind() {
	for i, s := range t.all {
		*s = (*s)[:t.marks[i]]
	}
}

// pair is samples of the same with and without protection.
type pair struct{ protected, solo *samples }

func (p *pair) of(protected bool) *samples {
	if protected {
		return p.protected
	}
	return p.solo
}

// row compares the two.
func (p *pair) row(id, name, unit string) Row {
	return row(id, name, unit, *p.protected).against(p.solo.median())
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
