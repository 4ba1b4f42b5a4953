// Package link is the conversation between a host's daemon and its data-plane processes, one Unix
// socket a process. The process listens, so that a restarted daemon finds it again; a process whose
// daemon is away goes on in the mode that it has. Messages are JSON objects, each preceded by its
// length as a little-endian u32.
package link

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// MaxMessageBytes bounds one message; assignments take hundreds of bytes.
const MaxMessageBytes = 1 << 20

// Message is anything that either side says. Exactly one field is set, File aside.
type Message struct {
	// Daemon to process.

	// Assignment is the newest that the host's own Raft log has applied. It is sent at connection
	// and after every change; only this can start a guest.
	Assignment *pact.Assignment `json:"assignment,omitempty"`
	// Answer settles a proposal of this process, or says that its outcome is not known yet (the
	// process holds its output and asks again).
	Answer *Answer `json:"answer,omitempty"`
	// Peer tells a primary where its guest's would-be replica listens; a zero Party: there is none.
	Peer *Peer `json:"peer,omitempty"`
	// Order is an operator's wish. File, which travels beside the message, is what it needs open.
	Order *Order   `json:"order,omitempty"`
	File  *os.File `json:"-"`

	// Process to daemon.

	// Hello is the first message of the process on each connection.
	Hello *Hello `json:"hello,omitempty"`
	// Proposal asks for a Raft entry. It may be repeated with the same ID.
	Proposal *pact.Command `json:"proposal,omitempty"`
	// Status is sent after every change and a few times a second.
	Status *Status `json:"status,omitempty"`
}

// Answer is the outcome of a proposal.
type Answer struct {
	ID      string        `json:"id"`
	Unknown string        `json:"unknown,omitempty"` // why the outcome isn't known; Verdict is nil then
	Verdict *pact.Verdict `json:"verdict,omitempty"`
}

// Peer is the twin's data-plane process.
type Peer struct {
	Party   pact.Party `json:"party"`
	Address string     `json:"address"` // host:port of its checkpoint stream
}

// Order is an operator's wish. Its outcome shows in Status and in assignments.
type Order struct {
	Kind string `json:"kind"` // "switchover", "power-button", "kill" (stop at once), "abandon" (a replica that is not wanted any more: exit), "balloon"

	MemoryBytes uint64  `json:"memory_bytes,omitempty"` // of a balloon order
	Path        string  `json:"path,omitempty"`         // of a dump
	Damage      *Damage `json:"damage,omitempty"`       // of a damage order
}

// Hello introduces a process.
type Hello struct {
	Guest string     `json:"guest"`
	Party pact.Party `json:"party"`
	PID   int        `json:"pid"`
	// TakesFiles says that the process can't open files of the host, and takes them with orders instead.
	TakesFiles    bool   `json:"takes_files,omitempty"`
	StreamAddress string `json:"stream_address"` // where its replica side listens for a checkpoint stream
}

// Role is what a process is doing at the moment.
type Role string

const (
	RoleWaiting Role = "waiting" // has a machine ready, no right to anything: a replica before its first stream
	RolePrimary Role = "primary"
	RoleReplica Role = "replica"
	RoleLoser   Role = "loser" // has learned of a higher term, drains its disk
)

