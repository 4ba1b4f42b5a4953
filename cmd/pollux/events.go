package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/console"
)

func (p *program) eventsCommand() *cobra.Command {
	var follow bool
	var limit int
	var guest, kind, file string
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, from this host's event log",
		Long:  `Show what happened, from this host's event log, oldest first. With -o json each event is one line.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit %d: at least 1", limit)
			}
			if file != "" {
				f := audit.Filter{Guest: guest}
				if kind != "" {
					f.Kinds = []audit.Kind{audit.Kind(kind)}
				}
				if since > 0 {
					f.Since = time.Now().Add(-since)
				}
				return p.eventsOfFile(cmd, file, limit, follow, f)
			}
			wanted := func(e console.Event) bool {
				return (kind == "" || e.Kind == kind) && (since == 0 || time.Since(e.Time) <= since)
			}
			var last []console.Event
			for {
				events, err := p.events(cmd.Context(), limit, guest)
				if cmd.Context().Err() != nil {
					return nil //nolint:nilerr // the user ended it; what the call says of that is of no interest
				}
				switch {
				case err != nil && (last == nil || !follow):
					return err
				case err != nil: // a daemon that is being restarted
				default:
					for _, e := range unseen(last, events) {
						if wanted(e) {
							if err := p.writeEvent(cmd.OutOrStdout(), e); err != nil {
								return err
							}
						}
					}
					last = events
				}
				if !follow {
					return nil
				}
				select {
				case <-time.After(500 * time.Millisecond):
				case <-cmd.Context().Done():
					return nil
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on and show what comes")
	cmd.Flags().IntVarP(&limit, "limit", "n", 100, "how many of the newest events are looked at")
	cmd.Flags().StringVar(&guest, "guest", "", "only those of this guest")
	cmd.Flags().StringVar(&kind, "kind", "", "only those of this kind")
	cmd.Flags().DurationVar(&since, "since", 0, "only those not older than this")
	cmd.Flags().StringVar(&file, "file", "", "read this log file instead of asking the daemon")
	cmd.AddCommand(p.eventsVerifyCommand())
	return p.withOutput(cmd)
}

func (p *program) events(ctx context.Context, limit int, guest string) ([]console.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return p.client().Events(ctx, limit, guest)
}

// unseen are the events of now that came after the last one of before.
func unseen(before, now []console.Event) []console.Event {
	if len(before) == 0 {
		return now
	}
	last := before[len(before)-1]
	for i := len(now) - 1; i >= 0; i-- {
		if reflect.DeepEqual(now[i], last) {
			return now[i+1:]
		}
	}
	return now // more than the limit came at once
}

func (p *program) writeEvent(w io.Writer, e console.Event) error {
	switch p.output {
	case formatJSON:
		return json.NewEncoder(w).Encode(e)
	case formatYAML:
		fmt.Fprintln(w, "---")
		return writeYAML(w, e)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-8s %-20s", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Host, e.Kind)
	if e.Guest != "" {
		fmt.Fprintf(&b, " %s", e.Guest)
	}
	if e.Term != 0 {
		fmt.Fprintf(&b, " term %d", e.Term)
	}
	if e.Actor != "" {
		fmt.Fprintf(&b, " by %s", e.Actor)
	}
	keys := make([]string, 0, len(e.Detail))
	for k := range e.Detail {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%v", k, e.Detail[k])
	}
	_, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	return err
}
