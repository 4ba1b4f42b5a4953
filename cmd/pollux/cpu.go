package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/cpu"
)

const cpuHelp = "what the guest's CPUs are: pair (what all its hosts have), host (all that the first one has), x86-64-v2, x86-64-v3 or x86-64-v4"

func (p *program) guestCPUCommand() *cobra.Command {
	var o order
	var r console.SetCPURequest
	cmd := p.mutation("cpu", "Choose a stopped guest's CPU anew", `Choose a stopped guest's CPU anew, from what its hosts have by now. A guest keeps the CPU that was
computed when it was created, through all starts and on all its hosts; this is the only way to another
one: after a host was replaced, or its kernel or microcode gave it other features.

An operating system may mind another CPU as it would on another machine.`, &o, false,
		func(ctx context.Context, _ *cobra.Command, name string) (*console.Guest, error) {
			if _, err := cpu.ParsePolicy(r.Policy); err != nil {
				return nil, usagef("--cpu: %w", err)
			}
			r.DryRun, r.Operator = o.dryRun, operator()
			return p.client().SetCPU(ctx, name, r)
		})
	cmd.Flags().StringVar(&r.Policy, "cpu", "", cpuHelp+"; without it the guest's own, computed again")
	return cmd
}

// cpuCommand tells what CPUs the hosts have.
func (p *program) cpuCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cpu",
		Short: "Tell what CPUs the hosts can give to guests",
		Long: `Tell what CPU each host can give to guests, as it has registered it, and which features not all of
them have. A guest of --cpu pair is shown what is common to its hosts. With -o json, all features.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.status(cmd.Context())
			if err != nil {
				return err
			}
			hosts := map[string]*console.CPU{}
			for _, m := range s.Members {
				if m.CPU != nil {
					hosts[m.Name] = m.CPU
				}
			}
			return p.write(cmd.OutOrStdout(), hosts, func(w io.Writer) { cpuTable(w, hosts) })
		},
	}
	return p.withOutput(cmd)
}

func cpuTable(w io.Writer, hosts map[string]*console.CPU) {
	rows := [][]string{{"NAME", "VENDOR", "FAMILY/MODEL/STEPPING", "LEVEL", "XCR0", "ADDRESS BITS", "TSC kHz", "KERNEL", "CPU"}}
	var names []string
	for name := range hosts {
		names = append(names, name)
	}
	slices.Sort(names)
	var common, all []string
	first := true
	for _, name := range names {
		c := hosts[name]
		if c.Problem != "" {
			rows = append(rows, []string{name, "", "", "", "", "", "", "", c.Problem})
			continue
		}
		tsc := fmt.Sprint(c.TSCKHz)
		if c.TSCScaling {
			tsc += ", scales"
		}
		rows = append(rows, []string{name, c.Vendor, fmt.Sprintf("%#x/%#x/%d", c.Family, c.Model, c.Stepping), c.Level, c.XCR0, fmt.Sprint(c.PhysBits), tsc, c.Kernel, c.Brand})
		if first {
			common, first = slices.Clone(c.Features), false
		}
		common = slices.DeleteFunc(common, func(f string) bool { return !slices.Contains(c.Features, f) })
		for _, f := range c.Features {
			if !slices.Contains(all, f) {
				all = append(all, f)
			}
		}
	}
	table(w, rows)
	if first {
		return
	}
	fmt.Fprintf(w, "\n%d features are common to all\n", len(common))
	for _, name := range names {
		if c := hosts[name]; c.Problem == "" {
			lacks := slices.DeleteFunc(slices.Clone(all), func(f string) bool { return slices.Contains(c.Features, f) })
			if len(lacks) > 0 {
				fmt.Fprintf(w, "%s lacks %s\n", name, strings.Join(lacks, " "))
			}
		}
	}
}

// describeCPU says what a guest's CPU is in one line.
func describeCPU(c *console.CPU) string {
	if c.Problem != "" {
		return fmt.Sprintf("CPU %s: %s", c.Policy, c.Problem)
	}
	return fmt.Sprintf("CPU %s: %s (%s, family %#x, model %#x, stepping %d), %s, %d features, %d kHz",
		c.Policy, c.Brand, c.Vendor, c.Family, c.Model, c.Stepping, c.Level, len(c.Features), c.TSCKHz)
}

// model is the CPU of "vm run"; nil is all that this host has.
func (o vmOptions) model() (*cpu.Model, error) {
	policy, err := cpu.ParsePolicy(o.cpu)
	if err != nil {
		return nil, usagef("--cpu: %w", err)
	}
	if policy == cpu.HostP || policy == cpu.Pair {
		return nil, nil
	}
	host, err := vmm.HostCPU()
	if err != nil {
		return nil, err
	}
	host.Name = "this host"
	m, err := cpu.For(policy, []cpu.Host{host})
	if err != nil {
		return nil, err
	}
	return &m, nil
}
