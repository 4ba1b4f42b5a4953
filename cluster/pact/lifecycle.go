package pact

import (
	"fmt"
	"slices"
)

func (s *State) create(cmd Command, index uint64) Verdict {
	refuse := func(format string, args ...any) Verdict {
		return Verdict{Reason: fmt.Sprintf(format, args...), Index: index}
	}
	if g, ok := s.guests[cmd.Guest]; ok {
		v := Verdict{Assignment: g.Assignment.Clone(), Index: index}
		if m, ok := recall(g.Recent, cmd.ID); ok && m.Kind == Create && m.Index == g.Assignment.Created {
			v.Applied, v.Index = true, m.Index
			return v
		}
		v.Reason = fmt.Sprintf("there is a guest %q already", cmd.Guest)
		return v
	}
	if m, ok := recall(s.lives, cmd.ID); ok {
		return refuse("the ID %s belongs to a %s of guest %q, which has been deleted since", cmd.ID, m.Kind, m.Guest)
	}
	if !ValidGuestName(cmd.Guest) {
		return refuse("%q can't be a guest's name: lower-case letters, digits and hyphens, at most 63, a letter or digit first and last", cmd.Guest)
	}
	if cmd.Spec == nil {
		return refuse("the new guest has no spec")
	}
	if err := cmd.Spec.check(); err != nil {
		return refuse("%v", err)
	}
	desired := cmd.Desired
	if desired == "" {
		desired = DesiredStopped
	}
	if !desired.valid() {
		return refuse("a guest can't be desired %q", cmd.Desired)
	}
	g := &record{Assignment: Assignment{
		Guest: cmd.Guest, Mode: Stopped, Spec: cmd.Spec.Clone(), Desired: desired, Created: index,
		CurrentDisk: DiskCopy{Host: cmd.Spec.Hosts[0]},
	}}
	g.Recent = remember(nil, memory{ID: cmd.ID, Kind: Create, Guest: cmd.Guest, Index: index}, recentMax)
	// The Create's ID is kept apart too: commands enough may come to push it out of Recent, and a late
	// duplicate after the guest's end must not bring it back.
	s.lives = remember(s.lives, memory{ID: cmd.ID, Kind: Create, Guest: cmd.Guest, Index: index}, livesMax)
	s.guests[cmd.Guest] = g
	return Verdict{Applied: true, Assignment: g.Assignment.Clone(), Index: index}
}

func (s *State) delete(cmd Command, index uint64) Verdict {
	g, ok := s.guests[cmd.Guest]
	if m, dup := recall(s.lives, cmd.ID); dup && m.Kind == Delete && m.Guest == cmd.Guest {
		if ok {
			return Verdict{Reason: fmt.Sprintf("it was applied at index %d; the guest %q is a later one", m.Index, cmd.Guest), Assignment: g.Assignment.Clone(), Index: index}
		}
		return Verdict{Applied: true, Index: m.Index}
	}
	if !ok {
		return Verdict{Reason: fmt.Sprintf("there is no guest %q", cmd.Guest), Index: index}
	}
	a := &g.Assignment
	refuse := func(format string, args ...any) Verdict {
		return Verdict{Reason: fmt.Sprintf(format, args...), Assignment: a.Clone(), Index: index}
	}
	if cmd.Term != 0 && cmd.Term != a.Term {
		return refuse("it names term %d, the guest is at term %d", cmd.Term, a.Term)
	}
	if a.Mode != Stopped {
		return refuse("the guest is %s; stop it first", a.Mode)
	}
	s.floor = max(s.floor, a.Term)
	delete(s.guests, cmd.Guest)
	s.lives = remember(s.lives, memory{ID: cmd.ID, Kind: Delete, Guest: cmd.Guest, Index: index, Term: a.Term}, livesMax)
	return Verdict{Applied: true, Assignment: a.Clone(), Index: index}
}

func setDesired(a *Assignment, cmd Command) string {
	if !cmd.Desired.valid() {
		return fmt.Sprintf("a guest can't be desired %q", cmd.Desired)
	}
	a.Desired = cmd.Desired
	return ""
}

// setCPU gives the guest another processor. What was running would not find its own again, and a process
// that waits for its start has the old one already: so the guest must be stopped, and not about to start.
func setCPU(a *Assignment, cmd Command) string {
	switch {
	case a.Mode != Stopped:
		return fmt.Sprintf("the guest is %s; stop it first", a.Mode)
	case a.Desired != DesiredStopped:
		return "the guest is about to start; stop it first"
	case cmd.CPU == nil:
		return "it names no CPU"
	}
	if err := cmd.CPU.check(); err != nil {
		return err.Error()
	}
	a.Spec.CPU = *cmd.CPU
	return ""
}

