package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/console"
)

// eventsVerifyCommand checks a log's chain of hashes. It reads the file: a verdict on the log must
// not come from the daemon that writes it.
func (p *program) eventsVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Check that an event log is whole and unchanged",
		Long: `Check each line of an event log, closed segments included, and that it continues the one before. Without FILE it is this host's
(` + filepath.Join(config.DefaultStateDir, "events.jsonl") + `). It ends with 1 where the log is broken.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := config.Config{StateDir: config.DefaultStateDir}.EventLog()
			if len(args) > 0 {
				path = args[0]
			}
			s, err := audit.Verify(path)
			var broken *audit.Broken
			switch {
			case errors.As(err, &broken) && broken.Torn:
				return fmt.Errorf("%w\nIt is what a crash leaves of an unfinished line; the daemon repairs it, and says so in the log, at its next start", err)
			case errors.As(err, &broken):
				return fmt.Errorf("%w\nThe %d lines before it are whole. Keep the file as it is and compare it with a backup", err, s.Events)
			case err != nil:
				return err
			}
			return p.write(cmd.OutOrStdout(), s, func(w io.Writer) {
				fmt.Fprintf(w, "%s is whole: %d events", path, s.Events)
				if s.From > 1 {
					fmt.Fprintf(w, " (the %d before them were deleted, as the log says)", s.From-1)
				}
				if s.Events > 0 {
					fmt.Fprintf(w, " from %s to %s, the last one's hash is %s", s.First.Format(time.RFC3339), s.Last.Format(time.RFC3339), s.Head)
				}
				fmt.Fprintln(w)
			})
		},
	}
	return p.withOutput(cmd)
}

// eventsOfFile shows the events of a log file, without a daemon.
func (p *program) eventsOfFile(cmd *cobra.Command, path string, limit int, follow bool, f audit.Filter) error {
	events := audit.Read(path, f)
	if follow {
		events = audit.Follow(cmd.Context(), path, f)
	}
	var last []audit.Event
	for e, err := range events {
		if err != nil {
			var broken *audit.Broken
			if !errors.As(err, &broken) {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "pollux:", err)
			continue
		}
		if follow {
			if err := p.writeEvent(cmd.OutOrStdout(), asEvent(e)); err != nil {
				return err
			}
			continue
		}
		if last = append(last, e); len(last) > limit {
			last = last[1:]
		}
	}
	for _, e := range last {
		if err := p.writeEvent(cmd.OutOrStdout(), asEvent(e)); err != nil {
			return err
		}
	}
	return nil
}

// asEvent is an event of a file in the form that the API gives it.
func asEvent(e audit.Event) console.Event {
	return console.Event{Time: e.Time, Host: e.Host, Kind: string(e.Kind), Guest: e.Guest, Term: pact.Term(e.Term), Actor: e.Actor, Detail: e.Detail}
}
