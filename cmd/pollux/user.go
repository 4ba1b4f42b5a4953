package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/console"
)

func (p *program) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user",
		Short: "Change who may use the API from outside",
		Long: `Change who may use the API from outside, with a token in place of root's Unix socket. A user has one role:

  viewer         looks at the cluster and its guests
  auditor        a viewer who also reads the event log and the list of users
  operator       starts, stops, moves, protects and resets guests, and reads the event log
  administrator  everything

The API is to be had where a member's configuration has an api_address.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(p.userAddCommand(), p.userListCommand(), p.userRemoveCommand())
	return cmd
}

func roleNames() string {
	names := make([]string, len(access.Roles))
	for i, r := range access.Roles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

func (p *program) userAddCommand() *cobra.Command {
	var role string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "add NAME --role ROLE",
		Short: "Make a user, and print its token, this once",
		Long: `Make a user, and print its token. The cluster keeps only the token's hash: nobody can print it again. Who loses
it, or fears that it is known, has the user removed and made anew. Standard output gets the token alone:

  pollux user add jane --role operator > jane.token
  pollux --api a@10.77.1.1:7702 --api-token-file jane.token status`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !access.Role(role).Valid() {
				return usagef("--role %s: it is needed, one of %s", role, roleNames())
			}
			ctx, cancel := ask(cmd)
			defer cancel()
			u, err := p.client().AddUser(ctx, console.AddUserRequest{Name: args[0], Role: access.Role(role), Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), u, func(w io.Writer) {
				if dryRun {
					fmt.Fprintf(w, "would be done: %s %s is added\n", u.Role, u.Name)
					return
				}
				fmt.Fprintln(w, u.Token)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "what the user may do: "+roleNames())
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(strings.Split(roleNames(), ", "), cobra.ShellCompDirectiveNoFileComp)))
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}

func (p *program) userListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the users of the API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			all, err := p.client().Users(ctx)
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), all, func(w io.Writer) {
				rows := [][]string{{"NAME", "ROLE", "CREATED"}}
				for _, u := range all {
					rows = append(rows, []string{u.Name, string(u.Role), u.Created.Local().Format(time.DateTime)})
				}
				table(w, rows)
			})
		},
	}
	return p.withOutput(cmd)
}

func (p *program) userRemoveCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a user's token back",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := ask(cmd)
			defer cancel()
			u, err := p.client().RemoveUser(ctx, args[0], console.RemoveUserRequest{Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), u, func(w io.Writer) {
				fmt.Fprintf(w, "%s%s %s is removed\n", map[bool]string{true: "would be done: "}[dryRun], u.Role, u.Name)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}
