package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// MaxLine bounds a line, its newline included, in bytes.
const MaxLine = 64 << 10

// Kind says what an event is about.
type Kind string

// The kinds that Pollux writes. Detail holds what is particular to each; "reason" is in most of them.
const (
	DaemonStart Kind = "daemon-start" // the host daemon is up: version
	DaemonStop  Kind = "daemon-stop"  // and ends in an orderly way
	GuestStart  Kind = "guest-start"  // a data-plane process is about to run the guest
	GuestStop   Kind = "guest-stop"   // the guest stops for good: power-off, operator's order
	GuestReset  Kind = "guest-reset"  // the guest boots again: reason
	GuestKept   Kind = "guest-kept"   // the guest has died and stands still, as its policy is: event
	GuestDump   Kind = "guest-dump"   // its memory was written to a file of this host: path, bytes
	Protect     Kind = "protect"      // a replica becomes entitled to take over: epoch, replica
	GoSolo      Kind = "go-solo"      // output does not wait any more
	RoleChange  Kind = "role-change"  // this host's part in a guest changes: from, to
	Takeover    Kind = "takeover"     // the replica becomes primary because the primary is lost: epoch
	Switchover  Kind = "switchover"   // roles exchanged by order: epoch
	Surrender   Kind = "surrender"    // the primary gives the guest away because of its own fault
	Fault       Kind = "fault"        // something is broken: what, where
	Heal        Kind = "heal"         // a page or block was replaced with the twin's copy
	Fence       Kind = "fence"        // a host is powered off, or fences itself: agent, target, outcome
	DiskMark    Kind = "disk-mark"    // a disk copy becomes current, outdated or inconsistent
	Membership  Kind = "membership"   // a host or witness joins, leaves, or changes its vote
	Operator    Kind = "operator-order"
	Access      Kind = "access"     // somebody was turned away from the API or from joining: from, reason
	LogRepair   Kind = "log-repair" // the rest of an unfinished append was cut off: bytes, text
	LogTrim     Kind = "log-trim"   // the oldest segment of the log is deleted: file, from, through, hash
)

// Event is one line. Of an event to be appended, Kind is required; Seq, Host, Prev and Hash are
// set by the log, and so is Time where it is zero.
type Event struct {
	Seq    uint64         `json:"seq"`
	Time   time.Time      `json:"time"`
	Host   string         `json:"host"`
	Kind   Kind           `json:"kind"`
	Guest  string         `json:"guest,omitempty"`
	Term   uint64         `json:"term,omitempty"`
	Actor  string         `json:"actor,omitempty"` // who: "daemon", "dataplane", or the operator's user name
	Detail map[string]any `json:"detail,omitempty"`
	Prev   string         `json:"prev"`
	Hash   string         `json:"hash"`
}

const (
	hashHead = `,"hash":"`
	hashTail = `"}` + "\n"
	hashSize = len(hashHead) + 2*sha256.Size + len(hashTail)
)

// genesis is the prev of the first line.
var genesis = hex.EncodeToString(make([]byte, sha256.Size))

// encode sets Hash and returns the line.
func (e *Event) encode() ([]byte, error) {
	if e.Kind == "" {
		return nil, errors.New("the event has no kind")
	}
	e.Hash = ""
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode the event: %w", err)
	}
	// What json wrote ends in an empty hash.
	body := b.Bytes()[:b.Len()-len(hashHead)-len(hashTail)]
	sum := sha256.Sum256(body)
	e.Hash = hex.EncodeToString(sum[:])
	line := append(body, hashHead+e.Hash+hashTail...)
	if len(line) > MaxLine {
		return nil, fmt.Errorf("the event takes %d bytes, a line holds at most %d: shorten its detail", len(line), MaxLine)
	}
	return line, nil
}

// decode parses a line, newline included, and checks it against its own hash. The reason that it gives is
// for people.
func decode(line []byte) (Event, error) {
	if len(line) < hashSize || len(line) > MaxLine || !bytes.HasSuffix(line, []byte(hashTail)) {
		return Event{}, errors.New("is not an event line")
	}
	body, tail := line[:len(line)-hashSize], line[len(line)-hashSize:]
	if !bytes.HasPrefix(tail, []byte(hashHead)) {
		return Event{}, errors.New("does not end in a hash")
	}
	sum := sha256.Sum256(body)
	if got := string(tail[len(hashHead) : len(hashHead)+2*sha256.Size]); got != hex.EncodeToString(sum[:]) {
		return Event{}, errors.New("was changed: its content does not match its hash")
	}
	var e Event
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return Event{}, fmt.Errorf("is not valid JSON: %w", err)
	}
	// A line that this package did not write may repeat a member; the bytes must say what Event says.
	if !bytes.HasPrefix(line, seqPrefix(e.Seq)) {
		return Event{}, errors.New("does not begin with its sequence number")
	}
	return e, nil
}

// seqPrefix is how the line with that number begins.
func seqPrefix(seq uint64) []byte {
	return append(strconv.AppendUint([]byte(`{"seq":`), seq, 10), `,"time":"`...)
}

// follows says what is wrong with e as the line after the one with that number and hash.
func (e *Event) follows(seq uint64, hash string) error {
	if e.Seq != seq+1 {
		return fmt.Errorf("has sequence number %d, expected %d: lines are missing, moved or repeated", e.Seq, seq+1)
	}
	if e.Prev != hash {
		return errors.New("does not continue the line before: one of the two was replaced")
	}
	return nil
}
