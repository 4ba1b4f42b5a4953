package pact

import (
	"cmp"
	"fmt"
	"slices"
)

// OutKind says why a host is kept out.
type OutKind string

const (
	// OutFencing: another host is about to power it off. Nothing may be given to it meanwhile.
	OutFencing OutKind = "fencing"
	// OutFlapping: it has lost guests by faults again and again. No replica is placed on it until an operator
	// resets it.
	OutFlapping OutKind = "flapping"
)

// Out is a host that is kept out: no guest is protected by a replica on it, and, while it is being fenced, none
// starts there. What a committed assignment entitles it to it keeps: to stop a guest is not what it is for.
type Out struct {
	Host   string  `json:"host"`
	Kind   OutKind `json:"kind"`
	By     string  `json:"by"` // the host whose daemon has said so
	Reason string  `json:"reason,omitempty"`
	Since  uint64  `json:"since"` // Raft index
}

// outMax bounds how many hosts are kept out at a time, and reasonMax what is remembered of each reason, in bytes.
const (
	outMax    = 1024
	reasonMax = 512
)

// Out lists the hosts that are kept out, by host and kind.
func (s *State) Out() []Out { return slices.Clone(s.out) }

func (s *State) findOut(host string, kind OutKind) (int, bool) {
	return slices.BinarySearchFunc(s.out, Out{Host: host, Kind: kind}, compareOut)
}

func compareOut(a, b Out) int {
	return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Kind, b.Kind))
}

// keepOut: Other.Host is kept out, by the word of By.Host's daemon.
func (s *State) keepOut(cmd Command, index uint64) Verdict {
	if v, dup := s.toldOfOut(cmd, index); dup {
		return v
	}
	verdict := func(refused string) Verdict {
		s.lives = remember(s.lives, memory{ID: cmd.ID, Kind: cmd.Kind, By: cmd.By, Index: index, Refused: refused}, livesMax)
		return Verdict{Applied: refused == "", Reason: refused, Index: index}
	}
	host := cmd.Other.Host
	i, already := s.findOut(host, cmd.Out)
	switch {
	case !nameSyntax.MatchString(host) || !nameSyntax.MatchString(cmd.By.Host):
		return verdict(fmt.Sprintf("%q or %q is no host's name", host, cmd.By.Host))
	case cmd.Out != OutFencing && cmd.Out != OutFlapping:
		return verdict(fmt.Sprintf("a host can't be kept out for %q", cmd.Out))
	case already && (cmd.Out == OutFlapping || s.out[i].By == cmd.By.Host):
		return verdict("") // it is what was wanted
	case already:
		return verdict(fmt.Sprintf("%s is fencing %s already", s.out[i].By, host))
	case len(s.out) >= outMax:
		return verdict("too many hosts are kept out")
	}
	if cmd.Out == OutFencing {
		if why := s.notToFence(host, cmd.By.Host); why != "" {
			return verdict(why)
		}
	}
	reason := cmd.Reason
	if len(reason) > reasonMax {
		reason = reason[:reasonMax]
	}
	s.out = slices.Insert(s.out, i, Out{Host: host, Kind: cmd.Out, By: cmd.By.Host, Reason: reason, Since: index})
	return verdict("")
}

// notToFence says why a host must not be powered off. Two hosts, each the primary of one guest, must not shoot
// each other; and who may still take over a guest is needed.
func (s *State) notToFence(host, by string) string {
	if host == by {
		return "a host does not fence itself this way"
	}
	if i, out := s.findOut(by, OutFencing); out {
		return fmt.Sprintf("%s is being fenced itself, by %s", by, s.out[i].By)
	}
	for _, a := range s.Guests() {
		switch {
		case a.Runs() && a.Primary.Host == host && !a.IsGone(a.Primary):
			return fmt.Sprintf("%s is the primary of guest %s (term %d)", host, a.Guest, a.Term)
		case a.Mode == Protected && a.Replica.Host == host && !a.IsGone(a.Replica):
			return fmt.Sprintf("%s may take over guest %s (term %d)", host, a.Guest, a.Term)
		}
	}
	return ""
}

// readmit ends it: for fencing the host that fences, for either an operator.
func (s *State) readmit(cmd Command, index uint64) Verdict {
	if v, dup := s.toldOfOut(cmd, index); dup {
		return v
	}
	refused := ""
	i, out := s.findOut(cmd.Other.Host, cmd.Out)
	switch {
	case !out:
		refused = fmt.Sprintf("%s is not kept out for %s", cmd.Other.Host, cmd.Out)
	case cmd.Operator == "" && (cmd.Out != OutFencing || s.out[i].By != cmd.By.Host):
		refused = fmt.Sprintf("%s is kept out for %s by %s; an operator can end that", cmd.Other.Host, cmd.Out, s.out[i].By)
	default:
		s.out = slices.Delete(s.out, i, i+1)
	}
	s.lives = remember(s.lives, memory{ID: cmd.ID, Kind: cmd.Kind, By: cmd.By, Index: index, Refused: refused}, livesMax)
	return Verdict{Applied: refused == "", Reason: refused, Index: index}
}

// toldOfOut answers a duplicate with what became of the first: a late one must not undo what came after.
func (s *State) toldOfOut(cmd Command, index uint64) (Verdict, bool) {
	m, ok := recall(s.lives, cmd.ID)
	switch {
	case !ok:
		return Verdict{}, false
	case m.Kind != cmd.Kind || m.By != cmd.By:
		return Verdict{Reason: fmt.Sprintf("the ID %s belongs to another command (%s by %v)", cmd.ID, m.Kind, m.By), Index: index}, true
	}
	return Verdict{Applied: m.Refused == "", Reason: m.Refused, Index: m.Index}, true
}

// keptOut says why a host gets nothing now; "" if it may.
func (s *State) keptOut(cmd Command) string {
	find := func(host string, kind OutKind) string {
		if i, out := s.findOut(host, kind); out {
			return fmt.Sprintf("%s is kept out (%s, by %s: %s)", host, kind, s.out[i].By, s.out[i].Reason)
		}
		return ""
	}
	switch cmd.Kind {
	case Protect:
		return cmp.Or(find(cmd.Other.Host, OutFencing), find(cmd.Other.Host, OutFlapping))
	case Start:
		// A flapping host may be the only one with the guest's current disk: it starts what nobody else can.
		return find(cmd.By.Host, OutFencing)
	}
	return ""
}

// LostBy names the host that has lost a guest by a fault of its own, where that is what turned one assignment into
// the next: its replica has taken over, or it has given the guest away. "": it was something else.
func LostBy(was, is Assignment) string {
	if was.Guest == is.Guest && was.Created == is.Created && was.Mode == Protected && is.Mode == Solo &&
		is.Primary == was.Replica && is.Tenure == is.Term && is.Term == was.Term+1 {
		return was.Primary.Host
	}
	return ""
}

func checkOut(list []Out) error {
	if len(list) > outMax {
		return fmt.Errorf("%d hosts are kept out, at most %d can be", len(list), outMax)
	}
	for i, o := range list {
		switch {
		case !nameSyntax.MatchString(o.Host) || !nameSyntax.MatchString(o.By) || o.Kind != OutFencing && o.Kind != OutFlapping || len(o.Reason) > reasonMax:
			return fmt.Errorf("%+v is no host that is kept out", o)
		case i > 0 && compareOut(list[i-1], o) >= 0:
			return fmt.Errorf("the hosts that are kept out are not in order at %s", o.Host)
		}
	}
	return nil
}
