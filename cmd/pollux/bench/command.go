package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// NewCommand is "pollux bench".
func NewCommand() *cobra.Command {
	var (
		only   []string
		output string
		quick  bool
		what   []metric
	)
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what protection costs on this machine",
		Long: `Measure the pause of a checkpoint, throughput and latency beside an unprotected guest's, takeovers and
switchovers, and the bytes on the wire. Every figure is taken beside its own baseline in the same run:
what counts is the ratio. The result goes to standard output, progress to standard error.

`,
		// Flags are judged with the arguments: what is wrong with them is wrong with the command line.
		Args: func(cmd *cobra.Command, args []string) (err error) {
			if output != "table" && output != "json" {
				return fmt.Errorf("-o %s: table or json", output)
			}
			if what, err = selected(only); err != nil {
				return err
			}
			return cobra.NoArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := &bench{report: newReport(), quick: quick, progress: cmd.ErrOrStderr(), began: time.Now()}
			err := b.run(cmd.Context(), what)
			if len(b.report.Rows) > 0 {
				if err := write(cmd.OutOrStdout(), b.report, output); err != nil {
					return err
				}
			}
			return err
		},
	}
	for _, m := range metrics() {
		cmd.Long += fmt.Sprintf("  %-11s %s\n", m.key(), m.about)
	}
	f := cmd.Flags()
	f.StringSliceVar(&only, "only", nil, "measure only these, for example P1,P4")
	f.StringVarP(&output, "output", "o", "table", "how the result is written: table or json")
	f.BoolVar(&quick, "quick", false, "take fewer samples")
	return cmd
}

func write(w io.Writer, r *Report, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	r.WriteTable(w)
	return nil
}
