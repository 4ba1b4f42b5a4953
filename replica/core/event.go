package core

import "github.com/pollux-ha/pollux/cluster/pact"

// Conn numbers the incoming connections of a process; 0 is none.
type Conn uint64

// Event is what happens to the replica's side.
type Event interface{ event() }

type (
	// Applied: the host's own Raft log has applied this assignment.
	Applied struct{ Assignment pact.Assignment }

	// Answered: a proposal has an outcome, or is known to have none yet (Unknown).
	Answered struct {
		ID      string
		Unknown bool
		Verdict pact.Verdict
	}

	// Again: the time to repeat questions without an answer (AskLater), or the daemon is back.
	Again struct{}

	// Opened: an authenticated peer said Hello on a new connection.
	Opened struct {
		Conn    Conn
		Host    string // who the peer's certificate says it is
		Term    pact.Term
		Primary pact.Party
		Replica pact.Party
		Resume  bool
	}

	// Prepared: what Prepare asked for is durable, or failed (Err).
	Prepared struct {
		Conn Conn
		Err  string
	}

	// Staged: an epoch is here, whole and verified, and the disk journal has reserved its space.
	Staged struct {
		Conn    Conn
		Epoch   pact.Epoch
		Term    pact.Term // in which the primary captured it
		Syncing bool      // the image isn't complete with it
		Final   bool      // the last one of a switchover
		Lost    bool      // pages of the memory are of no use, and stay so with it
	}

	// PagesLost: pages of the memory turn out to be of no use. The primary is asked to send them again.
	PagesLost struct{}

	// Lost: the connection was closed or reset. Alive: it was ended here, or said goodbye; the
	// primary itself was not seen to fail.
	Lost struct {
		Conn  Conn
		Why   string
		Alive bool
	}

	// Silent: the armed detector has heard nothing for the detection time.
	Silent struct{}

	// HeardTerm: an authenticated peer spoke of this term.
	HeardTerm struct{ Term pact.Term }

	// Gap: this process has not run for the detection time.
	Gap struct{}

	// Activated: what Activate or ColdStart asked for is done, the guest runs. From here on the
	// primary's side decides; it holds all output until the marker of its term is durable.
	Activated struct{}

	// Abandon: this copy is not wanted any more. It does not end a guest that runs here.
	Abandon struct{}

	// Failed: it can't be done. The process has to end; the guest does not run here.
	Failed struct{ Err string }
)

func (Applied) event()   {}
func (Answered) event()  {}
func (Again) event()     {}
func (Opened) event()    {}
func (Prepared) event()  {}
func (Staged) event()    {}
func (PagesLost) event() {}
func (Lost) event()      {}
func (Silent) event()    {}
func (HeardTerm) event() {}
func (Gap) event()       {}
func (Activated) event() {}
func (Failed) event()    {}
func (Abandon) event()   {}

// Action is what the driver has to do, in the order given.
type Action interface{ action() }

type (
	// Prepare makes the disks ready to be overwritten, durably: old journal discarded, disks
	// marked inconsistent. Answer: Prepared.
	Prepare struct{ Conn Conn }

	// Welcome accepts the stream. Last is the newest acknowledged epoch (0: none); a resumed
	// stream goes on after it.
	Welcome struct {
		Conn Conn
		Last pact.Epoch
	}

	// Refuse tells why, tells the higher term if there is one (Term != 0), and closes.
	// Blank: it asks to go on from an image that is not here; it learns that, and starts afresh.
	Refuse struct {
		Conn  Conn
		Term  pact.Term
		Why   string
		Blank bool
	}

	// Close ends a connection.
	Close struct {
		Conn Conn
		Why  string
	}

	// Ack commits the epoch: acknowledge, then apply it to RAM and hand its writes to the journal.
	Ack struct {
		Conn  Conn
		Epoch pact.Epoch
	}

	// Take commits the epoch as Ack does, but does not tell: pages are missing. The acknowledgement of a
	// later epoch will cover it.
	Take struct {
		Conn  Conn
		Epoch pact.Epoch
	}

	// Keep holds the staged epoch back, unacknowledged: an Ack, a Take or a Drop for it follows. Nothing
	// more is read from the connection meanwhile.
	Keep struct {
		Conn  Conn
		Epoch pact.Epoch
	}

	// Drop discards the staged epoch.
	Drop struct {
		Conn  Conn
		Epoch pact.Epoch
	}

	// Propose asks for a Raft entry. Repetitions carry the same ID.
	Propose struct{ Command pact.Command }

	// AskLater: send Again after a while.
	AskLater struct{}

	// Arm starts the silence detector afresh. FirstContact: no stream is there yet, the new
	// primary has to open one first.
	Arm struct{ FirstContact bool }

	// Disarm stops it.
	Disarm struct{}

	// ColdStart boots the guest from its disks. Answer: Activated or Failed.
	ColdStart struct{ Assignment pact.Assignment }

	// Activate makes the image run: journal durable and applied, state loaded, clock advanced, vCPUs
	// started; held frames and announcements only once the marker (Assignment.Term, From) is durable.
	// Answer: Activated or Failed.
	Activate struct {
		Assignment pact.Assignment
		From       pact.Epoch
	}

	// TakeReplica: this process was the primary until a switchover; its stopped machine is the
	// image as of epoch Base.
	TakeReplica struct {
		Assignment pact.Assignment
		Base       pact.Epoch
	}

	// Heard tells the primary's side that somebody spoke of a higher term: it stops.
	Heard struct{ Term pact.Term }

	// Outdated marks this host's disk copies outdated, durably, where they are marked current.
	Outdated struct{ Term pact.Term }

	// End stops everything that still runs, drops what is held, drains the disks and ends the process.
	End struct {
		How Ending
		Why string
	}

	// Note is something for the event log and for people.
	Note struct {
		Kind string
		Text string
	}
)

func (Prepare) action()     {}
func (Welcome) action()     {}
func (Refuse) action()      {}
func (Close) action()       {}
func (Ack) action()         {}
func (Take) action()        {}
func (Keep) action()        {}
func (Drop) action()        {}
func (Propose) action()     {}
func (AskLater) action()    {}
func (Arm) action()         {}
func (Disarm) action()      {}
func (ColdStart) action()   {}
func (Activate) action()    {}
func (TakeReplica) action() {}
func (Heard) action()       {}
func (Outdated) action()    {}
func (End) action()         {}
func (Note) action()        {}

// Ending says how a process ends; the driver turns it into an exit code.
type Ending string

const (
	EndDone      Ending = "done"      // the guest was stopped
	EndReplaced  Ending = "replaced"  // the guest runs elsewhere: be its next replica under a new incarnation
	EndDiscarded Ending = "discarded" // the image can't be used for what comes next: start afresh
	EndFailed    Ending = "failed"
)
