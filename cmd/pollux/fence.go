package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/console"
)

func (p *program) fenceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fence",
		Short: "Look at and try what powers off a lost host",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.fenceStatusCommand(), p.fenceTestCommand())
	return cmd
}

func (p *program) fenceStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell what this host can fence, what it has fenced, and who is kept out",
		Long: `Tell what the asked host can fence, what became of its last fencings, whether the kernel's watchdog is armed,
and which hosts the cluster keeps out. No device is asked; see pollux fence test.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			f, err := p.client().Fencing(ctx)
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), f, func(w io.Writer) { fenceText(w, f) })
		},
	}
	return p.withOutput(cmd)
}

func fenceText(w io.Writer, f *console.Fencing) {
	fmt.Fprintln(w, "when:", f.When)
	switch dog := f.Watchdog; {
	case dog.Device == "":
		fmt.Fprintln(w, "watchdog: none")
	case dog.Error != "":
		fmt.Fprintf(w, "watchdog: %s can't be used: %s\n", dog.Device, dog.Error)
	default:
		fmt.Fprintf(w, "watchdog: %s %s, %s\n", dog.Device, map[bool]string{true: "armed", false: "not armed"}[dog.Armed], dash(dog.Identity))
	}
	rows := [][]string{{"NAME", "AGENT", "ACTION", "LAST", "SINCE", "DETAIL"}}
	for _, d := range f.Devices {
		row := []string{d.Host, d.Agent, d.Action, "", "", ""}
		for _, r := range f.Reports {
			if r.Host == d.Host {
				row = append(row[:3], r.Stage, r.Time.Format(time.DateTime), r.Detail)
			}
		}
		rows = append(rows, row)
	}
	if len(rows) > 1 {
		fmt.Fprintln(w)
		table(w, rows)
	}
	rows = [][]string{{"KEPT OUT", "WHY", "BY", "REASON"}}
	for _, o := range f.KeptOut {
		rows = append(rows, []string{o.Host, string(o.Kind), o.By, o.Reason})
	}
	if len(rows) > 1 {
		fmt.Fprintln(w)
		table(w, rows)
	}
}

// fenceTestTime bounds a test: devices are slow, and what was ordered is verified.
const fenceTestTime = 10 * time.Minute

func (p *program) fenceTestCommand() *cobra.Command {
	var r console.FenceTestRequest
	var yes bool
	cmd := &cobra.Command{
		Use:   "test [HOST]",
		Short: "Ask fence devices for the power of their hosts",
		Long: `Ask the fence device of HOST, or all that the asked host has, for their hosts' power. This changes nothing, and
fails where a device does not answer.

With --off HOST is powered off, and it is done once the device has confirmed it. That is refused while the cluster
counts on the host: as a primary or as a replica that may take over. --even-primary overrides this, for a host that
can't be reached and whose guests are to be started elsewhere (pollux guest start --accept-loss --host-off).`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), fenceTestTime)
			defer cancel()
			r.Operator = operator()
			switch {
			case r.Off && len(args) == 0:
				return usagef("--off needs the host's name")
			case r.EvenPrimary && !r.Off:
				return usagef("--even-primary belongs to --off")
			case r.Off:
				var err error
				if r.Confirm, err = confirm(cmd, yes || r.DryRun, "host", args[0], "This cuts the power of host "+args[0]); err != nil {
					return err
				}
			}
			hosts, err := p.fenceable(ctx, args)
			if err != nil {
				return err
			}
			devices := []console.FenceDevice{}
			var failed error
			for _, r.Host = range hosts {
				d, err := p.client().TestFence(ctx, r)
				if err != nil {
					return err
				}
				if d.Error != "" {
					failed = &exitError{code: exitFailed}
				}
				devices = append(devices, *d)
			}
			err = p.write(cmd.OutOrStdout(), devices, func(w io.Writer) {
				rows := [][]string{{"NAME", "POWER", "AGENT", "DETAIL"}}
				for _, d := range devices {
					rows = append(rows, []string{d.Host, d.Power, d.Agent, d.Error})
				}
				table(w, rows)
			})
			if err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().BoolVar(&r.Off, "off", false, "power the host off, and see that it is")
	cmd.Flags().BoolVar(&r.EvenPrimary, "even-primary", false, "with --off: even a host that the cluster counts on")
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm without being asked")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "with --off: ask the device alone")
	return p.withOutput(cmd)
}

// fenceable are the named host, or all that the asked host has a device for.
func (p *program) fenceable(ctx context.Context, args []string) ([]string, error) {
	if len(args) > 0 {
		return args, nil
	}
	f, err := p.client().Fencing(ctx)
	if err != nil {
		return nil, err
	}
	if len(f.Devices) == 0 {
		return nil, console.Errorf(console.CodeRefused, "the host that was asked has no fence device in its configuration (fencing.hosts)")
	}
	var hosts []string
	for _, d := range f.Devices {
		hosts = append(hosts, d.Host)
	}
	return hosts, nil
}

func (p *program) memberResetCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "reset NAME",
		Short: "Let a host that is kept out in again",
		Long: `Let a host in again that the cluster keeps out: because it has lost guests by faults again and again, or because
the host that was fencing it has died over it. Find out first what was wrong with it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			out, err := p.client().ResetMember(ctx, args[0], console.ResetMemberRequest{Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), out, func(w io.Writer) {
				for _, o := range out {
					fmt.Fprintf(w, "%s%s is not kept out for %s any more\n", map[bool]string{true: "would be done: "}[dryRun], o.Host, o.Kind)
				}
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}
