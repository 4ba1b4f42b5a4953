package core

import (
	"fmt"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Action is something for the driver to do, in the order in which Step returned it.
type Action interface{ action() }

type (
	// Hold closes the gate: output waits from now on. Returned for Captured it takes effect in that
	// very pause: what the guest emits afterwards belongs to later epochs.
	Hold struct{}
	// Open lets out all that is held and, from then on, output at once.
	Open struct{}
	// Release lets out what is held of epochs up to UpTo.
	Release struct{ UpTo pact.Epoch }
	// Drop forgets all that is held. Nothing leaves any more.
	Drop struct{}

	// Pause stops the vCPUs until Resume; nothing is captured for it.
	Pause struct{}
	// Finish stops the vCPUs with a captured epoch, which is told as Captured{Final}. They stay
	// stopped until Resume. Switchover: the epoch is the final one before a switchover.
	Finish struct{ Switchover bool }
	// Resume lets the vCPUs run, or takes back a Pause or Finish that has not happened yet.
	Resume struct{}
	// EndEpoch asks for a checkpoint soon, also of a guest with nothing to do.
	EndEpoch struct{}

	// Propose puts a question to Raft. The same ID may be put several times.
	Propose struct{ Command pact.Command }
	// WriteMarker asks for a durable disk marker of the term, to be told as MarkerDurable.
	WriteMarker struct{ Term pact.Term }
	// CloseStream ends the stream. The driver may make a new one.
	CloseStream struct {
		Stream uint64
		Why    string
	}
	// Fetch asks the replica for its copy of a page as of the epoch or a later one, to be told as Copied. Every
	// epoch up to that one is sent before.
	Fetch struct {
		Stream uint64
		Page   uint32
		Epoch  pact.Epoch
	}
	// Mend puts the copy that came last into the place of a damaged page.
	Mend struct{ Page uint32 }
	// GiveUp says that no damaged page will be mended here any more.
	GiveUp struct{}
	// Refuse tells the operator why an order is not followed.
	Refuse struct{ Why string }

	// End is the last action: this process is not the primary any more.
	End struct {
		Outcome    Outcome
		Assignment pact.Assignment
		Why        string
	}
)

// Outcome says how a primary's time ended. In each case the vCPUs stand still and held output has
// been dropped.
type Outcome int

const (
	// Lost: another process runs the guest. Stop for good, drain the disk, mark it outdated, offer
	// the host as the next replica.
	Lost Outcome = iota + 1
	// Exchanged: a switchover succeeded. This process holds the replica's image as it stands.
	Exchanged
	// Stopped: the guest was stopped by a Raft entry. Say goodbye on the stream, then close.
	Stopped
	// Failed: the guest can't go on here, and nobody is entitled to take it over.
	Failed
)

func (o Outcome) String() string {
	switch o {
	case Lost:
		return "lost"
	case Exchanged:
		return "exchanged"
	case Stopped:
		return "stopped"
	case Failed:
		return "failed"
	}
	return "unknown"
}

func (Hold) action()        {}
func (Open) action()        {}
func (Release) action()     {}
func (Drop) action()        {}
func (Pause) action()       {}
func (Finish) action()      {}
func (Resume) action()      {}
func (EndEpoch) action()    {}
func (Propose) action()     {}
func (WriteMarker) action() {}
func (CloseStream) action() {}
func (Fetch) action()       {}
func (Mend) action()        {}
func (GiveUp) action()      {}
func (Refuse) action()      {}
func (End) action()         {}

func (Hold) String() string      { return "hold" }
func (Open) String() string      { return "open" }
func (a Release) String() string { return fmt.Sprintf("release up to %d", a.UpTo) }
func (Drop) String() string      { return "drop" }
func (Pause) String() string     { return "pause" }
func (a Finish) String() string {
	if a.Switchover {
		return "finish for switchover"
	}
	return "finish"
}
func (Resume) String() string   { return "resume" }
func (EndEpoch) String() string { return "end epoch" }
func (a Propose) String() string {
	c := a.Command
	s := fmt.Sprintf("propose %s term=%d by=%s", c.Kind, c.Term, c.By.Host)
	if !c.Other.IsZero() {
		s += " other=" + c.Other.Host
	}
	if c.Epoch != 0 {
		s += fmt.Sprintf(" epoch=%d", c.Epoch)
	}
	s += " id=" + c.ID
	if c.Reason != "" {
		s += fmt.Sprintf(" (%s)", c.Reason)
	}
	return s
}
func (a WriteMarker) String() string { return fmt.Sprintf("write marker term=%d", a.Term) }
func (a CloseStream) String() string { return fmt.Sprintf("close stream %d (%s)", a.Stream, a.Why) }
func (a Refuse) String() string      { return fmt.Sprintf("refuse (%s)", a.Why) }
func (a Fetch) String() string {
	return fmt.Sprintf("fetch page=%d epoch=%d stream=%d", a.Page, a.Epoch, a.Stream)
}
func (a Mend) String() string { return fmt.Sprintf("mend page=%d", a.Page) }
func (GiveUp) String() string { return "give up damaged pages" }
func (a End) String() string {
	s := fmt.Sprintf("end: %s, term=%d %s", a.Outcome, a.Assignment.Term, a.Assignment.Mode)
	if a.Why != "" {
		s += fmt.Sprintf(" (%s)", a.Why)
	}
	return s
}
