// Package pact is the replicated state on which the safety of every takeover rests: for each guest
// an assignment that says who may run it and in what mode, under a term. It is a pure state machine:
// commands in, the new state and a verdict out. No I/O, no clock, no goroutines. Raft orders the
// commands; every voter and every host applies the same ones in the same order.
package pact

import "fmt"

// Term is the fencing token of a guest. It rises with every change of who may run the guest, and in
// what mode, and never falls. 0 is the term of a guest that has been created and never started.
type Term uint64

// Incarnation is the random number that a data-plane process gives itself at its start. A process
// that died and came back is another one: it has lost the guest's memory. 0 is nobody's.
type Incarnation uint64

// Epoch numbers checkpoints without gaps within a term.
type Epoch uint64

// Party is one data-plane process on one host.
type Party struct {
	Host        string      `json:"host"`
	Incarnation Incarnation `json:"incarnation"`
}

// IsZero reports that there is no such party.
func (p Party) IsZero() bool { return p == Party{} }

func (p Party) String() string {
	if p.IsZero() {
		return "nobody"
	}
	return fmt.Sprintf("%s/%016x", p.Host, uint64(p.Incarnation))
}

// Mode says whether a guest runs, and whether somebody else is entitled to take it over.
type Mode string

const (
	Stopped   Mode = "stopped"   // nobody runs it
	Solo      Mode = "solo"      // the primary runs it, output does not wait, nobody may take over
	Protected Mode = "protected" // output waits for commit, the named replica may take over
)

// Assignment is the committed state of one guest. Everything that a host does with a guest follows
// from the newest assignment that its own Raft log has applied.
type Assignment struct {
	Guest string `json:"guest"`
	Term  Term   `json:"term"`
	Mode  Mode   `json:"mode"`
	// Primary runs the guest. While Stopped it is the party that ran it last.
	Primary Party `json:"primary"`
	// Replica may take over. Set in mode Protected only.
	Replica Party `json:"replica"`
	// Base is the epoch from which on the replica may promote, of the numbering of BaseTerm: the k of
	// Protect, or the final epoch of a Switchover. After a Promote: the epoch that was promoted from.
	Base     Epoch `json:"base"`
	BaseTerm Term  `json:"base_term"`
	// CurrentDisk names the host whose disk copy is current, and the term whose durable marker proves
	// it. After a change of primary it is still the previous primary's, until Mark.
	CurrentDisk DiskCopy `json:"current_disk"`
	// Unproven are disk copies that may be newer than CurrentDisk, oldest first: those of primaries
	// that have committed no Mark in their tenure. A start from an older copy needs the word of each
	// later host that it has no durable marker.
	Unproven []Claim `json:"unproven,omitempty"`
	// Tenure is the term in which Primary became the primary. A durable marker of that term or of a
	// later one on its host was written by it.
	Tenure Term `json:"tenure"`
	// Gone are those of Primary and Replica whose process is known to have ended. Nothing that they
	// may still have proposed is applied.
	Gone []Party `json:"gone,omitempty"`
	// Created is the Raft index of the guest's Create: what tells a guest from a later one of its name.
	Created uint64 `json:"created"`
	// Rewound is the term of the last start from a disk copy that was not known to be current: from there on
	// the guest lives another life than the one that it may have had. 0: there was none.
	Rewound Term `json:"rewound,omitempty"`
	// Spec is what the operator asked for.
	Spec Spec `json:"spec"`
	// Desired says whether the guest is meant to run.
	Desired Desired `json:"desired"`
}

// DiskCopy names a host's copies of a guest's disks as of a term.
type DiskCopy struct {
	Host string `json:"host"`
	Term Term   `json:"term"`
}

// Claim is the disk copy of a primary whose durable marker Raft does not know of.
type Claim struct {
	Party Party `json:"party"`
	Term  Term  `json:"term"` // of its tenure
}

// Desired is the operator's will.
type Desired string

