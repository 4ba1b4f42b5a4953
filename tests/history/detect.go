package history

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Report is the judgement of a history.
type Report struct {
	Operations   int `json:"operations"`
	Acknowledged int `json:"acknowledged_writes"`
	Unanswered   int `json:"unanswered"` // requests whose effect nobody knows

	// LostWrites counts acknowledged writes that a later read doesn't show and nothing explains.
	LostWrites int `json:"lost_acknowledged_writes"`
	// StaleReads counts reads that show less than what had been acknowledged, or been seen, before
	// they began.
	StaleReads int `json:"stale_reads"`
	// CorruptReads counts replies that no order of the requests explains: a value nobody wrote.
	CorruptReads int `json:"corrupt_reads"`
	// Duplicated counts writes that took effect more than once.
	Duplicated int `json:"duplicated_writes"`

	Linearizable Linearizability `json:"linearizable"`

	// Findings describes the first of them for people.
	Findings []string `json:"findings,omitempty"`
}

// Good reports that nothing at all is wrong. An undecided linearizability isn't good.
func (r *Report) Good() bool {
	return r.LostWrites == 0 && r.StaleReads == 0 && r.CorruptReads == 0 && r.Duplicated == 0 && r.Linearizable == Linearizable
}

const mostFindings = 20

func (r *Report) find(format string, args ...any) {
	if len(r.Findings) < mostFindings {
		r.Findings = append(r.Findings, fmt.Sprintf(format, args...))
	}
}

// Check judges a history. Lost writes can only be found where the keys were read again after
// everything else; see Workload.Verify. limit bounds the linearizability check.
func Check(operations []Operation, limit time.Duration) Report {
	r := Report{Operations: len(operations)}
	byKey := make(map[string][]*Operation)
	for i := range operations {
		o := &operations[i]
		byKey[o.Key] = append(byKey[o.Key], o)
		switch {
		case !o.Known():
			r.Unanswered++
		case o.Kind != Get:
			r.Acknowledged++
		}
	}
	keys := make([]string, 0, len(byKey))
	for key := range byKey {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		history := byKey[key]
		var sets, incrs, appends int
		for _, o := range history {
			switch o.Kind {
			case Set:
				sets++
			case Incr:
				incrs++
			case Append:
				appends++
			}
		}
		switch {
		case sets > 0 && incrs == 0 && appends == 0:
			r.register(key, history)
		case incrs > 0 && sets == 0 && appends == 0:
			r.counter(key, history)
		case appends > 0 && sets == 0 && incrs == 0:
			r.text(key, history)
		}
		// Mixed keys, and keys that were only read, are left to the linearizability check.
	}
	var bad []string
	r.Linearizable, bad = CheckLinearizable(operations, limit)
	for _, key := range bad {
		r.find("the history of %s is not linearizable", key)
	}
	return r
}

// reads returns the answered GETs in the order of their calls.
func reads(history []*Operation) []*Operation {
	var found []*Operation
	for _, o := range history {
		if o.Kind == Get && o.Known() {
			found = append(found, o)
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].Call < found[j].Call })
	return found
}

// register judges a key that is only SET and read.
func (r *Report) register(key string, history []*Operation) {
	writes := make(map[string]*Operation)
	for _, o := range history {
		if o.Kind == Set {
			writes[o.Value] = o
		}
	}
	all := reads(history)

	// A write is established at the end of the first reply that proves it: its own, or a read's.
	established := make(map[*Operation]time.Duration, len(writes))
	for _, w := range writes {
		if w.Known() {
			established[w] = w.Return
		}
	}
	lastSeen := make(map[*Operation]time.Duration) // latest call of a read that shows it
	for _, g := range all {
		if g.Absent {
			continue
		}
		w, ok := writes[g.Text]
		if !ok {
			r.CorruptReads++
			r.find("a value that nobody wrote: %s", g)
			continue
		}
		if w.Call > g.Return {
			r.CorruptReads++
			r.find("a value before it was written: %s, written by %s", g, w)
		}
		if e, ok := established[w]; !ok || g.Return < e {
			established[w] = g.Return
		}
		lastSeen[w] = max(lastSeen[w], g.Call)
	}

	// In the order in which they were established, with the latest call so far.
	order := make([]*Operation, 0, len(established))
	for w := range established {
		order = append(order, w)
	}
	sort.Slice(order, func(i, j int) bool { return established[order[i]] < established[order[j]] })
	latestCall := make([]time.Duration, len(order))
	for i, w := range order {
		latestCall[i] = w.Call
		if i > 0 {
			latestCall[i] = max(latestCall[i], latestCall[i-1])
		}
	}

	lost := make(map[*Operation]bool)
	for _, g := range all {
		shownEnd := time.Duration(-1) // an absent value was there before everything
		if !g.Absent {
			w, ok := writes[g.Text]
			if !ok {
				continue
			}
			if shownEnd = w.Return; !w.Known() {
				continue // it may take effect at any time: never stale
			}
		}
		before := sort.Search(len(order), func(i int) bool { return established[order[i]] >= g.Call })
		if before == 0 || latestCall[before-1] <= shownEnd {
			continue
		}
		r.StaleReads++
		r.find("a stale read: %s", g)
		for _, w := range order[:before] {
			if w.Known() && w.Return < g.Call && w.Call > shownEnd && lastSeen[w] <= g.Call && !lost[w] {
				lost[w] = true
			}
		}
	}
	for _, w := range history {
		if lost[w] {
			r.LostWrites++
			r.find("an acknowledged write is lost: %s", w)
		}
	}
}

