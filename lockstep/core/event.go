package core

import "github.com/pollux-ha/pollux/cluster/pact"

// Event is something that happened. Events may come late, twice and in any order.
type Event interface{ event() }

type (
	// Begin makes this process the primary. The assignment comes from the host's own Raft log and
	// names it. Last is the epoch that its memory holds: the one promoted from, the final one of a
	// switchover, 0 at a cold start. Marker is the term of a disk marker that this process has made
	// durable already, 0: none.
	Begin struct {
		Assignment pact.Assignment
		Last       pact.Epoch
		Marker     pact.Term
	}

	// Assigned brings an assignment that the host's own Raft log has applied.
	Assigned struct{ Assignment pact.Assignment }

	// Answered brings the outcome of a question, or says (Verdict nil) that it is not known.
	Answered struct {
		ID      string
		Verdict *pact.Verdict
	}

	// Retry says that open questions should be put again: some time has passed, or the way to the
	// daemon is back.
	Retry struct{}

	// StreamUp says that the replica has answered the stream's Hello. Resumed: it holds everything up
	// to Last, and all later epochs will be sent again. Otherwise it is to be filled from nothing.
	StreamUp struct {
		Stream  uint64
		Party   pact.Party
		Resumed bool
		Last    pact.Epoch
	}

	// StreamDown says that the stream is closed, reset or silent, or (Stream 0) that none could be
	// made for the detection time.
	StreamDown struct {
		Stream uint64
		Why    string
	}

	// Captured is told in the pause, before the vCPUs go on. Complete: with this epoch the replica
	// will have been sent the whole memory, state and disks. Final: it was captured for Finish.
	Captured struct {
		Epoch    pact.Epoch
		Complete bool
		Final    bool
	}

	// Acked says that the replica holds the epoch and all earlier ones of the stream.
	Acked struct {
		Stream uint64
		Epoch  pact.Epoch
	}

	// Word is an authenticated word of a term.
	Word struct{ Term pact.Term }

	// OwnGap says that this process has not run for the detection time.
	OwnGap struct{}

	// MarkerDurable says that this host's disk marker of the term survives a power cut.
	MarkerDurable struct{ Term pact.Term }

	// SwitchoverOrdered is the operator's wish; SwitchoverExpired gives it up.
	SwitchoverOrdered struct{}
	SwitchoverExpired struct{}

	// Faulty says that this host or process can't run the guest correctly any more.
	Faulty struct{ Why string }

	// Damaged says that a page of guest memory can't be read. Dirty: it may have been written since the newest
	// captured epoch. Needed: somebody waits for it. It may come again for the same page.
	Damaged struct {
		Page   uint32
		Dirty  bool
		Needed bool
	}

	// Copied is the replica's answer to Fetch: whether it has the page, and as of which epoch.
	Copied struct {
		Stream uint64
		Page   uint32
		Epoch  pact.Epoch
		Good   bool
	}

	// PoweredOff says that the guest switched itself off, and runs no more.
	PoweredOff struct{ Why string }

	// Killed is the operator pulling the guest's plug.
	Killed struct{ Why string }
)

func (Begin) event()             {}
func (Assigned) event()          {}
func (Answered) event()          {}
func (Retry) event()             {}
func (StreamUp) event()          {}
func (StreamDown) event()        {}
func (Captured) event()          {}
func (Acked) event()             {}
func (Word) event()              {}
func (OwnGap) event()            {}
func (MarkerDurable) event()     {}
func (SwitchoverOrdered) event() {}
func (SwitchoverExpired) event() {}
func (Faulty) event()            {}
func (Damaged) event()           {}
func (Copied) event()            {}
func (PoweredOff) event()        {}
func (Killed) event()            {}
