package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/console"
)

func (p *program) certCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Look at the cluster's certificates, and renew this machine's",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := &cobra.Command{
		Use:   "list",
		Short: "Tell until when certificates are good",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			c, err := p.client().Certificates(ctx)
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), c, func(w io.Writer) {
				rows := [][]string{{"NAME", "UNTIL", "SERIAL", "ISSUER"}, {"(CA)", c.CA.NotAfter.Format(time.DateOnly), c.CA.Serial, ""}}
				for _, m := range c.Members {
					rows = append(rows, []string{m.Name, m.NotAfter.Format(time.DateOnly), m.Serial, map[bool]string{true: "yes"}[m.Issuer]})
				}
				table(w, rows)
			})
		},
	}
	cmd.AddCommand(p.withOutput(list), p.certRenewCommand())
	return cmd
}

func (p *program) certRenewCommand() *cobra.Command {
	var revokeOld, dryRun bool
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "Give this machine a new key and certificate",
		Long: `Give this machine a new key and certificate, without a restart. Daemons do that by themselves when a third of a
certificate's time is left. The host with the CA's key has to be there. Connections that are open go on with the old
one, which stays good until the machine is removed. With --revoke-old it is taken back at once, for a key that somebody
else may have: connections end and are made anew, and guests are without protection meanwhile.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			m, err := p.client().RenewCertificate(ctx, console.RenewRequest{RevokeOld: revokeOld, Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), m, func(w io.Writer) {
				if dryRun {
					fmt.Fprintf(w, "would be done: the certificate %s of %s is renewed\n", m.Serial, m.Name)
					return
				}
				fmt.Fprintf(w, "the certificate of %s is renewed; the new one, %s, is good until %s\n", m.Name, m.Serial, m.NotAfter.Format(time.DateOnly))
			})
		},
	}
	cmd.Flags().BoolVar(&revokeOld, "revoke-old", false, "take the old certificate back at once")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}