// counter judges a key that is only INCRemented and read.
func (r *Report) counter(key string, history []*Operation) {
	type reading struct {
		o *Operation
		n int64
	}
	var readings []reading // INCR's replies too
	var incrs []*Operation
	seen := make(map[int64]*Operation)
	repeated, acknowledged := 0, 0
	for _, o := range history {
		switch {
		case o.Kind == Incr:
			incrs = append(incrs, o)
			if !o.Known() {
				continue
			}
			acknowledged++
			readings = append(readings, reading{o, o.Number})
			if other, ok := seen[o.Number]; ok {
				repeated++
				r.find("the same number twice: %s; %s", other, o)
			}
			seen[o.Number] = o
		case o.Known():
			n := int64(0)
			if !o.Absent {
				var err error
				if n, err = strconv.ParseInt(o.Text, 10, 64); err != nil {
					r.CorruptReads++
					r.find("not a number: %s", o)
					continue
				}
			}
			readings = append(readings, reading{o, n})
		}
	}

	// What each reading must show at least: all INCRs answered before its call, and every number
	// seen before it.
	byReturn := append([]reading(nil), readings...)
	sort.Slice(byReturn, func(i, j int) bool { return byReturn[i].o.Return < byReturn[j].o.Return })
	least := make([]int64, len(byReturn)+1)
	answered := int64(0)
	for i, x := range byReturn {
		if x.o.Kind == Incr {
			answered++
		}
		least[i+1] = max(least[i], answered, x.n)
	}
	// And at most: all INCRs called before its return.
	sort.Slice(incrs, func(i, j int) bool { return incrs[i].Call < incrs[j].Call })
	final := reading{n: -1}
	for _, x := range readings {
		before := sort.Search(len(byReturn), func(i int) bool { return byReturn[i].o.Return >= x.o.Call })
		floor := least[before]
		if x.o.Kind == Incr {
			floor++
		}
		if x.n < floor {
			r.StaleReads++
			r.find("a stale counter, at least %d expected: %s", floor, x.o)
		}
		if most := sort.Search(len(incrs), func(i int) bool { return incrs[i].Call > x.o.Return }); x.n > int64(most) {
			r.Duplicated++
			r.find("more than the %d increments that had been asked for: %s", most, x.o)
		}
		if final.o == nil || x.o.Call > final.o.Call {
			final = x
		}
	}
	missing := 0
	if final.o != nil {
		for _, o := range incrs {
			if o.Known() && o.Return < final.o.Call {
				missing++
			}
		}
		missing = max(0, missing-int(final.n))
	}
	// Each is a lower bound; a number given twice and a final count that is too low may be the same loss.
	if lost := max(missing, repeated); lost > 0 {
		r.LostWrites += lost
		r.find("%d acknowledged increments of %s are lost", lost, key)
	}
}

// text judges a key that is only APPENDed to and read.
func (r *Report) text(key string, history []*Operation) {
	pieces := make(map[string]*Operation)
	var acknowledged []*Operation
	for _, o := range history {
		if o.Kind == Append {
			pieces[o.Value] = o
			if o.Known() {
				acknowledged = append(acknowledged, o)
			}
		}
	}
	sort.Slice(acknowledged, func(i, j int) bool { return acknowledged[i].Return < acknowledged[j].Return })

	lost := make(map[*Operation]bool)
	for _, g := range reads(history) {
		shown := make(map[string]bool)
		for rest := g.Text; rest != ""; {
			end := strings.IndexByte(rest, ';') + 1
			if end == 0 {
				end = len(rest)
			}
			p := rest[:end]
			rest = rest[end:]
			switch o, ok := pieces[p]; {
			case !ok || o.Call > g.Return:
				r.CorruptReads++
				r.find("a piece %q that nobody appended: %s", p, g)
			case shown[p]:
				r.Duplicated++
				r.find("the piece %q twice: %s", p, g)
			}
			shown[p] = true
		}
		stale := false
		for _, o := range acknowledged {
			if o.Return >= g.Call {
				break
			}
			if shown[o.Value] {
				delete(lost, o)
				continue
			}
			stale = true
			lost[o] = true
		}
		if stale {
			r.StaleReads++
			r.find("a stale text: %s", g)
		}
	}
	for _, o := range acknowledged {
		if lost[o] {
			r.LostWrites++
			r.find("an acknowledged append is lost: %s", o)
		}
	}
}
