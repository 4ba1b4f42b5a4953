package pact

import (
	"strings"
	"testing"
)

func TestTheFirstOfTwoWins(t *testing.T) {
	for _, first := range []Kind{GoSolo, Promote} {
		w := newWorld(t)
		term := w.must(toProtected...).Term
		ask := map[Kind]Command{
			GoSolo:  {Kind: GoSolo, By: a1, Term: term},
			Promote: {Kind: Promote, By: b1, Term: term, Epoch: 9},
		}
		second := GoSolo
		if first == GoSolo {
			second = Promote
		}
		w.must(ask[first])
		w.refused(ask[second])
	}
}

func TestAnotherIncarnationHasNoRight(t *testing.T) {
	w := newWorld(t)
	w.must(toProtected...)
	w.refused(Command{Kind: Promote, By: b2, Epoch: 9})
	w.refused(Command{Kind: GoSolo, By: a2})
	w.refused(Command{Kind: Surrender, By: a2})
	// The primary's process died; its host may not start another while the replica holds the image.
	w.must(Command{Kind: Disclaim, By: a1})
	w.refused(Command{Kind: Start, By: a2, MarkerTerm: 1})
	a := w.must(Command{Kind: Promote, By: b1, Epoch: 9})
	if a.Primary != b1 || a.Mode != Solo || a.Base != 9 {
		t.Errorf("after the takeover: %+v", a)
	}
}

func TestPromoteOnlyFromTheBaseOn(t *testing.T) {
	w := newWorld(t)
	w.must(toSolo...)
	a := w.must(Command{Kind: GoSolo, By: a1}, Command{Kind: Protect, By: a1, Other: b1, Epoch: 7})
	w.refused(Command{Kind: Promote, By: b1, Epoch: a.Base - 1})
	w.refused(Command{Kind: Promote, By: b1, Epoch: 100, EpochTerm: a.BaseTerm - 1})
	w.refused(Command{Kind: Promote, By: b1, Epoch: 100, EpochTerm: a.Term + 1})
	// A numbering that began after the base is later than it, however small the number.
	got := w.must(Command{Kind: Promote, By: b1, Epoch: 1, EpochTerm: a.Term})
	if got.Base != 1 || got.BaseTerm != a.Term {
		t.Errorf("base %d of term %d", got.Base, got.BaseTerm)
	}
}

func TestAStrayProtectDiesOfGoSolo(t *testing.T) {
	w := newWorld(t)
	a := w.must(toSolo...)
	stray := Command{Kind: Protect, By: a1, Other: b1, Epoch: 3, Term: a.Term, ID: "stray"}
	if got := w.must(Command{Kind: GoSolo, By: a1}); got.Mode != Solo || got.Term != a.Term+1 {
		t.Fatalf("go-solo from solo: %+v", got)
	}
	w.refused(stray)
}

func TestDuplicates(t *testing.T) {
	w := newWorld(t)
	w.must(toProtected...)
	c := Command{Kind: GoSolo, By: a1, Term: w.now().Term, ID: "once"}
	first := w.try(c)
	again := w.try(c)
	if !again.Applied || again.Index != first.Index || again.Assignment.Term != first.Assignment.Term {
		t.Errorf("duplicate: %+v, first %+v", again, first)
	}
	w.must(Command{Kind: Protect, By: a1, Other: b2, Epoch: 9})
	if v := w.try(c); v.Applied || !strings.Contains(v.Reason, "superseded") {
		t.Errorf("duplicate of what is no more: %+v", v)
	}
	// What was refused stays refused, though it could be applied now: the proposer has long acted on it.
	start := Command{Kind: Start, By: a2, MarkerTerm: 1, Term: w.now().Term, ID: "start"}
	w.refused(start)
	w.must(Command{Kind: Disclaim, By: a1}, Command{Kind: Disclaim, By: b2})
	w.refused(start)
	start.ID = "another"
	w.must(start)
	// An ID is one command's.
	if v := w.try(Command{Kind: Stop, By: a2, ID: "another"}); v.Applied {
		t.Error("another command under the same ID was applied")
	}
}