// Status is what a process tells about itself. Counters count from the process's start.
type Status struct {
	Guest string     `json:"guest"`
	Party pact.Party `json:"party"`
	Role  Role       `json:"role"`
	Term  pact.Term  `json:"term"`
	Mode  string     `json:"mode"` // "stopped", "solo", "syncing", "protected", "deciding", "switching"
	// Why it is in that mode and what it waits for, for people.
	Detail string `json:"detail,omitempty"`

	EpochCaptured pact.Epoch `json:"epoch_captured"`
	EpochAcked    pact.Epoch `json:"epoch_acked"`
	EpochDurable  pact.Epoch `json:"epoch_durable"`

	Epochs         uint64 `json:"epochs"`
	DirtyPages     uint64 `json:"dirty_pages"`
	DirtyBytes     uint64 `json:"dirty_bytes"` // pages x 4,096
	WireBytes      uint64 `json:"wire_bytes"`
	FramesReleased uint64 `json:"frames_released"`
	FramesHeld     int    `json:"frames_held"`
	SyncTotal      uint64 `json:"sync_total_bytes"` // of the running synchronization
	SyncDone       uint64 `json:"sync_done_bytes"`

	// Confinement says how the process is shut in: "full", "off", or "partial: " and what is missing.
	Confinement string `json:"confinement,omitempty"`

	Heals  uint64 `json:"heals,omitempty"`  // damaged pages of guest memory that were replaced with the replica's copy
	Resent uint64 `json:"resent,omitempty"` // pages that were sent again because the replica's copies were of no use
	// Scrubbed are pages that were compared with the replica's, Diverged those that differed.
	Scrubbed uint64 `json:"scrubbed,omitempty"`
	Diverged uint64 `json:"diverged,omitempty"`

	// Balloon says what of its memory the guest has; only of a primary whose guest has a driver.
	Balloon *Balloon `json:"balloon,omitempty"`

	// Kept says after what the guest stands still, until an operator resets or stops it: "crash", "panic" or
	// "watchdog". Empty: it does not.
	Kept string `json:"kept,omitempty"`
	Dump *Dump  `json:"dump,omitempty"` // the last one that was ordered; nil: none

	// Timings are the last epochs' and the last takeover's phases in microseconds, by name:
	// "stop", "harvest", "copy", "state", "clear", "resume", "pause", "encode", "send", "ack", "heal";
	// "detect", "decide", "activate", "announce".
	TimingsUs map[string]Summary `json:"timings_us,omitempty"`
}

// Dump is a guest's memory in a file of the primary's host.
type Dump struct {
	Path  string `json:"path"`
	Done  bool   `json:"done"`
	Bytes int64  `json:"bytes,omitempty"` // of the file, holes included
	Error string `json:"error,omitempty"` // why there is none
}

// Balloon is a guest's memory as its balloon and the guest itself tell of it, all in bytes.
type Balloon struct {
	Driver    bool   `json:"driver"`          // the guest has one
	Target    uint64 `json:"target_bytes"`    // that the guest is to keep
	Current   uint64 `json:"current_bytes"`   // that it keeps
	Discarded uint64 `json:"discarded_bytes"` // given back to the host since the process started, free pages included
	// What the guest said last; 0: nothing.
	Total     uint64 `json:"guest_total_bytes,omitempty"`
	Free      uint64 `json:"guest_free_bytes,omitempty"`
	Available uint64 `json:"guest_available_bytes,omitempty"`
	Caches    uint64 `json:"guest_caches_bytes,omitempty"`
}

// Summary is a distribution over recent samples.
type Summary struct {
	P50     float64 `json:"p50"`
	P90     float64 `json:"p90"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
	Samples int     `json:"samples"`
}

// ErrTooLong says that a message exceeds MaxMessageBytes.
var ErrTooLong = errors.New("control message too long")

// Conn is one end of the conversation. Send may be called from several goroutines, Receive from one.
type Conn struct {
	c     net.Conn
	r     io.Reader
	files *fileReader // nil: none are taken
	mu    sync.Mutex
}

// NewConn wraps a connection.
func NewConn(c net.Conn) *Conn { return &Conn{c: c, r: c} }

// Close ends the conversation; a blocked Receive returns an error.
func (c *Conn) Close() error { return c.c.Close() }

// Send writes one message.
func (c *Conn) Send(m Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode control message: %w", err)
	}
	if len(body) > MaxMessageBytes {
		return fmt.Errorf("%w: %d bytes", ErrTooLong, len(body))
	}
	buf := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	c.mu.Lock()
	defer c.mu.Unlock()
	buf = append(buf, body...)
	if m.File != nil {
		err = c.sendFile(buf, m.File)
	} else {
		_, err = c.c.Write(buf)
	}
	if err != nil {
		return fmt.Errorf("send control message: %w", err)
	}
	return nil
}

// Receive reads the next message. io.EOF says that the other side is gone.
func (c *Conn) Receive() (m Message, err error) {
	if c.files != nil {
		defer func() {
			m.File = c.files.take()
			if err != nil && m.File != nil {
				m.File.Close()
				m.File = nil
			}
		}()
	}
	var h [4]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return Message{}, err
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n > MaxMessageBytes {
		return Message{}, fmt.Errorf("%w: %d bytes", ErrTooLong, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return Message{}, fmt.Errorf("read control message: %w", err)
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return Message{}, fmt.Errorf("decode control message: %w", err)
	}
	return m, nil
}
