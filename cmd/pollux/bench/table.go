package bench

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Phases in the order in which they follow one another.
var (
	epochPhases    = []string{"stop", "harvest", "copy", "state", "clear", "resume", "pause", "encode", "send", "ack", "release"}
	takeoverPhases = []string{"detect", "decide", "activate", "announce", "the rest"}
	phaseOrder     = slices.Concat(epochPhases, takeoverPhases)
)

// WriteTable writes the report for people: the rows, then where the time went, then the notes.
func (r *Report) WriteTable(w io.Writer) {
	fmt.Fprintf(w, "%s\ncommit %s, %s\n\n", r.Machine, r.Commit, r.Started.Format("2006-01-02 15:04:05 MST"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tCASE\tVALUE\tP50\tP90\tP99\tSAMPLES\tBASELINE\tRATIO\tTARGET\tREACHED")
	for _, row := range r.Rows {
		fmt.Fprintln(t, strings.Join([]string{
			row.ID, row.Case, number(row.Value) + " " + row.Unit, number(row.P50), number(row.P90), number(row.P99),
			strconv.Itoa(row.Samples), optional(row.Baseline), optional(row.Ratio), row.target(), row.verdict(),
		}, "\t"))
	}
	t.Flush()
	r.writePhases(w)
	r.writeNotes(w)
}

// writeNotes writes each note once, with the rows that it belongs to.
func (r *Report) writeNotes(w io.Writer) {
	cases := make(map[[2]string][]string)
	var order [][2]string
	for _, row := range r.Rows {
		if row.Note == "" {
			continue
		}
		key := [2]string{row.ID, row.Note}
		if cases[key] == nil {
			order = append(order, key)
		}
		cases[key] = append(cases[key], row.Case)
	}
	for _, key := range order {
		fmt.Fprintf(w, "\n%s, %s: %s.\n", key[0], strings.Join(cases[key], "; "), key[1])
	}
}

func (r *Report) writePhases(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := false
	for _, row := range r.Rows {
		if len(row.Phases) == 0 {
			continue
		}
		if !head {
			fmt.Fprintln(w)
			fmt.Fprintln(t, "ID\tCASE\tPHASE\tP50\tP90\tP99\tSAMPLES")
			head = true
		}
		for _, name := range slices.SortedFunc(maps.Keys(row.Phases), comparePhases) {
			p := row.Phases[name]
			fmt.Fprintf(t, "%s\t%s\t%s\t%s %s\t%s\t%s\t%d\n", row.ID, row.Case, name, number(p.P50), p.Unit, number(p.P90), number(p.P99), p.Samples)
		}
	}
	t.Flush()
}

func comparePhases(a, b string) int {
	place := func(name string) int {
		if i := slices.Index(phaseOrder, name); i >= 0 {
			return i
		}
		return len(phaseOrder)
	}
	return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b))
}

func (r Row) target() string {
	if r.Target == nil {
		return "-"
	}
	if r.AtLeast {
		return ">= " + number(*r.Target)
	}
	return "<= " + number(*r.Target)
}

func (r Row) verdict() string {
	switch {
	case r.Reached == nil:
		return "-"
	case *r.Reached:
		return "yes"
	}
	return "NO"
}

func optional(v *float64) string {
	if v == nil {
		return "-"
	}
	return number(*v)
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
