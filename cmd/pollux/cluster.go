package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pki"
	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", defaultConfig, "the daemon's configuration file")
	must(cmd.MarkFlagFilename("config", "toml"))
}

func (p *program) initCommand() *cobra.Command {
	var path string
	var dryRun bool
	var admit []string
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Found a cluster with this machine as its first host",
		Long: `Found a cluster with this machine as its first host: make the cluster's certificate authority and
this host's certificate, and a join token for each machine named with --admit. Start the daemon
(pollux host) afterwards, and let the others join there (pollux join). Further tokens come from
pollux token.

  pollux init --admit b=host --admit w=witness`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			for _, a := range admit {
				if name, role, _ := strings.Cut(a, "="); name == "" || !pki.Role(role).Valid() {
					return usagef("--admit %s: NAME=host or NAME=witness", a)
				}
			}
			if dryRun {
				if entries, err := os.ReadDir(cfg.PKIDir()); err == nil && len(entries) > 0 {
					return fmt.Errorf("%s is there already: this machine belongs to a cluster", cfg.PKIDir())
				}
				fmt.Fprintf(cmd.OutOrStdout(), "would be done: a certificate authority, and the certificate of host %s, in %s\n", cfg.Name, cfg.PKIDir())
				return nil
			}
			founded, err := cluster.Init(cfg)
			if err != nil {
				return err
			}
			r := initResult{InitResult: *founded, Tokens: make(map[string]string)}
			for _, a := range admit {
				name, role, _ := strings.Cut(a, "=")
				if r.Tokens[name], err = cluster.Admit(cfg, name, pki.Role(role), valid); err != nil {
					return err
				}
			}
			return p.write(cmd.OutOrStdout(), r, func(w io.Writer) {
				fmt.Fprintf(w, "cluster %s founded; its certificate authority's fingerprint is %s\n", r.ClusterID, r.CAFingerprint)
				for _, name := range slices.Sorted(maps.Keys(r.Tokens)) {
					fmt.Fprintf(w, "token for %s, good once and for %v: %s\n", name, valid, r.Tokens[name])
				}
			})
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	cmd.Flags().StringArrayVar(&admit, "admit", nil, "a machine that will join, NAME=host or NAME=witness: print a token for it; may be repeated")
	cmd.Flags().DurationVar(&valid, "valid", time.Hour, "how long the tokens are good")
	return p.withOutput(cmd)
}

// initResult is what pollux init tells.
type initResult struct {
	cluster.InitResult
	Tokens map[string]string `json:"tokens,omitempty"` // by the name of the machine
}

func (p *program) joinCommand() *cobra.Command {
	var path, tokenFile string
	var dryRun bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Take this machine into a cluster",
		Long: `Take this machine into a cluster with a token that ` + "`pollux token`" + ` has issued on one of its hosts.
The token is a secret: it comes from a file or from standard input, never from the command line.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			token, err := readToken(cmd.InOrStdin(), tokenFile)
			if err != nil {
				return err
			}
			if dryRun {
				fmt.Fprintf(cmd.OutOrStdout(), "would be done: join as %s; certificates into %s\n", cfg.Name, cfg.PKIDir())
				return nil
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			r, err := cluster.Join(ctx, cfg, token)
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), r, func(w io.Writer) {
				fmt.Fprintf(w, "joined cluster %s as the %s %s, let in by %s\n", r.ClusterID, r.Role, cfg.Name, r.Issuer)
			})
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file with the token, - for standard input")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to try")
	return p.withOutput(cmd)
}

const maxTokenBytes = 64 << 10

func readToken(stdin io.Reader, path string) (string, error) {
	if path == "" {
		return "", usagef("--token-file is needed: a file with the token, or - for standard input")
	}
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxTokenBytes))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", usagef("the token is empty")
	}
	return token, nil
}

func (p *program) tokenCommand() *cobra.Command {
	var role string
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "token NAME",
		Short: "Issue a token with which a machine may join",
		Long: `Issue a token with which the machine of this name may join the cluster, once. Standard output gets
the token alone, so that it can be sent on:

  pollux token b --role host | ssh b pollux join --token-file -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if role != "host" && role != "witness" {
				return usagef("--role %s: host or witness", role)
			}
			ctx, cancel := ask(cmd)
			defer cancel()
			t, err := p.client().Token(ctx, console.TokenRequest{Name: args[0], Role: role, ValidSeconds: valid.Seconds(), Operator: operator()})
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), t, func(w io.Writer) { fmt.Fprintln(w, t.Token) })
		},
	}
	cmd.Flags().StringVar(&role, "role", "host", "what it will be: host or witness")
	cmd.Flags().DurationVar(&valid, "valid", time.Hour, "how long the token is good")
	return p.withOutput(cmd)
}

