package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/console"
)

func (p *program) faultCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Have something break, to see that nothing comes of it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	inject := &cobra.Command{
		Use:   "inject",
		Short: "Have something break",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	inject.AddCommand(p.faultMemoryCommand())
	cmd.AddCommand(inject)
	return cmd
}

func (p *program) faultMemoryCommand() *cobra.Command {
	var o order
	q := console.FaultRequest{Fault: "memory"}
	var page string
	var yes bool
	cmd := p.mutation("memory", "Damage a page of a guest's memory", `Have a page of a guest's memory behave as if its hardware were damaged (an uncorrectable error). A protected guest
goes on: with its replica's copy of the page, or, where the page was written since the last checkpoint, on the replica's host. A guest
without a replica dies of it once it touches the page. A guest that was not created with --test asks first.`, &o, false,
		func(ctx context.Context, cmd *cobra.Command, name string) (*console.Guest, error) {
			if page != "random" {
				n, err := strconv.ParseUint(page, 10, 31)
				if err != nil {
					return nil, usagef("--page %s: a number, or random", page)
				}
				i := int(n)
				q.Page = &i
			}
			q.Operator, q.DryRun = operator(), o.dryRun
			g, err := p.client().Guest(ctx, name)
			if err != nil {
				return nil, err
			}
			if !g.Spec.Test {
				if q.Confirm, err = confirm(cmd, yes || o.dryRun, "guest", name, name+" is not a test guest, and may be lost by a memory error"); err != nil {
					return nil, err
				}
			}
			return p.client().Fault(ctx, name, q)
		})
	f := cmd.Flags()
	f.StringVar(&page, "page", "random", "the page's number in the guest's memory, from 0, or random")
	f.StringVar(&q.State, "state", "", "clean or dirty: whether it has been written since the last checkpoint (default: as it is)")
	f.StringVar(&q.Copy, "host", "primary", "whose copy: primary or replica")
	f.BoolVar(&q.Quiet, "quiet", false, "report nothing: the guest finds the error when it touches the page")
	f.BoolVar(&yes, "yes", false, "confirm without being asked that the guest may be lost")
	return cmd
}
