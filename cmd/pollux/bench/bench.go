package bench

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// metric is one of the things that are measured.
type metric struct {
	id      string
	about   string
	cluster bool // it needs a whole cluster
	measure func(*bench, context.Context) error
	limit   time.Duration // after which it counts as stuck
}

var metrics = []metric{
	{id: "P1", about: "pause per checkpoint", measure: (*bench).pauses, limit: 3 * time.Minute},
	{id: "P5", about: "bytes on the wire for each dirtied byte", measure: (*bench).wire, limit: 3 * time.Minute},
}

// ids lists what can be measured.
func ids() []string {
	var all []string
	for _, m := range metrics {
		all = append(all, m.id)
	}
	return all
}

// selected finds the metrics of these ids, in the order in which they are measured; none: all. "P2" is
// all of P2a, P2b and P2c.
func selected(only []string) ([]metric, error) {
	if len(only) == 0 {
		return metrics, nil
	}
	wanted := make(map[string]bool)
	for _, id := range only {
		found := false
		for _, m := range metrics {
			if m.id == id || strings.TrimRight(m.id, "abcdefghijklmnopqrstuvwxyz") == id {
				wanted[m.id], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no metric %q; there are %s", id, strings.Join(ids(), ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(metrics), func(m metric) bool { return !wanted[m.id] }), nil
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

// run measures. What was measured before an error is in the report.
func (b *bench) run(ctx context.Context, what []metric) error {
	for _, m := range what {
		if err := b.one(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) one(ctx context.Context, m metric) error {
	limited, cancel := context.WithTimeout(ctx, m.limit)
	defer cancel()
	b.tell("%s: %s", m.id, m.about)
	if err := m.measure(b, limited); err != nil {
		return fmt.Errorf("%s: %w", m.id, err)
	}
	return nil
}
