package pact

import (
	"fmt"
)

// Apply carries out one committed command. It is deterministic, and total: a command that makes no
// sense is refused.
func (s *State) Apply(cmd Command, index uint64) Verdict {
	s.index = index
	switch cmd.Kind {
	case NoOp:
		return Verdict{Applied: true, Index: index}
	case Create:
		return s.create(cmd, index)
	case Delete:
		return s.delete(cmd, index)
	case KeepOut:
		return s.keepOut(cmd, index)
	case Readmit:
		return s.readmit(cmd, index)
	}
	g, ok := s.guests[cmd.Guest]
	if !ok {
		return Verdict{Reason: fmt.Sprintf("there is no guest %q", cmd.Guest), Index: index}
	}
	verdict := func(refused string, at uint64) Verdict {
		return Verdict{Applied: refused == "", Reason: refused, Assignment: g.Assignment.Clone(), Index: at}
	}
	if m, ok := recall(g.Recent, cmd.ID); ok {
		return verdict(again(m, cmd, &g.Assignment), m.Index)
	}
	a := g.Assignment.Clone()
	refused := s.keptOut(cmd)
	if refused == "" {
		refused = change(&a, cmd, s.floor)
	}
	if refused == "" {
		g.Assignment = a
	}
	if remembered(cmd.Kind) {
		g.Recent = remember(g.Recent, memory{
			ID: cmd.ID, Kind: cmd.Kind, Guest: cmd.Guest, By: cmd.By, Index: index, Term: g.Assignment.Term, Refused: refused,
		}, recentMax)
	}
	return verdict(refused, index)
}

// remembered says whether a command's ID is kept. The others may be repeated at will: they say what
// is so, and are judged anew each time.
func remembered(k Kind) bool {
	switch k {
	case Mark, Disclaim, Confirm:
		return false
	}
	return true
}

// again judges a duplicate: a refused command stays refused, an applied one counts as applied while the
// state is still its result.
func again(m memory, cmd Command, a *Assignment) string {
	switch {
	case m.Kind != cmd.Kind || m.By != cmd.By:
		return fmt.Sprintf("the ID %s belongs to another command (%s by %v)", cmd.ID, m.Kind, m.By)
	case m.Refused != "":
		return m.Refused
	case cmd.Kind == SetDesired && cmd.Desired != a.Desired, cmd.Kind != SetDesired && m.Term != a.Term,
		cmd.Kind == SetCPU && (cmd.CPU == nil || *cmd.CPU != a.Spec.CPU):
		return fmt.Sprintf("it was applied at index %d and has been superseded since (term %d)", m.Index, a.Term)
	}
	return ""
}

// change applies a command to an existing guest's assignment, or says why it is refused.
func change(a *Assignment, cmd Command, floor Term) (refused string) {
	// An operator's will is of no term; whoever names one means it.
	if cmd.Kind == SetDesired && cmd.Term == 0 {
		return setDesired(a, cmd)
	}
	if cmd.Term != a.Term {
		return fmt.Sprintf("it names term %d, the guest is at term %d (%s, primary %v)", cmd.Term, a.Term, a.Mode, a.Primary)
	}
	switch cmd.Kind {
	case SetDesired:
		return setDesired(a, cmd)
	case SetCPU:
		return setCPU(a, cmd)
	case Start:
		return start(a, cmd, floor)
	case Stop:
		return stop(a, cmd)
	case Protect:
		return protect(a, cmd)
	case Promote:
		return promote(a, cmd)
	case GoSolo:
		return goSolo(a, cmd)
	case Surrender:
		return surrender(a, cmd)
	case Switchover:
		return switchover(a, cmd)
	case Cancel:
		return cancel(a, cmd)
	case Mark:
		return mark(a, cmd)
	case Disclaim:
		return disclaim(a, cmd)
	case Confirm:
		return byPrimary(a, cmd)
	}
	return fmt.Sprintf("there is no command %q", cmd.Kind)
}

// byPrimary refuses what is not said by the living primary of a running guest.
func byPrimary(a *Assignment, cmd Command) string {
	switch {
	case !a.Runs():
		return fmt.Sprintf("the guest is %s", a.Mode)
	case cmd.By != a.Primary || cmd.By.IsZero():
		return fmt.Sprintf("%v is not the primary, %v is", cmd.By, a.Primary)
	case a.IsGone(cmd.By):
		return fmt.Sprintf("%v is recorded as gone", cmd.By)
	}
	return ""
}

// protectedBy refuses what is not said by the living primary of a protected guest.
func protectedBy(a *Assignment, cmd Command) string {
	if r := byPrimary(a, cmd); r != "" {
		return r
	}
	if a.Mode != Protected {
		return fmt.Sprintf("the guest is %s, no replica is entitled to anything", a.Mode)
	}
	return ""
}
