package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/tests/history"
)

// Targets of P3, in milliseconds.
const (
	addedP50Target = 0.5
	addedP99Target = 2
)

// asking is P3: one client that sends a request when it has got the reply to the last.
type asking struct {
	b        *bench
	commands []string
	took     map[string]*pair // milliseconds
	last     map[string]map[string]Phase
}

func newAsking(b *bench, t *tape) probe {
	p := &asking{b: b, commands: []string{"GET", "SET"}, took: map[string]*pair{}, last: map[string]map[string]Phase{}}
	for _, c := range p.commands {
		p.took[c] = t.pair()
	}
	return p
}

func (p *asking) half(ctx context.Context, s *stage, protected bool) error {
	raw, err := s.Dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to the guest: %w", err)
	}
	defer raw.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := raw.SetDeadline(deadline); err != nil {
			return fmt.Errorf("bound the client's waiting: %w", err)
		}
	}
	c := history.NewConn(raw)
	const warmUp = 50
	for _, command := range p.commands {
		args := []string{command, "latency"}
		if command == "SET" {
			args = append(args, "a value of a usual length, some forty bytes")
		}
		for i := range warmUp + p.b.count(400, 200) {
			begin := time.Now()
			r, err := c.Do(args...)
			if err != nil {
				return err
			}
			if r.Type == history.ErrorReply {
				return fmt.Errorf("the guest refuses %s: %s", command, r.Text)
			}
			if i >= warmUp {
				p.took[command].of(protected).addTime(time.Since(begin))
			}
		}
		if protected {
			if _, err := s.Fresh(ctx); err != nil {
				return err
			}
			p.last[command] = s.epochs()
		}
	}
	return nil
}

func (p *asking) rows() []Row {
	var rows []Row
	for _, command := range p.commands {
		took := p.took[command]
		r := took.row("P3", command+", one client in a closed loop", "ms")
		r.Phases = p.last[command]
		rows = append(rows, r)
		if len(*took.protected) == 0 || len(*took.solo) == 0 {
			continue
		}
		with, without := took.protected.quantiles(), took.solo.quantiles()
		added := quantiles{with.p50 - without.p50, with.p90 - without.p90, with.p99 - without.p99}
		for _, a := range []struct {
			at            string
			value, target float64
		}{{"p50", added.p50, addedP50Target}, {"p99", added.p99, addedP99Target}} {
			r := Row{ID: "P3", Case: fmt.Sprintf("%s, added at %s", command, a.at), Unit: "ms", Value: round(a.value),
				P50: round(added.p50), P90: round(added.p90), P99: round(added.p99), Samples: len(*took.protected)}
			rows = append(rows, r.atMost(a.target).noted("the protected guest's quantile less the unprotected one's"))
		}
	}
	return rows
}