const (
	DesiredStopped Desired = "stopped"
	DesiredRunning Desired = "running"
)

// Spec describes a guest. It is replicated, so it names nothing that exists on one host only, save
// images that the operator has put on both.
type Spec struct {
	// Hosts are the hosts that may hold a copy, in order of preference; a guest's first start
	// happens on the first. One host alone means a guest without protection.
	Hosts []string `json:"hosts"`
	// Exactly one of Kernel and Firmware is set.
	Kernel  string `json:"kernel,omitempty"` // path, or "builtin:ledger"
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`
	// Firmware boots the guest from its own disk: FirmwareUEFI. Its variables are a small mirrored disk of
	// their own, after Disks.
	Firmware    string     `json:"firmware,omitempty"`
	MemoryBytes uint64     `json:"memory_bytes"`
	CPUs        int        `json:"cpus"`
	Disks       []DiskSpec `json:"disks,omitempty"`
	Nets        []NetSpec  `json:"nets,omitempty"`
	// OnPanic says what becomes of a guest whose kernel has panicked or that its watchdog gave up. Empty is PanicRestart.
	OnPanic PanicPolicy `json:"on_panic,omitempty"`
	// CPU is the processor that the guest sees. It is decided when the guest is created.
	CPU CPUSpec `json:"cpu,omitzero"`
	// Test marks a guest that faults may be injected into without more ado.
	Test bool `json:"test,omitempty"`
}

// CPUSpec is a guest's processor. This package carries it and looks at nothing but its size.
type CPUSpec struct {
	Policy string `json:"policy"`          // what the operator asked for: "pair", "host", "x86-64-v3"
	Model  string `json:"model,omitempty"` // what came of it, for all starts and both copies: the text of a vmm/cpu.Model
}

// FirmwareUEFI is UEFI firmware: OVMF as the distribution packages it.
const FirmwareUEFI = "uefi"

// PanicPolicy is what becomes of a guest that has panicked.
type PanicPolicy string

const (
	PanicRestart PanicPolicy = "restart" // it boots again
	PanicStop    PanicPolicy = "stop"    // it is stopped, as by power-off
	PanicKeep    PanicPolicy = "keep"    // its vCPUs stay stopped and its memory stays, for a dump
)

// DiskSpec is one disk. Its file lies in the host's state directory: guests/<guest>/disk<N>.raw.
type DiskSpec struct {
	SizeBytes uint64 `json:"size_bytes"`
	ReadOnly  bool   `json:"read_only,omitempty"`
	// Serial is the serial number that the guest reads, at most 20 printable ASCII characters; empty: pollux-<N>.
	Serial string `json:"serial,omitempty"`
	Queues int    `json:"queues,omitempty"` // request queues; 0: one for each vCPU, at most 4
}

// NetSpec is one network card. The host makes a tap for it and puts it on the bridge.
type NetSpec struct {
	MAC    string `json:"mac"`
	Bridge string `json:"bridge"`           // name of the host's bridge; the host's config may map it to another
	Queues int    `json:"queues,omitempty"` // queue pairs; 0: one for each vCPU, at most 4
	// MTU is what the guest is told and its tap has; each host's bridge must have no less. 0: nothing is told, 1,500 is meant.
	MTU int `json:"mtu,omitempty"`
	// USO offers segmentation of UDP to the guest. Every host of the guest needs Linux 6.2 for it.
	USO bool `json:"uso,omitempty"`
}

// QueuePairs is how many queue pairs the card has in a guest with so many vCPUs.
func (n NetSpec) QueuePairs(cpus int) int {
	if n.Queues > 0 {
		return n.Queues
	}
	return max(1, min(cpus, defaultQueues))
}

// defaultQueues is how many queues a device has at most where nobody has said it: one I/O thread serves them all.
const defaultQueues = 4

// Kind names a command.
type Kind string

const (
	Create     Kind = "create"      // a new guest: Spec. Term 0, Stopped.
	Delete     Kind = "delete"      // only while Stopped
	SetDesired Kind = "set-desired" // the operator's will: Desired
	SetCPU     Kind = "set-cpu"     // another processor for a guest that is stopped and meant to be: CPU
	Start      Kind = "start"       // Stopped, or Solo/Protected whose processes are all known dead -> Solo. By = the new primary
	Stop       Kind = "stop"        // Solo or Protected -> Stopped. By = the primary
	Protect    Kind = "protect"     // Solo -> Protected. By = the primary, Other = the replica, Epoch = k
	Promote    Kind = "promote"     // Protected -> Solo. By = the replica, Epoch = the newest that it acknowledged
	GoSolo     Kind = "go-solo"     // Protected or Solo -> Solo. By = the primary
	Surrender  Kind = "surrender"   // Protected -> Solo under the replica. By = the primary that found itself faulty
	Switchover Kind = "switchover"  // Protected -> Protected, roles exchanged. By = the primary, Epoch = the final one
	Cancel     Kind = "cancel"      // Protected -> Protected, same roles: ends a switchover that got no answer. By = the primary
	Mark       Kind = "mark"        // By = the primary: its marker of this term is durable, its disk is the current one
	Disclaim   Kind = "disclaim"    // By = a party whose process is gone, said by its own host's daemon; NoMarker adds that its host has no durable marker of the term
	Confirm    Kind = "confirm"     // changes nothing; applied only where Term and By are still the primary's
	KeepOut    Kind = "keep-out"    // of no guest: Other.Host gets nothing, by the word of By.Host: Out, Reason
	Readmit    Kind = "readmit"     // of no guest: ends it. By the host that fences, or an operator
	NoOp       Kind = "noop"        // pushes the commit index to followers
)

// Command is one Raft log entry.
type Command struct {
	Kind  Kind   `json:"kind"`
	Guest string `json:"guest,omitempty"`
	// ID makes a proposal recognizable to its proposer, who may have sent it more than once.
	ID string `json:"id"`
	// Term is the term that the proposer believes in. A command whose term is not the assignment's
	// is refused: that is the whole fencing decision.
	Term  Term  `json:"term,omitempty"`
	By    Party `json:"by,omitzero"`
	Other Party `json:"other,omitzero"`
	Epoch Epoch `json:"epoch,omitempty"`
	// EpochTerm is the term in whose numbering Epoch counts. 0: the numbering of the assignment's Base,
	// where that goes on, else the numbering of Term.
	EpochTerm Term `json:"epoch_term,omitempty"`

	Spec    *Spec   `json:"spec,omitempty"`
	Desired Desired `json:"desired,omitempty"`
	// CPU, with SetCPU, is the guest's processor from its next start on.
	CPU      *CPUSpec `json:"cpu,omitempty"`
	NoMarker bool     `json:"no_marker,omitempty"`
	// Out, with KeepOut and Readmit, is what the host is kept out for.
	Out OutKind `json:"out,omitempty"`
	// MarkerTerm, with Start, is the term of the durable marker on the starting host's disk.
	MarkerTerm Term `json:"marker_term,omitempty"`
	// AcceptLoss, with Start, is the operator's explicit order to start from a disk that is not known
	// to be current; it holds the loss in the operator's words and goes into the event log.
	AcceptLoss string `json:"accept_loss,omitempty"`
	Operator   string `json:"operator,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// Verdict is the outcome of a command that Raft has committed and the state machine has seen. (An
// outcome that is not known is not a verdict: the proposer holds its output and asks again.)
type Verdict struct {
	Applied bool   `json:"applied"`
	Reason  string `json:"reason,omitempty"` // why it was refused, for people
	// Assignment is the guest's assignment after the command. A refusal is no verdict on anything
	// but the command: the asker reads the assignment and acts on that.
	Assignment Assignment `json:"assignment"`
	Index      uint64     `json:"index"` // of the Raft log
}