func TestDuplicatesOfAnOperatorsWill(t *testing.T) {
	w := newWorld(t)
	w.must(toCreated...)
	run := Command{Kind: SetDesired, Desired: DesiredRunning, ID: "run"}
	w.must(run, run, Command{Kind: SetDesired, Desired: DesiredStopped, ID: "stop"})
	w.refused(run)
	if w.now().Desired != DesiredStopped {
		t.Error("a late duplicate overturned the operator's later will")
	}
}

// A guest's processor changes only while nobody has the old one, and nobody is about to.
func TestSetCPU(t *testing.T) {
	set := func(model, id string) Command {
		return Command{Kind: SetCPU, CPU: &CPUSpec{Policy: "pair", Model: model}, ID: id}
	}
	w := newWorld(t)
	w.must(toCreated...)
	w.must(set("old", "1"))
	first := set("first", "2")
	if a := w.must(first, first); a.Spec.CPU != *first.CPU || a.Term != 0 {
		t.Errorf("%+v", a)
	}
	w.must(set("second", "3"))
	w.refused(first) // late, and superseded
	w.refused(Command{Kind: SetCPU})
	w.refused(set(strings.Repeat("x", MaxTextBytes+1), ""))
	w.must(Command{Kind: SetDesired, Desired: DesiredRunning})
	if why := w.refused(set("third", "")); !strings.Contains(why, "about to start") {
		t.Error(why)
	}
	w.must(Command{Kind: Start, By: a1})
	if why := w.refused(set("third", "")); !strings.Contains(why, "solo; stop it first") {
		t.Error(why)
	}
	w.must(Command{Kind: Protect, By: a1, Other: b1})
	w.refused(set("third", ""))
	w.must(Command{Kind: Stop, By: a1}, set("third", ""))
	if got := w.now().Spec.CPU.Model; got != "third" {
		t.Errorf("the guest's CPU is %q", got)
	}
	if v := w.try(Command{Kind: Create, Guest: "h", Spec: &Spec{Hosts: []string{"a"}, CPU: CPUSpec{Policy: strings.Repeat("x", 65)}}}); v.Applied {
		t.Error("a guest with an endless CPU policy was created")
	}
}

func TestDuplicatesAcrossADelete(t *testing.T) {
	w := newWorld(t)
	create := Command{Kind: Create, Spec: spec(), ID: "create"}
	del := Command{Kind: Delete, ID: "delete"}
	w.must(create, create, Command{Kind: Start, By: a1})
	term := w.must(Command{Kind: Stop, By: a1}).Term
	w.must(del, del)
	if v := w.try(create); v.Applied {
		t.Fatal("a late duplicate brought a deleted guest back")
	}
	w.must(Command{Kind: Create, Spec: spec(), ID: "create again"})
	w.refused(del)
	if a := w.must(Command{Kind: Start, By: a2}); a.Term <= term {
		t.Errorf("the later guest starts at term %d; a process of the deleted one may know term %d", a.Term, term)
	}
}

func TestStopEndsTheWillToRun(t *testing.T) {
	w := newWorld(t)
	w.must(toSolo...)
	w.must(Command{Kind: SetDesired, Desired: DesiredRunning})
	if a := w.must(Command{Kind: Stop, By: a1}); a.Desired != DesiredStopped {
		t.Error("a guest that powered itself off would be started again")
	}
	w.must(Command{Kind: Start, By: a2, MarkerTerm: 1})
	if a := w.must(Command{Kind: Stop, By: a2, Desired: DesiredRunning}); a.Desired != DesiredRunning {
		t.Error("a guest that reboots would stay off")
	}
}

