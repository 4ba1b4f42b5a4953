package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
)

func (p *program) demoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See a guest outlive its host, on this machine",
		Long: `Set up a whole cluster on this machine, two hosts and a witness in namespaces of their own, run a
Redis server in a protected guest, put clients on it, and take the power from the host that runs it.

With --fault it does so unattended: it plays --rounds rounds of the fault at random moments, has all that
the clients saw checked, and ends with 1 if an acknowledged write was lost, a connection reset or a read
stale. Everything is gone when it ends, in whatever way; after a run that found something the logs are kept.

Faults: kill (the process that runs the guest), power (the host is gone at once), hang (all its processes
stop, and go on later), link (the replication network is cut), isolate (the host is cut off from everyone),
daemon (a host's daemon is killed alone, which no guest may notice).

It runs as root, or as a user who may use /dev/kvm and /dev/net/tun and make user namespaces.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Fault == "" {
				o.Rounds, o.Load = 1, true
			}
			if err := o.Validate(); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			if !lab.InSession() {
				if err := demo.Preflight(); err != nil {
					return err
				}
				code, err := lab.Isolate(cmd.Context())
				if err == nil && code != 0 {
					return &exitError{code: code} // the session has told why
				}
				return err
			}
			// With a machine-readable result, standard output is for that alone.
			progress := cmd.OutOrStdout()
			if p.output != formatTable {
				progress = cmd.ErrOrStderr()
			}
			result, err := demo.Run(cmd.Context(), o, progress)
			// An interrupted run has not been judged: nothing of it is a result.
			if result != nil && cmd.Context().Err() == nil {
				if err := p.write(cmd.OutOrStdout(), result, func(w io.Writer) { result.WriteText(w) }); err != nil {
					return err
				}
			}
			switch {
			case cmd.Context().Err() != nil:
				return errors.New("interrupted; everything is cleaned up")
			case err != nil:
				return err
			case !result.Good():
				return errors.New("the run is not as it must be; see the result")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar((*string)(&o.Fault), "fault", "", "run unattended with this fault: "+demo.FaultNames())
	f.IntVar(&o.Rounds, "rounds", 1, "with --fault: how many rounds")
	f.StringVar((*string)(&o.During), "during", string(demo.DuringNothing), "with --fault: what is going on when it comes: none, resync, switchover")
	f.StringVar((*string)(&o.Victim), "victim", string(demo.VictimPrimary), "with --fault: whom it hits: primary, replica, witness")
	f.DurationVar(&o.Silence, "silence", 0, "how long a host may be silent before its twin asks (the daemons' default)")
	f.BoolVar(&o.Twice, "twice", false, "with --fault: twice in a row, each round")
	f.BoolVar(&o.Load, "load", false, "with --fault: redis-benchmark runs all the time, too")
	f.Uint64Var(&o.Seed, "seed", 0, "of all random choices (0: draw one)")
	f.StringVar(&o.Dir, "dir", "", "where the demo's directory is made (the system's usual place for temporary files)")
	f.BoolVar(&o.Keep, "keep", false, "leave configurations and logs behind")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "have the daemons log everything")
	cmd.AddCommand(keeperCommand())
	return p.withOutput(cmd)
}

// keeperCommand is what the lab starts as the first process of a machine.
func keeperCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "keeper",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := lab.Keep(os.Stdin, os.Stdout); err != nil {
				return fmt.Errorf("keeper: %w", err)
			}
			return nil
		},
	}
	lab.KeeperCommand = []string{"demo", "keeper"}
	return cmd
}
