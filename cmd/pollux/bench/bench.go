package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
)

// metric is one of the things that are measured.
type metric struct {
	id    string
	name  string // unique; empty: the id
	about string
	limit time.Duration // after which it counts as stuck

	// One of these is set. The last two need a cluster, and so a session of their own: measured runs in
	// one that it makes itself, probe takes turns with others in the same one.
	measure func(*bench, context.Context) error
	cluster func(*bench, context.Context) error
	probe   func(*bench, *tape) probe
}

func (m metric) key() string {
	if m.name != "" {
		return m.name
	}
	return m.id
}

func metrics() []metric {
	all := []metric{
		{id: "P1", about: "pause per checkpoint", measure: (*bench).pauses, limit: 5 * time.Minute},
		{id: "P5", about: "bytes on the wire for each dirtied byte", measure: (*bench).wire, limit: 5 * time.Minute},
		{id: "P9", about: "pause as the guest grows", measure: (*bench).growth, limit: 5 * time.Minute},
		{id: "P2a", about: "throughput of a guest that computes", probe: newBurning, limit: probeLimit},
		{id: "P2b", about: "throughput of a guest that serves requests", probe: newServing, limit: probeLimit},
		{id: "P2c", about: "throughput at 10,000 dirtied pages a second", probe: newDirtying, limit: probeLimit},
		{id: "P3", about: "added latency of a request", probe: newAsking, limit: probeLimit},
	}
	for _, t := range takeovers {
		all = append(all, metric{
			id: "P4", name: "P4/" + string(t.fault), about: "takeover: " + t.about, limit: 15 * time.Minute,
			cluster: func(b *bench, ctx context.Context) error { return b.takeovers(ctx, t) },
		})
	}
	all = append(all, metric{id: "P4h", about: "heal of a damaged page: how long the guest stands still", limit: 10 * time.Minute, cluster: (*bench).heals})
	return append(all, metric{id: "P4s", about: "planned switchover: the gap that clients see", limit: 10 * time.Minute, cluster: (*bench).switchovers})
}

// selected finds the metrics of these ids or names, in the order in which they are measured; none:
// all. "P2" is all of P2a, P2b and P2c.
func selected(only []string) ([]metric, error) {
	all := metrics()
	if len(only) == 0 {
		return all, nil
	}
	wanted := make(map[string]bool)
	for _, id := range only {
		found := false
		for _, m := range all {
			if m.key() == id || m.id == id || strings.TrimRight(m.id, "abcdefghijklmnopqrstuvwxyz") == id {
				wanted[m.key()], found = true, true
			}
		}
		if !found {
			var names []string
			for _, m := range all {
				names = append(names, m.key())
			}
			return nil, fmt.Errorf("there is no metric %q; there are %s", id, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(all, func(m metric) bool { return !wanted[m.key()] }), nil
}

// bench is a run.
type bench struct {
	report   *Report
	quick    bool
	progress io.Writer
	began    time.Time
}

func (b *bench) add(r Row) {
	b.report.Rows = append(b.report.Rows, r)
	b.tell("%s, %s: %s %s (p50 of %d)", r.ID, r.Case, number(r.Value), r.Unit, r.Samples)
}

func (b *bench) tell(format string, a ...any) {
	fmt.Fprintf(b.progress, "%7.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, a...))
}

// count is how many samples to take.
func (b *bench) count(normal, quick int) int {
	if b.quick {
		return quick
	}
	return normal
}

// run measures. One metric that fails does not keep the others from being measured, and what it found
// before is in the report.
func (b *bench) run(ctx context.Context, what []metric) error {
	var errs []error
	try := func(group []metric, measure func(context.Context) error) {
		var names []string
		var limit time.Duration
		for _, m := range group {
			names = append(names, m.key())
			limit += m.limit
			b.tell("%s: %s", m.key(), m.about)
		}
		limited, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		if err := measure(limited); err != nil {
			err = fmt.Errorf("%s: %w", strings.Join(names, ","), err)
			b.tell("%v", err)
			errs = append(errs, err)
		}
	}
	for len(what) > 0 && ctx.Err() == nil {
		n := 1
		for what[0].probe != nil && n < len(what) && what[n].probe != nil {
			n++ // they share a cluster
		}
		group := what[:n]
		what = what[n:]
		switch m := group[0]; {
		case m.measure != nil:
			try(group, func(ctx context.Context) error { return m.measure(b, ctx) })
		case !lab.InSession():
			try(group, func(ctx context.Context) error { return b.elsewhere(ctx, group) })
		case m.cluster != nil:
			try(group, func(ctx context.Context) error { return m.cluster(b, ctx) })
		default:
			try(group, func(ctx context.Context) error { return b.turns(ctx, group) })
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// elsewhere has the metrics measured by this program in a session of its own, and takes their rows.
func (b *bench) elsewhere(ctx context.Context, group []metric) error {
	if err := demo.Preflight(); err != nil {
		return err
	}
	var names []string
	for _, m := range group {
		names = append(names, m.key())
	}
	args := []string{"bench", "-o", "json", "--only", strings.Join(names, ",")}
	if b.quick {
		args = append(args, "--quick")
	}
	var out bytes.Buffer
	code, err := lab.IsolateArgs(ctx, args, &out)
	if err != nil {
		return err
	}
	var r Report
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			return fmt.Errorf("the report of the session: %w", err)
		}
	}
	b.report.Rows = append(b.report.Rows, r.Rows...)
	if code != 0 {
		return fmt.Errorf("the session ended with code %d; it has told why", code)
	}
	return nil
}
