package pact

import (
	"fmt"
	"slices"
)

// protect entitles a replica that holds everything up to the end of an epoch.
func protect(a *Assignment, cmd Command) string {
	if r := byPrimary(a, cmd); r != "" {
		return r
	}
	other := cmd.Other
	switch {
	case a.Mode != Solo:
		return fmt.Sprintf("the guest is %s by %v", a.Mode, a.Replica)
	case other.Host == "" || other.Incarnation == 0:
		return "it does not name the replica's process"
	case other.Host == a.Primary.Host:
		return fmt.Sprintf("%v is on the primary's own host", other)
	case !slices.Contains(a.Spec.Hosts, other.Host):
		return fmt.Sprintf("%s is not among the guest's hosts %v", other.Host, a.Spec.Hosts)
	case !marked(a):
		// The replica's disk is about to become a copy of this one. Were it still recorded as the
		// current one, a later cold start would trust what a broken synchronization left there.
		return fmt.Sprintf("the primary's disk on %s is not marked as the current one yet (%s is)", a.Primary.Host, a.CurrentDisk.Host)
	case cmd.EpochTerm > a.Term:
		return fmt.Sprintf("epoch %d is said to be of term %d, the guest is at term %d", cmd.Epoch, cmd.EpochTerm, a.Term)
	}
	a.Term++
	a.Mode, a.Replica = Protected, other
	a.Base, a.BaseTerm = cmd.Epoch, epochTerm(cmd)
	return ""
}

// marked says that the primary's disk is the current one, and no other can be newer.
func marked(a *Assignment) bool {
	return !a.Spec.KeepsState() || len(a.Unproven) == 0 && a.CurrentDisk.Host == a.Primary.Host
}

// promote is the takeover: by the replica that the last assignment names, from an epoch no older than
// the one that it was entitled with.
func promote(a *Assignment, cmd Command) string {
	switch {
	case a.Mode != Protected:
		return fmt.Sprintf("the guest is %s, no replica is entitled to take over", a.Mode)
	case cmd.By != a.Replica || cmd.By.IsZero():
		return fmt.Sprintf("%v is not the replica, %v is", cmd.By, a.Replica)
	case a.IsGone(cmd.By):
		return fmt.Sprintf("%v is recorded as gone", cmd.By)
	}
	numbering := cmd.EpochTerm
	if numbering == 0 {
		numbering = a.BaseTerm
	}
	switch {
	case numbering > a.Term:
		return fmt.Sprintf("epoch %d is said to be of term %d, the guest is at term %d", cmd.Epoch, numbering, a.Term)
	case numbering < a.BaseTerm, numbering == a.BaseTerm && cmd.Epoch < a.Base:
		return fmt.Sprintf("epoch %d (term %d) is older than epoch %d (term %d), from which on it may take over", cmd.Epoch, numbering, a.Base, a.BaseTerm)
	}
	install(a, cmd.By)
	a.Mode, a.Replica = Solo, Party{}
	a.Base, a.BaseTerm = cmd.Epoch, numbering
	return ""
}

// goSolo ends the replica's right. From solo it changes nothing but the term, of which every earlier
// proposal dies.
func goSolo(a *Assignment, cmd Command) string {
	if r := byPrimary(a, cmd); r != "" {
		return r
	}
	a.Term++
	a.Mode, a.Replica, a.Gone = Solo, Party{}, nil
	a.Base, a.BaseTerm = 0, 0
	return ""
}

// surrender hands the guest to the replica.
func surrender(a *Assignment, cmd Command) string {
	if r := protectedBy(a, cmd); r != "" {
		return r
	}
	if a.IsGone(a.Replica) {
		return fmt.Sprintf("the replica %v is gone, nobody could go on", a.Replica)
	}
	install(a, a.Replica)
	a.Mode, a.Replica = Solo, Party{}
	return ""
}

// switchover exchanges the roles; the final epoch is what both sides hold.
func switchover(a *Assignment, cmd Command) string {
	if r := protectedBy(a, cmd); r != "" {
		return r
	}
	switch {
	case a.IsGone(a.Replica):
		return fmt.Sprintf("the replica %v is gone, nobody could go on", a.Replica)
	case !marked(a):
		return fmt.Sprintf("the primary's disk on %s is not marked as the current one yet", a.Primary.Host)
	case cmd.EpochTerm > a.Term:
		return fmt.Sprintf("epoch %d is said to be of term %d, the guest is at term %d", cmd.Epoch, cmd.EpochTerm, a.Term)
	}
	old := a.Primary
	base := epochTerm(cmd)
	install(a, a.Replica)
	a.Replica = old
	a.Base, a.BaseTerm = cmd.Epoch, base
	return ""
}

// cancel ends a switchover that got no answer: of its duplicates none is applied any more.
func cancel(a *Assignment, cmd Command) string {
	if r := protectedBy(a, cmd); r != "" {
		return r
	}
	a.Term++
	return ""
}

// mark makes the primary's disk the current one.
func mark(a *Assignment, cmd Command) string {
	if r := byPrimary(a, cmd); r != "" {
		return r
	}
	// Its marker is of this tenure; of which term in it is not said, so the first one has to do as proof.
	a.CurrentDisk = DiskCopy{Host: a.Primary.Host, Term: a.Tenure}
	a.Unproven = nil
	return ""
}

// disclaim records that a party's process has ended, by the word of its own host or of an operator.
func disclaim(a *Assignment, cmd Command) string {
	by := cmd.By
	party := a.Runs() && !by.IsZero() && (by == a.Primary || by == a.Replica)
	claim := slices.IndexFunc(a.Unproven, func(c Claim) bool { return c.Party == by })
	switch {
	case cmd.NoMarker && cmd.Operator != "":
		return "only a host itself knows whether its disk bears a marker"
	case !party && (claim < 0 || !cmd.NoMarker):
		return fmt.Sprintf("%v is no party of the guest (primary %v, replica %v)", by, a.Primary, a.Replica)
	}
	if party && !a.IsGone(by) {
		a.Gone = append(a.Gone, by)
	}
	if cmd.NoMarker && claim >= 0 {
		a.Unproven = slices.Delete(a.Unproven, claim, claim+1)
	}
	return ""
}

func epochTerm(cmd Command) Term {
	if cmd.EpochTerm != 0 {
		return cmd.EpochTerm
	}
	return cmd.Term
}
