// Package checkpoint is the stream between a primary and its replica, both ways: what an epoch
// consists of, how it is encoded (zero pages, unchanged pages, word-run deltas against the content
// sent last, s2), and how it is decoded, verified and staged on the other side. docs/wire-format.md
// describes the bytes.
//
// Invariants:
//   - An epoch reaches the caller of Reader.Next whole and verified, or not at all.
//   - A delta refers to the content that the encoder sent last for that page in the same stream; a
//     new stream starts without deltas.
//   - Whatever the other side sends, the decoder answers with an error: no panic, and no more memory
//     than its Limits and the guest's RAM allow.
package checkpoint

import (
	"errors"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// Version is the version of the stream format that this program speaks.
const Version = 1

// PageSize is the unit in which memory travels, in bytes.
const PageSize = 4096

// Errors of a stream. After any of them the stream is of no use any more: close it.
var (
	ErrCorrupt  = errors.New("checkpoint stream is corrupt")
	ErrLimit    = errors.New("checkpoint stream exceeds a limit")
	ErrVersion  = errors.New("checkpoint stream has another format version")
	ErrSequence = errors.New("checkpoint stream is out of sequence (replayed, reordered or with a gap)")
)

// Digest is a chained XXH3-128 over an epoch's encoded content and its predecessor's digest. It
// guards against accidents; against attackers there is TLS.
type Digest [16]byte

// Message is anything that travels on the stream but an epoch's parts.
type Message interface{ kind() frameKind }

// Hello opens a stream; the primary sends it first.
type Hello struct {
	Version   uint16
	Guest     string
	Term      pact.Term
	Primary   pact.Party
	Replica   pact.Party
	Stream    uint64 // random; names this stream in logs
	RAMPages  uint32
	DiskSizes []uint64 // bytes
	Resume    bool     // the primary still has all epochs after the replica's last one
	Boot      Digest   // of what the guest boots from (BootDigest)
}

// Welcome is the replica's answer to Hello.
type Welcome struct {
	Version    uint16
	Stream     uint64
	Party      pact.Party
	LastEpoch  pact.Epoch // newest that it has acknowledged in Hello's term; 0: none
	LastDigest Digest
	Refused    string // not empty: why there will be no stream
}

// Ack says that the replica holds the whole, verified epoch and will apply it.
type Ack struct {
	Epoch  pact.Epoch
	Digest Digest
}

// Durable says that the epoch's disk writes, and all earlier ones, survive a crash of the replica.
type Durable struct{ Epoch pact.Epoch }

// Heartbeat shows that the sender is alive. It goes both ways.
type Heartbeat struct {
	Term     pact.Term
	Sequence uint64
}

// HigherTerm is a word of a term that the other side does not know yet. It stops a host; it starts none.
type HigherTerm struct{ Term pact.Term }

// DiskDigests tells the primary what the replica's disk copy holds, so that a resync sends only the
// chunks that differ. A digest is the XXH3-128 of a chunk; the last chunk of a disk may be short.
type DiskDigests struct {
	Disk       uint8
	ChunkBytes uint32
	First      uint64 // number of the first chunk that this is about
	Zeros      uint64 // so many whole chunks from First on hold nothing but zeros; Digests are of those after them
	Digests    []Digest
	Last       bool // nothing follows for this disk
}

// Received carries frames that the primary's NIC took from the wire, at once and beside the epochs.
// Frame.Epoch is the epoch that was running. A replica that takes over gives the guest again those
// of epochs after the one it goes on from, so that no client has to retransmit.
type Received struct{ Frames []Frame }

// Goodbye announces an orderly end, so that nobody takes it for a fault.
type Goodbye struct{ Reason string }

// Flags describe an epoch.
type Flags uint32

const (
	// FlagFinal marks the last epoch before a switchover.
	FlagFinal Flags = 1 << iota
	// FlagSyncing says that the replica does not hold the whole guest yet: nothing may be promoted from it.
	FlagSyncing
	knownFlags = FlagFinal | FlagSyncing
)

// Page is one page of guest memory by its page index.
type Page struct {
	Index uint32
	Data  []byte // PageSize bytes
}

// DiskWrite is a change of a disk, in the order in which the guest's disk made it: either Data was
// written, or so many bytes became Zeros.
type DiskWrite struct {
	Disk   uint8
	Offset int64 // bytes
	Data   []byte
	Zeros  int64 // bytes; Data is empty then
	Unmap  bool  // the space of Zeros goes back to the storage
}

// Len is the number of bytes that change.
func (w *DiskWrite) Len() int64 { return int64(len(w.Data)) + w.Zeros }

// Frame is an Ethernet frame and the epoch to which it belongs.
type Frame struct {
	Epoch pact.Epoch
	NIC   uint8
	Data  []byte
}

// Epoch is a checkpoint as the primary captured it.
type Epoch struct {
	Number pact.Epoch
	Term   pact.Term
	Flags  Flags
	// Background are pages copied while the guest ran, in a full synchronization. They are older than
	// Pages and are overwritten by them.
	Background []Page
	Pages      []uint32 // page indexes, strictly ascending
	Data       []byte   // len(Pages) pages
	Zero       []uint32 // further dirty pages, which are zero: indexes, strictly ascending, none of Pages
	State      []byte
	Writes     []DiskWrite
	Frames     []Frame // held output that this epoch's commit will release
}

// Stats says what became of an epoch.
type Stats struct {
	Digest     Digest
	Pages      int // dirty pages, background not counted
	Background int
	Zero       int
	Unchanged  int
	Delta      int
	Raw        int
	WireBytes  uint64 // frames with their headers, before TLS
	Encode     time.Duration
	Send       time.Duration // spent in Write calls of the connection
}

// Limits bound what a peer can make a Reader hold.
type Limits struct {
	StateBytes  int   // of one epoch's machine state
	WriteBytes  int64 // of one epoch's disk writes
	OutputBytes int64 // of one epoch's held frames, and of one Received
}

// DefaultLimits fit guests of up to 64 vCPUs.
func DefaultLimits() Limits {
	return Limits{StateBytes: 4 << 20, WriteBytes: 512 << 20, OutputBytes: 64 << 20}
}

// Base is the memory image that deltas refer to: the replica's guest RAM with all earlier epochs applied.
type Base interface {
	Pages() int
	Page(index int) []byte
}
