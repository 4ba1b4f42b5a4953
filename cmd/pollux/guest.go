package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/console"
)

func (p *program) guestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "guest",
		Short: "Create, run and look at guests",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		p.guestCreateCommand(), p.guestImportCommand(), p.guestStartCommand(), p.guestStopCommand(), p.guestDeleteCommand(),
		p.guestResetCommand(), p.guestDumpCommand(), p.guestAgentCommand(), p.guestBalloonCommand(),
		p.guestListCommand(), p.guestStatusCommand(), p.guestSwitchoverCommand(), p.guestProtectCommand(), p.guestCPUCommand(),
	)
	return cmd
}

// order is what the mutations have in common.
type order struct {
	dryRun bool
	wait   time.Duration
	noWait bool
}

func (o *order) flags(cmd *cobra.Command, waits bool) {
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	if waits {
		cmd.Flags().DurationVar(&o.wait, "wait", 0, "how long to wait for the outcome (0: the daemon's default)")
		cmd.Flags().BoolVar(&o.noWait, "no-wait", false, "give the order and don't wait for its outcome")
	}
}

func (o *order) waiting() console.Wait {
	if o.noWait {
		return console.Wait{WaitSeconds: -1}
	}
	return console.Wait{WaitSeconds: o.wait.Seconds()}
}

// mutation is a command of the form `pollux guest VERB NAME`.
func (p *program) mutation(use, short, long string, o *order, waits bool, do func(ctx context.Context, cmd *cobra.Command, name string) (*console.Guest, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:               use + " NAME",
		Short:             short,
		Long:              long,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := do(cmd.Context(), cmd, args[0])
			if err != nil {
				return err
			}
			return p.writeGuest(cmd.OutOrStdout(), g, o.dryRun)
		},
	}
	o.flags(cmd, waits)
	return p.withOutput(cmd)
}

func (p *program) writeGuest(w io.Writer, g *console.Guest, dryRun bool) error {
	return p.write(w, g, func(w io.Writer) {
		if dryRun {
			fmt.Fprint(w, "would be done: ")
		}
		fmt.Fprintln(w, describeGuest(g))
	})
}

// describeGuest says how a guest is in one line.
func describeGuest(g *console.Guest) string {
	s := fmt.Sprintf("guest %s: %s", g.Name, g.State)
	if g.Primary != "" {
		s += ", primary " + g.Primary
	}
	if g.Replica != "" {
		s += ", replica " + g.Replica
	}
	s += fmt.Sprintf(", term %d", g.Term)
	if g.Detail != "" {
		s += " (" + g.Detail + ")"
	}
	return s
}

func (p *program) guestStartCommand() *cobra.Command {
	var o order
	var r console.StartRequest
	var yes bool
	cmd := p.mutation("start", "Start a guest", `Start a stopped guest.

A disk copy that is not known to be current starts only with --accept-loss, which says in your words
what loss you accept; this goes into the event log. So does --host-off: your word that a host is
powered off which might otherwise still run the guest.`, &o, true,
		func(ctx context.Context, cmd *cobra.Command, name string) (*console.Guest, error) {
			r.Wait, r.DryRun, r.Operator = o.waiting(), o.dryRun, operator()
			if r.Host != "" && r.AcceptLoss == "" {
				return nil, usagef("--host names the disk copy to start from and needs --accept-loss; without it the current copy is used")
			}
			if r.AcceptInconsistent && r.AcceptLoss == "" {
				return nil, usagef("--accept-inconsistent needs --accept-loss")
			}
			if r.AcceptLoss != "" || len(r.HostsOff) > 0 {
				var err error
				danger := "This starts the guest from a disk copy that may lack acknowledged writes"
				if r.AcceptLoss == "" {
					danger = "If one of these hosts still runs the guest, there will be two of it"
				}
				if r.Confirm, err = confirm(cmd, yes || o.dryRun, "guest", name, danger); err != nil {
					return nil, err
				}
			}
			return p.client().Start(ctx, name, r)
		})
	cmd.Flags().StringVar(&r.AcceptLoss, "accept-loss", "", "start from a copy that is not known to be current; says what loss is accepted")
	cmd.Flags().BoolVar(&r.AcceptInconsistent, "accept-inconsistent", false, "with --accept-loss: even from a copy whose blocks are of different moments")
	cmd.Flags().StringVar(&r.Host, "host", "", "with --accept-loss: the host whose copy is used")
	cmd.Flags().StringSliceVar(&r.HostsOff, "host-off", nil, "your word that this host is powered off")
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm without being asked")
	return cmd
}

