package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster"
	"github.com/pollux-ha/pollux/vmm"
)

// version is set by the build from git.
var version = "dev"

func init() { cluster.Version, cluster.HostCPU = version, vmm.HostCPU }

func (p *program) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Tell this program's version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string `json:"version"`
				Stream  int    `json:"stream_version"` // of the checkpoint stream
				Go      string `json:"go"`
				System  string `json:"system"`
			}{version, checkpoint.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return p.write(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "pollux %s (checkpoint stream %d, %s, %s)\n", v.Version, v.Stream, v.Go, v.System)
			})
		},
	}
	return p.withOutput(cmd)
}