func (p *program) memberCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "member",
		Short: "Change who belongs to the cluster",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		p.outCommand("remove", "Take a machine out of the cluster for good", `Take a machine out of the cluster for good. A voter that has lost its log must be removed, and then
joins as a new one.`, "This takes the machine out of the cluster for good"),
		p.outCommand("revoke", "Cut a machine off at once, as one that was stolen", `Take a machine out of the cluster and all its certificates back, at once and whatever it runs: as for one that
was stolen, or that somebody has broken into. Members refuse it from when they hear of it, and end the connections
that it has. To the guests that it runs or mirrors that is the loss of the host: protected ones are taken over. One
that runs there alone goes on there, out of reach, until the machine is switched off. Afterwards it can join only
anew, with a token.`, "This cuts the machine off at once, as if it had failed"),
		p.memberResetCommand(),
	)
	return cmd
}

// outCommand takes a machine out, one way or the other.
func (p *program) outCommand(use, short, long, danger string) *cobra.Command {
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:   use + " NAME",
		Short: short,
		Long:  long,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			typed, err := confirm(cmd, yes || dryRun, "machine", args[0], danger)
			if err != nil {
				return err
			}
			ctx, cancel := ask(cmd)
			defer cancel()
			m, err := p.client().RemoveMember(ctx, args[0], console.RemoveMemberRequest{Confirm: typed, Revoke: use == "revoke", Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), m, func(w io.Writer) {
				fmt.Fprintf(w, "%s%s %s is %sd\n", map[bool]string{true: "would be done: "}[dryRun], m.Role, m.Name, use)
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm without being asked")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}

func (p *program) hostCommand() *cobra.Command {
	return p.daemonCommand("host", "Run the daemon of a host", `Run the daemon of a host: control plane, membership, and the supervision of its guests. It goes on
until SIGTERM, and then gives the guests that it runs to their replicas, unless shutdown.guests in its configuration
says "stay". The guests have processes of their own, which outlive the daemon.`, runHost)
}

// runHost runs a host's daemon even where no guest can run for now: its vote counts all the same.
func runHost(ctx context.Context, cfg *config.Config) error {
	const unfit = "pollux: no guest can run on this host until this is put right:"
	if err := kvm.Check(); err != nil {
		fmt.Fprintln(os.Stderr, unfit, err)
	}
	if l, err := net.Listen("tcp", net.JoinHostPort(cfg.ReplicationAddress, "0")); err != nil {
		fmt.Fprintf(os.Stderr, "%s replication_address %s is not an address of this machine: %v\n", unfit, cfg.ReplicationAddress, err)
	} else {
		l.Close()
	}
	return cluster.RunHost(ctx, cfg)
}

func (p *program) witnessCommand() *cobra.Command {
	return p.daemonCommand("witness", "Run the daemon of a witness", `Run the daemon of a witness: a third voter, which runs no guest. It goes on until SIGTERM.`, cluster.RunWitness)
}

func (p *program) daemonCommand(use, short, long string, run func(context.Context, *config.Config) error) *cobra.Command {
	var path string
	var check bool
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			if check {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is good\n", path)
				return nil
			}
			return run(cmd.Context(), cfg)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&check, "check-config", false, "read the configuration and say whether it is good")
	return cmd
}
