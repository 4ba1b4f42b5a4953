package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/console"
)

func (p *program) guestResetCommand() *cobra.Command {
	var o order
	var yes bool
	cmd := p.mutation("reset", "Have a guest boot again, as by the reset button", `Have a guest boot again at once: what it had not written to its disks is lost to it. It stays protected. A guest
that is kept after a panic (--on-panic keep) goes on by this.`, &o, false,
		func(ctx context.Context, cmd *cobra.Command, name string) (*console.Guest, error) {
			if _, err := confirm(cmd, yes || o.dryRun, "guest", name, "This is pressing the guest's reset button"); err != nil {
				return nil, err
			}
			return p.client().Reset(ctx, name, console.ResetRequest{Operator: operator(), DryRun: o.dryRun})
		})
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm without being asked")
	return cmd
}

// dumpEvery is how often the outcome of a dump is asked for.
const dumpEvery = 250 * time.Millisecond

func (p *program) guestDumpCommand() *cobra.Command {
	var dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "dump NAME FILE",
		Short: "Write the memory of a guest that stands still to a file",
		Long: `Write the memory and the processors' registers of a guest that is kept after its death (--on-panic keep) to an ELF
core file, for crash or gdb. FILE is an absolute path on the guest's primary host and must not exist yet. The guest stays as it is;
go on with "pollux guest reset" or "pollux guest stop".`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: p.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			name, path := args[0], args[1]
			g, err := p.client().Dump(ctx, name, console.DumpRequest{Path: path, Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			d := &link.Dump{Path: path}
			for !dryRun && !d.Done {
				select {
				case <-ctx.Done():
					return fmt.Errorf("the dump is not done after %v; it goes on: \"pollux guest status %s -o json\" shows it", wait, name)
				case <-time.After(dumpEvery):
				}
				if g, err = p.client().Guest(ctx, name); err != nil {
					return err
				}
				if now := dumpOf(g); now != nil && now.Path == path {
					d = now
				}
			}
			if d.Error != "" {
				return errors.New(d.Error)
			}
			return p.write(cmd.OutOrStdout(), g, func(w io.Writer) {
				if dryRun {
					fmt.Fprintf(w, "would be done: dump guest %s to %s:%s\n", name, g.Primary, path)
					return
				}
				fmt.Fprintf(w, "guest %s: dumped to %s:%s (%s)\n", name, g.Primary, path, bytesText(uint64(d.Bytes)))
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Minute, "how long to wait for the file")
	return p.withOutput(cmd)
}

// dumpOf is the last dump that a guest's primary was ordered to make.
func dumpOf(g *console.Guest) *link.Dump {
	for _, p := range g.Processes {
		if p.Status != nil && p.Status.Role == link.RolePrimary {
			return p.Status.Dump
		}
	}
	return nil
}