// start is the cold start: from a disk that is proven to be the current one, or on an operator's order.
func start(a *Assignment, cmd Command, floor Term) string {
	by := cmd.By
	switch {
	case by.Host == "" || by.Incarnation == 0:
		return "it does not name the process that is to run the guest"
	case !slices.Contains(a.Spec.Hosts, by.Host):
		return fmt.Sprintf("%s is not among the guest's hosts %v", by.Host, a.Spec.Hosts)
	case by == a.Primary || by == a.Replica:
		return fmt.Sprintf("%v is not a new process; a cold start needs one", by)
	case a.Runs() && !a.IsGone(a.Primary):
		return fmt.Sprintf("the primary %v may still run the guest; its host, or an operator for it, must say first that it is gone", a.Primary)
	case a.Mode == Protected && !a.IsGone(a.Replica):
		return fmt.Sprintf("the replica %v may still hold the guest's memory and is to take over; its host, or an operator for it, must say first that it is gone", a.Replica)
	}
	unproven := proves(a, by.Host, cmd.MarkerTerm)
	if unproven != "" && cmd.AcceptLoss == "" {
		return unproven
	}
	if unproven != "" && cmd.Operator == "" {
		return "the order to accept a loss does not name the operator who gives it"
	}
	a.Term = max(a.Term, floor)
	if unproven == "" {
		a.CurrentDisk = DiskCopy{Host: by.Host, Term: cmd.MarkerTerm}
		a.Unproven = nil
	}
	install(a, by)
	if unproven != "" {
		a.Rewound = a.Term
	}
	a.Mode, a.Replica = Solo, Party{}
	a.Base, a.BaseTerm = 0, 0
	return ""
}

// proves says why a host's disk copy with a durable marker of the given term is not known to be
// current; "" if it is.
func proves(a *Assignment, host string, marker Term) string {
	if !a.Spec.KeepsState() {
		return ""
	}
	if marker > a.Term {
		return fmt.Sprintf("the disk on %s bears a marker of term %d, the guest is at term %d: it is not this guest's disk, or Raft's log was lost", host, marker, a.Term)
	}
	for _, c := range slices.Backward(a.Unproven) {
		if c.Party.Host != host {
			return fmt.Sprintf("%s was primary from term %d on and may hold a newer disk; it must say first that it has no durable marker", c.Party.Host, c.Term)
		}
		if marker >= c.Term {
			return ""
		}
		// The host itself says that its disk bears no marker of that tenure.
	}
	if a.CurrentDisk.Host != host {
		return fmt.Sprintf("the current disk is on %s (term %d)", a.CurrentDisk.Host, a.CurrentDisk.Term)
	}
	if marker < a.CurrentDisk.Term {
		return fmt.Sprintf("the disk on %s bears a marker of term %d; the current one bears %d: it was replaced or restored from an old copy", host, marker, a.CurrentDisk.Term)
	}
	return ""
}

// stop ends the guest. The primary says it; where nobody is left who could hold the guest's memory, its
// host says it in the primary's name.
func stop(a *Assignment, cmd Command) string {
	switch {
	case !a.Runs():
		return fmt.Sprintf("the guest is %s", a.Mode)
	case cmd.By != a.Primary:
		return fmt.Sprintf("%v is not the primary, %v is", cmd.By, a.Primary)
	case a.IsGone(a.Primary) && a.Mode == Protected && !a.IsGone(a.Replica):
		return fmt.Sprintf("the primary %v is gone and the replica %v is to take over; stop the guest then", a.Primary, a.Replica)
	}
	desired := cmd.Desired
	if desired == "" {
		desired = DesiredStopped
	}
	if !desired.valid() {
		return fmt.Sprintf("a guest can't be desired %q", cmd.Desired)
	}
	a.Term++
	a.Mode, a.Replica, a.Gone = Stopped, Party{}, nil
	a.Base, a.BaseTerm = 0, 0
	a.Desired = desired
	return ""
}

// install makes p the primary of a new tenure under the next term. Until it has committed a Mark, the
// disk that was current remains the current one.
func install(a *Assignment, p Party) {
	a.Term++
	a.Primary, a.Tenure, a.Gone = p, a.Term, nil
	if len(a.Unproven) == 0 && a.CurrentDisk.Host == p.Host {
		return
	}
	if n := len(a.Unproven); n > 0 && a.Unproven[n-1].Party.Host == p.Host {
		// Nobody came between its two tenures: a marker of either is proof.
		a.Unproven[n-1].Party = p
		return
	}
	// A host has one disk copy, so it has one claim; the later one needs the newer marker.
	a.Unproven = slices.DeleteFunc(a.Unproven, func(c Claim) bool { return c.Party.Host == p.Host })
	a.Unproven = append(a.Unproven, Claim{Party: p, Term: a.Term})
}