func TestColdStartAfterATakeover(t *testing.T) {
	promoted := append(append([]Command{}, toProtected...), Command{Kind: Promote, By: b1, Epoch: 9})
	t.Run("the later host has the marker", func(t *testing.T) {
		w := newWorld(t)
		a := w.must(promoted...)
		w.must(Command{Kind: Disclaim, By: b1})
		w.refused(Command{Kind: Start, By: a2, MarkerTerm: 1})
		w.refused(Command{Kind: Start, By: b2, MarkerTerm: 1})
		got := w.must(Command{Kind: Start, By: b2, MarkerTerm: a.Term})
		if got.CurrentDisk != (DiskCopy{"b", a.Term}) || len(got.Unproven) != 0 {
			t.Errorf("current disk %+v, unproven %+v", got.CurrentDisk, got.Unproven)
		}
	})
	t.Run("the later host has none", func(t *testing.T) {
		w := newWorld(t)
		w.must(promoted...)
		w.must(Command{Kind: Disclaim, By: b1, NoMarker: true})
		w.refused(Command{Kind: Start, By: b2})
		got := w.must(Command{Kind: Start, By: a2, MarkerTerm: 1})
		if got.CurrentDisk.Host != "a" {
			t.Errorf("current disk %+v", got.CurrentDisk)
		}
	})
	t.Run("marked, and stopped", func(t *testing.T) {
		w := newWorld(t)
		w.must(promoted...)
		tenure := w.must(Command{Kind: Mark, By: b1}).Tenure
		w.must(Command{Kind: GoSolo, By: b1}, Command{Kind: Stop, By: b1})
		w.refused(Command{Kind: Start, By: a2, MarkerTerm: 1})
		w.refused(Command{Kind: Start, By: b2})
		w.must(Command{Kind: Start, By: b2, MarkerTerm: tenure})
	})
	t.Run("over and back before any marker", func(t *testing.T) {
		w := newWorld(t)
		w.must(toProtected...)
		w.must(Command{Kind: Switchover, By: a1, Epoch: 20}, Command{Kind: Promote, By: a1, Epoch: 20}, Command{Kind: Disclaim, By: a1})
		// b may have written its marker and spoken before a took over again.
		w.refused(Command{Kind: Start, By: a2, MarkerTerm: 1})
		w.must(Command{Kind: Disclaim, By: b1, NoMarker: true})
		w.must(Command{Kind: Start, By: a2, MarkerTerm: 1})
	})
	t.Run("a replaced disk", func(t *testing.T) {
		w := newWorld(t)
		w.must(toSolo...)
		w.must(Command{Kind: Disclaim, By: a1})
		w.refused(Command{Kind: Start, By: a2})
		w.refused(Command{Kind: Start, By: a2, MarkerTerm: 99})
	})
}

func TestAnOrderAgainstTheRules(t *testing.T) {
	w := newWorld(t)
	w.must(toSolo...)
	order := Command{Kind: Start, By: b2, AcceptLoss: "whatever a wrote since Monday", Operator: "op"}
	w.refused(order) // a may run
	w.refused(Command{Kind: Disclaim, By: a1, NoMarker: true, Operator: "op"})
	w.must(Command{Kind: Disclaim, By: a1, Operator: "op", Reason: "I pulled its plug"})
	w.refused(Command{Kind: Mark, By: a1})
	w.refused(Command{Kind: GoSolo, By: a1})
	nameless := order
	nameless.Operator = ""
	w.refused(nameless)
	a := w.must(order)
	if a.CurrentDisk.Host != "a" || a.Unproven[0].Party != b2 {
		t.Errorf("until its mark the previous disk is the current one: %+v", a)
	}
	if a.Rewound != a.Term {
		t.Errorf("rewound in term %d, started in %d", a.Rewound, a.Term)
	}
	rewound := a.Rewound
	a = w.must(Command{Kind: Mark, By: b2})
	if a.Rewound != rewound {
		t.Errorf("rewound in term %d, which was %d", a.Rewound, rewound)
	}
	if a.CurrentDisk != (DiskCopy{"b", a.Tenure}) {
		t.Errorf("current disk %+v", a.CurrentDisk)
	}
}

