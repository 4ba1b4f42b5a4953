package lockstep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/fencing"
	"github.com/pollux-ha/pollux/lockstep/core"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/memory"
)

// Machine is what an Engine needs of vmm.Machine.
type Machine interface {
	RAM() *memory.RAM
	// RequestPause makes OnPause run soon, also while the vCPUs stay stopped. It is called with the
	// Engine's mutex held and must not wait for a pause.
	RequestPause()
	Stop() error
	SetDirtyLogging(on bool) error
	DirtyCount() (int, error)
	Emit(nic int, frame []byte) error
	OnReceive(fn func(nic int, frame []byte))
	CopyDisk(disk int, offset, n int64)
}

// Pause is what an Engine needs of vmm.Pause.
type Pause interface {
	Capture(c *vmm.Capture) error
	Forget() error
}

// Host is the process around an Engine. None of its methods may block, or call back into the Engine
// before it has returned.
type Host interface {
	// Propose passes a question on to Raft; Answered or Assigned follow.
	Propose(pact.Command)
	// WriteMarker makes the disk marker of a term durable, then calls Engine.MarkerDurable.
	WriteMarker(pact.Term)
	// Refused says why an operator's order is not followed.
	Refused(why string)
	// Ended is the last call: the vCPUs have stopped for good, disk I/O has drained, what was held has
	// been dropped, the stream is closed.
	Ended(outcome core.Outcome, a pact.Assignment, why string)
	// Healed says that a damaged page of guest memory, by its page index, was replaced with the replica's copy.
	Healed(page int, took time.Duration)
	// ReplicaLost says that the replica's copies of pages are of no use, and are sent again: they are damaged,
	// or (differs) hold something else than this host's.
	ReplicaLost(pages []uint32, differs bool)
	// Changed says that Status would tell something new.
	Changed()
}

// Disk is the primary's copy of a disk, to be compared with the replica's.
type Disk interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Config is what an Engine is made of. Zero values of tunables mean their defaults.
type Config struct {
	Guest   string
	Self    pact.Party
	Machine Machine
	Host    Host
	// Dial opens an authenticated connection to a peer's stream address.
	Dial  func(ctx context.Context, p link.Peer) (net.Conn, error)
	Disks []Disk
	// Boot is the digest of what the guest boots from (checkpoint.BootDigest).
	Boot checkpoint.Digest
	// Console takes what the guest wrote to its console, when it may be seen. Nil drops it.
	Console func(p []byte)
	// Agent takes what the guest's agent said, when it may be heard. Nil drops it.
	Agent func(p []byte)
	// MACs are the addresses that the guest's network cards have now, for announcements. It must not wait
	// for a pause. Nil announces nothing.
	MACs func() []net.HardwareAddr
	Log  *zap.Logger

	// Heartbeat is the engine's pulse: how often a silent stream hears of us, and the unit of the
	// epoch policy. Silence is when the peer's silence makes us ask Raft.
	Heartbeat time.Duration
	Silence   time.Duration
	// MaxEpoch bounds an epoch that nobody waits for. A guest that does next to nothing is left
	// alone for up to ten times as long.
	MaxEpoch time.Duration
	// AskAgain is when a question without an answer is put again.
	AskAgain time.Duration
	// SwitchoverLimit is when a switchover without an outcome is given up.
	SwitchoverLimit time.Duration
	// AckLimit is when a replica that lives but acknowledges nothing counts as lost, link.SyncSilences times longer while
	// it is being filled.
	AckLimit time.Duration

	InFlight       int // epochs captured and not acknowledged
	DemandInFlight int // with so many in flight waiting output does not end an epoch, an Ack will
	DirtyBudget    int // pages that end an epoch
	FillPages      int // pages of a synchronization that travel in one epoch
	HoldBytes      int // output held at most; more is dropped, as by a full network card
	WriteBytes     int // disk writes of one epoch that end it; four times as many stop the guest
	CachePages     int // of the encoder
	ScrubPages     int // a second, that are compared with the replica's; negative: none

	// Now is a clock that never steps and counts suspends. It is never 0.
	Now func() time.Duration
}

func (c *Config) setDefaults() error {
	if c.Machine == nil || c.Host == nil || c.Dial == nil {
		return errors.New("lockstep: machine, host and dial have to be given")
	}
	if c.Self.IsZero() || c.Guest == "" {
		return errors.New("lockstep: guest and own party have to be named")
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = fencing.Boot
	}
	setDuration(&c.Heartbeat, link.DefaultHeartbeat)
	setDuration(&c.Silence, link.DefaultSilence)
	setDuration(&c.MaxEpoch, link.DefaultMaxEpoch)
	setDuration(&c.AskAgain, link.DefaultAskAgain)
	setDuration(&c.SwitchoverLimit, 2*time.Second)
	setDuration(&c.AckLimit, 5*time.Second)
	setInt(&c.InFlight, 3)
	setInt(&c.DemandInFlight, 1)
	setInt(&c.DirtyBudget, 4096)
	setInt(&c.FillPages, 4096)
	setInt(&c.HoldBytes, 32<<20)
	setInt(&c.WriteBytes, 8<<20)
	setInt(&c.CachePages, checkpoint.DefaultCachePages)
	setInt(&c.ScrubPages, 128)
	if c.Silence < 2*c.Heartbeat {
		return fmt.Errorf("lockstep: silence (%v) has to be at least twice the heartbeat (%v)", c.Silence, c.Heartbeat)
	}
	return nil
}

func setDuration(v *time.Duration, d time.Duration) {
	if *v == 0 {
		*v = d
	}
}

func setInt(v *int, d int) {
	if *v == 0 {
		*v = d
	}
}
