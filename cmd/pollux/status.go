package main

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/console"
)

func (p *program) statusCommand() *cobra.Command {
	var watch, check bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell how the cluster and its guests are",
		Long: `Tell how the cluster and its guests are, as the daemon on this machine sees it.

With --check the exit code tells too, for monitoring: 4 without a majority, 5 if a guest that should
run isn't protected.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 50*time.Millisecond {
				return usagef("--interval %v: at least 50ms", interval)
			}
			if !watch {
				s, err := p.status(cmd.Context())
				if err != nil {
					return err
				}
				if err := p.write(cmd.OutOrStdout(), s, func(w io.Writer) { statusTable(w, s) }); err != nil || !check {
					return err
				}
				return checkStatus(s)
			}
			return p.watch(cmd, interval)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "with --watch: how often")
	cmd.Flags().BoolVar(&check, "check", false, "fail if something needs attention")
	return p.withOutput(cmd)
}

func (p *program) status(ctx context.Context) (*console.ClusterStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return p.client().Status(ctx)
}

// watch shows the status until it is interrupted. A daemon that doesn't answer for a while is part
// of what is to be seen, so it doesn't end the watch.
func (p *program) watch(cmd *cobra.Command, interval time.Duration) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		s, err := p.status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if p.output == formatTable {
			fmt.Fprintf(w, "\x1b[H\x1b[2J%s\n\n", time.Now().Format(time.TimeOnly))
		}
		switch {
		case err != nil && p.output == formatTable:
			fmt.Fprintln(w, err)
		case err != nil:
			fmt.Fprintln(cmd.ErrOrStderr(), "pollux:", err)
		default:
			if p.output == formatYAML {
				fmt.Fprintln(w, "---")
			}
			if err := p.write(w, s, func(w io.Writer) { statusTable(w, s) }); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func checkStatus(s *console.ClusterStatus) error {
	if !s.Quorum.Healthy {
		return console.Errorf(console.CodeNoQuorum, "no majority: %d of %d voters answer", s.Quorum.Reachable, s.Quorum.Voters)
	}
	for _, g := range s.Guests {
		if g.Desired == "running" && g.State != "protected" && len(g.Spec.Hosts) > 1 {
			return console.Errorf(console.CodeUnprotected, "%s", describeGuest(&g))
		}
	}
	return nil
}

func statusTable(w io.Writer, s *console.ClusterStatus) {
	leader := s.Leader
	if leader == "" {
		leader = "none"
	}
	health := "healthy"
	if !s.Quorum.Healthy {
		health = "NO MAJORITY"
	}
	fmt.Fprintf(w, "cluster %s, seen from %s: %s, %d of %d voters reachable (%d needed), leader %s\n\n",
		s.Cluster, s.Host, health, s.Quorum.Reachable, s.Quorum.Voters, s.Quorum.Needed, leader)
	rows := [][]string{{"NAME", "ROLE", "STATE", "VOTER", "ADDRESS", "VERSION"}}
	for _, m := range s.Members {
		voter := map[bool]string{true: "yes", false: "no"}[m.Voter]
		if m.Leader {
			voter = "leader"
		}
		rows = append(rows, []string{m.Name, m.Role, m.State, voter, m.Address, m.Version})
	}
	table(w, rows)
	fmt.Fprintln(w)
	guestTable(w, s.Guests)
	for _, a := range s.Alarms {
		fmt.Fprintln(w, "ALARM:", a)
	}
}

func guestTable(w io.Writer, guests []console.Guest) {
	rows := [][]string{{"NAME", "STATE", "PRIMARY", "REPLICA", "TERM", "EPOCH", "ON THE WIRE", "DETAIL"}}
	for _, g := range guests {
		epoch, wire := "", ""
		if s := primaryStatus(&g); s != nil {
			epoch, wire = fmt.Sprint(s.EpochAcked), bytesText(s.WireBytes)
		}
		rows = append(rows, []string{g.Name, g.State, g.Primary, g.Replica, fmt.Sprint(g.Term), epoch, wire, g.Detail})
	}
	table(w, rows)
}

// primaryStatus is what the primary's process last said of itself; nil: nothing.
func primaryStatus(g *console.Guest) *link.Status {
	for _, p := range g.Processes {
		if p.Status != nil && p.Status.Role == link.RolePrimary && p.Host == g.Primary {
			return p.Status
		}
	}
	return nil
}

func guestDetails(w io.Writer, g *console.Guest) {
	fmt.Fprintln(w, describeGuest(g))
	fmt.Fprintf(w, "  wanted: %s; current disk: %s; hosts: %s\n", g.Desired, dash(g.CurrentDisk), strings.Join(g.Spec.Hosts, ", "))
	from := "kernel " + g.Spec.Kernel
	if g.Spec.Firmware != "" {
		from = "firmware " + g.Spec.Firmware
	}
	fmt.Fprintf(w, "  %d CPUs, %s memory, %d disks, %d network cards, %s\n",
		g.Spec.CPUs, bytesText(g.Spec.MemoryBytes), len(g.Spec.Disks), len(g.Spec.Nets), from)
	if c := g.CPU; c != nil {
		fmt.Fprintln(w, " ", describeCPU(c))
	}
	for _, p := range g.Processes {
		fmt.Fprintf(w, "\nprocess %d on %s (%s)", p.PID, p.Host, p.Incarnation)
		s := p.Status
		if s == nil {
			fmt.Fprintln(w, ": has not said anything yet")
			continue
		}
		fmt.Fprintf(w, ": %s, %s, term %d\n", s.Role, s.Mode, s.Term)
		if s.Detail != "" {
			fmt.Fprintln(w, " ", s.Detail)
		}
		fmt.Fprintf(w, "  epochs: %d captured, %d acknowledged, %d durable; %d in all\n", s.EpochCaptured, s.EpochAcked, s.EpochDurable, s.Epochs)
		fmt.Fprintf(w, "  dirtied %s, on the wire %s, frames released %d, held %d\n",
			bytesText(s.DirtyBytes), bytesText(s.WireBytes), s.FramesReleased, s.FramesHeld)
		if s.Confinement != "" {
			fmt.Fprintf(w, "  confinement: %s\n", s.Confinement)
		}
		if s.Balloon != nil {
			fmt.Fprintln(w, " ", describeBalloon(s.Balloon))
		}
		if s.SyncTotal > 0 {
			fmt.Fprintf(w, "  synchronized %s of %s\n", bytesText(s.SyncDone), bytesText(s.SyncTotal))
		}
		rows := [][]string{{"  PHASE", "P50 µs", "P90 µs", "P99 µs", "MAX µs", "SAMPLES"}}
		names := make([]string, 0, len(s.TimingsUs))
		for name := range s.TimingsUs {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			t := s.TimingsUs[name]
			rows = append(rows, []string{"  " + name, fmt.Sprintf("%.0f", t.P50), fmt.Sprintf("%.0f", t.P90), fmt.Sprintf("%.0f", t.P99), fmt.Sprintf("%.0f", t.Max), fmt.Sprint(t.Samples)})
		}
		if len(rows) > 1 {
			table(w, rows)
		}
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