func TestProtectNeedsAMarkedDisk(t *testing.T) {
	w := newWorld(t)
	w.must(toProtected...)
	w.must(Command{Kind: Promote, By: b1, Epoch: 9})
	w.refused(Command{Kind: Protect, By: b1, Other: a2, Epoch: 3})
	w.must(Command{Kind: Mark, By: b1}, Command{Kind: Protect, By: b1, Other: a2, Epoch: 3})
}

func TestNonsense(t *testing.T) {
	w := newWorld(t)
	if v := w.try(Command{Kind: Promote, By: b1}); v.Applied {
		t.Error("a guest that is not there was promoted")
	}
	for _, c := range []Command{
		{Kind: Create, Guest: "../../etc", Spec: spec()},
		{Kind: Create, Guest: "G", Spec: spec()},
		{Kind: Create},
		{Kind: Create, Spec: &Spec{}},
		{Kind: Create, Spec: &Spec{Hosts: []string{"a", "a"}}},
		{Kind: Create, Spec: &Spec{Hosts: []string{"a/b"}}},
		{Kind: Create, Spec: spec(), Desired: "maybe"},
		{Kind: "fly"},
		{},
	} {
		if v := w.try(c); v.Applied {
			t.Errorf("%+v was applied", c)
		}
	}
	w.must(toProtected...)
	for _, c := range []Command{
		{Kind: "fly", By: a1}, {Kind: GoSolo}, {Kind: Promote}, {Kind: Mark}, {Kind: Confirm}, {Kind: Disclaim}, {Kind: SetDesired, Desired: "maybe"},
	} {
		w.refused(c)
	}
	if v := w.try(Command{Kind: NoOp}); !v.Applied {
		t.Error("noop refused")
	}
}

func TestAGuestWithoutDisksStartsAnywhere(t *testing.T) {
	w := newWorld(t)
	bare := spec()
	bare.Disks = []DiskSpec{{SizeBytes: 1 << 20, ReadOnly: true}}
	w.must(Command{Kind: Create, Spec: bare}, Command{Kind: Start, By: b1},
		Command{Kind: Protect, By: b1, Other: a1}, Command{Kind: Promote, By: a1, Epoch: 1}, Command{Kind: Protect, By: a1, Other: b2})
}

func TestQueuePairs(t *testing.T) {
	for _, c := range []struct{ queues, cpus, want int }{{0, 1, 1}, {0, 3, 3}, {0, 64, 4}, {1, 8, 1}, {16, 1, 16}} {
		if got := (NetSpec{Queues: c.queues}).QueuePairs(c.cpus); got != c.want {
			t.Errorf("queues=%d with %d vCPUs: %d pairs, want %d", c.queues, c.cpus, got, c.want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := func() Spec {
		s := *spec()
		s.Nets = []NetSpec{{MAC: "52:54:00:12:34:56", Bridge: "lan"}}
		return s
	}
	if err := good().Validate(); err != nil {
		t.Error(err)
	}
	for what, spoil := range map[string]func(*Spec){
		"kernel":       func(s *Spec) { s.Kernel = "" },
		"memory_bytes": func(s *Spec) { s.MemoryBytes = 4097 },
		"cpus":         func(s *Spec) { s.CPUs = 0 },
		"size_bytes":   func(s *Spec) { s.Disks[0].SizeBytes = 100 },
		"even":         func(s *Spec) { s.Nets[0].MAC = "53:54:00:12:34:56" },
		"mac":          func(s *Spec) { s.Nets[0].MAC = "52:54:00:12:34" },
		"same mac":     func(s *Spec) { s.Nets = append(s.Nets, s.Nets[0]) },
		"bridge":       func(s *Spec) { s.Nets[0].Bridge = "" },
		"pairs":        func(s *Spec) { s.Nets[0].Queues = MaxQueues + 1 },
		"mtu":          func(s *Spec) { s.Nets[0].MTU = MinMTU - 1 },
		"65521":        func(s *Spec) { s.Nets[0].MTU = MaxMTU + 1 },
		"hosts":        func(s *Spec) { s.Hosts = nil },
	} {
		s := good()
		spoil(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
