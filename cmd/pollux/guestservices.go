package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster/agent"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/console"
)

// guestAgentCommand is "pollux guest agent".
func (p *program) guestAgentCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "agent NAME " + strings.Join(agent.Commands(), "|"),
		Short: "Have the agent inside a guest do something",
		Long: `Have the agent inside a guest do something. It is QEMU's guest agent (Debian's package
qemu-guest-agent), which has to be installed and running in the guest; nothing in it has to be configured.

  ping           does it answer?
  info           which operating system the guest runs
  version        which agent it is, and what it can do
  freeze         flush the file systems and keep them from being written, for a consistent copy of a disk
  thaw           let them be written again
  freeze-status  "frozen" or "thawed"
  shutdown       shut the guest down from within, where the power button does not help`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return agent.Commands(), cobra.ShellCompDirectiveNoFileComp
			}
			return p.completeGuests(cmd, args, typed)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := agent.Check(args[1]); err != nil {
				return usagef("%w", err)
			}
			a, err := p.client().Agent(cmd.Context(), args[0], console.AgentRequest{Command: args[1], Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			return p.write(cmd.OutOrStdout(), a, func(w io.Writer) { writeAnswer(w, a, dryRun) })
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}

// writeAnswer writes an agent's answer for people.
func writeAnswer(w io.Writer, a *console.AgentAnswer, dryRun bool) {
	var text bytes.Buffer
	switch {
	case dryRun:
		fmt.Fprintf(w, "would be done: the agent of guest %s is told to %s\n", a.Guest, a.Command)
	case len(a.Answer) == 0 || string(a.Answer) == "{}" || json.Indent(&text, a.Answer, "", "  ") != nil:
		fmt.Fprintf(w, "guest %s, agent %s: done\n", a.Guest, a.Command)
	default:
		fmt.Fprintln(w, harmless(text.String()))
	}
}

// harmless is JSON in which nothing can move a terminal's cursor: it holds control characters below 0x20 in
// escaped form only, and the others not any more.
func harmless(text string) string {
	var b strings.Builder
	for _, r := range text {
		if r >= 0x7f && r < 0xa0 {
			fmt.Fprintf(&b, "\\u%04x", r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// guestBalloonCommand is "pollux guest balloon".
func (p *program) guestBalloonCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "balloon NAME SIZE|full",
		Short: "Ask a guest to keep only a part of its memory",
		Long: `Ask a guest to keep only SIZE of its memory and to give the rest back to both hosts; "full" returns all of
it. The guest does so as far and as soon as it can: pollux guest status tells how far it has come. The wish
outlives takeovers, switchovers and reboots of the guest, and ends when the guest is stopped.

Memory that the guest does not use goes back to the hosts in any case; a balloon takes what it would keep
for caches.`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: p.completeGuests,
		RunE: func(cmd *cobra.Command, args []string) error {
			keep, err := p.balloonSize(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			g, err := p.client().Balloon(cmd.Context(), args[0], console.BalloonRequest{MemoryBytes: keep, Operator: operator(), DryRun: dryRun})
			if err != nil {
				return err
			}
			return p.writeGuest(cmd.OutOrStdout(), g, dryRun)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and tell what would be done, and do nothing")
	return p.withOutput(cmd)
}

// balloonSize is what a guest is to keep, in bytes.
func (p *program) balloonSize(ctx context.Context, name, size string) (uint64, error) {
	if size == "full" {
		g, err := p.client().Guest(ctx, name)
		if err != nil {
			return 0, err
		}
		return g.Spec.MemoryBytes, nil
	}
	n, err := parseBytes(size)
	if err != nil {
		return 0, usagef("size %s: %w", size, err)
	}
	return n, nil
}

// describeBalloon says what a guest has of its memory, in one line.
func describeBalloon(b *link.Balloon) string {
	if !b.Driver {
		return fmt.Sprintf("memory: is to keep %s, and has no balloon driver", bytesText(b.Target))
	}
	s := "memory: keeps " + bytesText(b.Current)
	if b.Target != b.Current {
		s += fmt.Sprintf(" (on the way to %s)", bytesText(b.Target))
	}
	if b.Total > 0 {
		s += fmt.Sprintf("; the guest says: %s free, %s available of %s", bytesText(b.Free), bytesText(b.Available), bytesText(b.Total))
	}
	return s + fmt.Sprintf("; %s given back so far", bytesText(b.Discarded))
}
