package sim

import (
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// eventLog is a machine's log of what it did, as far as rules are about it.
type eventLog struct {
	broken bool // its disk is full, or gone
	lines  []line
	missed []line // that could not be written; what they tell of did not wait for them
}

// line is an event in a log.
type line struct {
	kind  lineKind
	guest *guest
	party pact.Party
	term  pact.Term
}

type lineKind string

const (
	lineRole     lineKind = "role-change"
	lineStart    lineKind = "guest-start"
	lineTakeover lineKind = "takeover"
	lineResync   lineKind = "resync"
	lineOperator lineKind = "operator"
)

// log writes a line before what it announces is done; false: it can't, and that must not be done.
func (l *eventLog) log(x line) bool {
	if l.broken {
		return false
	}
	l.lines = append(l.lines, x)
	return true
}

// note writes a line when the log has time; one of a process that ends before is lost.
func (l *eventLog) note(w *World, p *process, x line) {
	write := func() {
		if !l.broken {
			l.lines = append(l.lines, x)
		} else {
			l.missed = append(l.missed, x)
		}
	}
	if p == nil {
		w.after(w.small(), write)
	} else {
		p.after(w.small(), write)
	}
}

func (l *eventLog) has(x line) bool { return slices.Contains(l.lines, x) }

// tried says that the line is there, or could not be written.
func (l *eventLog) tried(x line) bool { return l.has(x) || slices.Contains(l.missed, x) }

// noteLimit is how long a line may take that follows what it tells of.
const noteLimit = 100 * time.Millisecond
