package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// format is how results are written.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

func (f format) check() error {
	switch f {
	case "", formatTable, formatJSON, formatYAML:
		return nil
	}
	return usagef("-o %s: table, json or yaml", f)
}

// must is for calls that fail only where the program itself is wrong.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// withOutput gives a command the flag -o.
func (p *program) withOutput(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP((*string)(&p.output), "output", "o", string(formatTable), "how the result is written: table, json or yaml")
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// write writes v as JSON or YAML, or calls table.
func (p *program) write(w io.Writer, v any, table func(io.Writer)) error {
	switch p.output {
	case formatJSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case formatYAML:
		return writeYAML(w, v)
	}
	table(w)
	return nil
}

// table writes aligned columns; the first row is the heading.
func table(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			if cell == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// bytesText writes a size as people say it: 1536 is "1.5 KiB".
func bytesText(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for v >= unit && i < 4 {
		v /= unit
		i++
	}
	s := strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	return s + " " + []string{"KiB", "MiB", "GiB", "TiB", "PiB"}[i]
}
