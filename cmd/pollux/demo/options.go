package demo

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Fault is what happens to a host.
type Fault string

const (
	// Kill kills the data-plane process that runs the guest.
	Kill Fault = "kill"
	// Power cuts a host's power: its cables fall silent and everything on it is killed.
	Power Fault = "power"
	// Hang stops all of a host's processes where they stand, and lets them go on later.
	Hang Fault = "hang"
	// Link cuts the replication network, with both hosts alive.
	Link Fault = "link"
	// Isolate cuts a host off from everyone.
	Isolate Fault = "isolate"
	// Daemon kills a host's daemon and nothing else, and starts it again later. No guest may notice.
	Daemon Fault = "daemon"
	// Memory damages a page of the guest's memory that was written since the last checkpoint; of the replica's
	// copy, any.
	Memory Fault = "memory"
)

// Faults are all of them.
var Faults = []Fault{Kill, Power, Hang, Link, Isolate, Daemon, Memory}

// Victim is whom a fault hits.
type Victim string

const (
	VictimPrimary Victim = "primary" // the host that runs the guest
	VictimReplica Victim = "replica" // the host that holds its copy
	VictimWitness Victim = "witness" // which runs no guest and has no replication link
)

// During is what is going on when a fault comes.
type During string

const (
	// DuringNothing: the guest is protected and nothing else happens.
	DuringNothing During = "none"
	// DuringResync: the host that was lost is being filled again when the fault hits it once more.
	DuringResync During = "resync"
	// DuringSwitchover: a switchover has just been ordered; the fault hits either host.
	DuringSwitchover During = "switchover"
)

// Options say what a demo does.
type Options struct {
	// Fault and Rounds make it run unattended. No fault: the story, told for people.
	Fault  Fault
	Rounds int
	Victim Victim // empty: the primary
	During During
	Twice  bool   // each round's fault comes again, on the new primary, as soon as the guest is protected again
	Load   bool   // redis-benchmark runs all the time
	Seed   uint64 // of all choices; 0 draws one
	// Silence is how long a host may be silent before its twin asks (timeouts.silence); 0: the daemons' default.
	Silence time.Duration
	// Dir is where the demo's directory is made; empty: the system's usual place.
	Dir string
	// Keep leaves that directory behind.
	Keep bool
	// Verbose has the daemons log everything.
	Verbose bool
}

// ErrUsage says that the options don't fit together.
var ErrUsage = errors.New("demo")

// Validate checks the options and fills in what was left out.
func (o *Options) Validate() error {
	if o.During == "" {
		o.During = DuringNothing
	}
	if o.Victim == "" {
		o.Victim = VictimPrimary
	}
	switch {
	case o.Fault != "" && !slices.Contains(Faults, o.Fault):
		return fmt.Errorf("%w: unknown fault %q; there are %s", ErrUsage, o.Fault, FaultNames())
	case !slices.Contains([]During{DuringNothing, DuringResync, DuringSwitchover}, o.During):
		return fmt.Errorf("%w: --during %q: none, resync or switchover", ErrUsage, o.During)
	case !slices.Contains([]Victim{VictimPrimary, VictimReplica, VictimWitness}, o.Victim):
		return fmt.Errorf("%w: --victim %q: primary, replica or witness", ErrUsage, o.Victim)
	case o.Fault == "" && (o.During != DuringNothing || o.Twice || o.Victim != VictimPrimary):
		return fmt.Errorf("%w: --during, --twice and --victim say when and where a fault comes: name one with --fault", ErrUsage)
	case o.Victim == VictimWitness && (o.Fault == Kill || o.Fault == Link || o.Fault == Memory):
		return fmt.Errorf("%w: a witness has no guest and no replication link: --fault %s can't hit it", ErrUsage, o.Fault)
	case o.Victim != VictimPrimary && o.During != DuringNothing:
		return fmt.Errorf("%w: --during %s chooses its victims itself", ErrUsage, o.During)
	case o.Silence < 0:
		return fmt.Errorf("%w: --silence %v: a time like 1s", ErrUsage, o.Silence)
	case o.Fault != "" && o.Rounds < 1:
		return fmt.Errorf("%w: --rounds %d: at least 1", ErrUsage, o.Rounds)
	}
	return nil
}

// FaultNames lists the faults for people.
func FaultNames() string {
	var names []string
	for _, f := range Faults {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}