func (p *program) guestStopCommand() *cobra.Command {
	var o order
	var r console.StopRequest
	var timeout time.Duration
	var yes bool
	cmd := p.mutation("stop", "Stop a guest: the power button, then force", `Press the guest's power button and wait until it is off. After --timeout it is forced.`, &o, true,
		func(ctx context.Context, cmd *cobra.Command, name string) (*console.Guest, error) {
			r.Wait, r.DryRun, r.Operator, r.TimeoutSeconds = o.waiting(), o.dryRun, operator(), timeout.Seconds()
			if r.Force {
				if _, err := confirm(cmd, yes || o.dryRun, "guest", name, "This is pulling the guest's plug"); err != nil {
					return nil, err
				}
			}
			return p.client().Stop(ctx, name, r)
		})
	cmd.Flags().BoolVar(&r.Force, "force", false, "at once, as by pulling the plug")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "from the power button to force (0: the daemon's default)")
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm without being asked")
	return cmd
}

func (p *program) guestDeleteCommand() *cobra.Command {
	var o order
	var yes bool
	cmd := p.mutation("delete", "Forget a stopped guest", `Forget a stopped guest. Its disks are moved aside on each host, not erased.`, &o, false,
		func(ctx context.Context, cmd *cobra.Command, name string) (*console.Guest, error) {
			typed, err := confirm(cmd, yes || o.dryRun, "guest", name, "This takes the guest out of the cluster")
			if err != nil {
				return nil, err
			}
			return p.client().Delete(ctx, name, console.DeleteRequest{Confirm: typed, Operator: operator(), DryRun: o.dryRun})
		})
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm without being asked")
	return cmd
}

func (p *program) guestSwitchoverCommand() *cobra.Command {
	var o order
	return p.mutation("switchover", "Exchange the roles of primary and replica", `Let the replica become the primary and the primary the replica. The guest stays protected throughout.`, &o, true,
		func(ctx context.Context, _ *cobra.Command, name string) (*console.Guest, error) {
			return p.client().Switchover(ctx, name, console.SwitchoverRequest{Operator: operator(), Wait: o.waiting(), DryRun: o.dryRun})
		})
}

func (p *program) guestProtectCommand() *cobra.Command {
	var o order
	return p.mutation("protect", "Give a guest a replica, and wait until it is protected", "", &o, true,
		func(ctx context.Context, _ *cobra.Command, name string) (*console.Guest, error) {
			return p.client().Protect(ctx, name, console.ProtectRequest{Operator: operator(), Wait: o.waiting(), DryRun: o.dryRun})
		})
}

func (p *program) guestListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the guests",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			guests, err := p.client().Guests(ctx)
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), guests, func(w io.Writer) { guestTable(w, guests) })
		},
	}
	return p.withOutput(cmd)
}

func (p *program) guestStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "status NAME",
		Short:             "Tell all about one guest",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			g, err := p.client().Guest(ctx, args[0])
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), g, func(w io.Writer) { guestDetails(w, g) })
		},
	}
	return p.withOutput(cmd)
}

// completeGuests completes the names of guests, as far as a daemon answers.
func (p *program) completeGuests(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := ask(cmd)
	defer cancel()
	guests, err := p.client().Guests(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, g := range guests {
		names = append(names, g.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
