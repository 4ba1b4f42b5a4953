package history

import (
	"fmt"
	"math"
	"time"
)

// Kind is a command.
type Kind uint8

const (
	Get Kind = iota + 1
	Set
	Incr
	Append
)

func (k Kind) String() string {
	switch k {
	case Get:
		return "GET"
	case Set:
		return "SET"
	case Incr:
		return "INCR"
	case Append:
		return "APPEND"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Never is the time of a reply that did not come.
const Never = time.Duration(math.MaxInt64)

// Operation is one request and what became of it.
type Operation struct {
	Client int
	Kind   Kind
	Key    string
	Value  string // what SET and APPEND carried

	// Call is when the request was handed to the kernel, Return when its reply had been read, both
	// on the recorder's monotonic clock. Return is Never where no reply came, or one that doesn't
	// say what happened: the request may have taken effect at any time since Call, or not at all.
	Call, Return time.Duration

	Text   string // GET's reply
	Absent bool   // GET's reply was nil
	Number int64  // INCR's reply: the new value; APPEND's: the new length in bytes

	// Failure says why there is no usable reply: the connection's error, or the server's.
	Failure string
}

// Known reports that the operation has a reply that tells its effect.
func (o *Operation) Known() bool { return o.Return != Never }

// String describes the operation for people, with times in milliseconds since the recording began.
func (o Operation) String() string {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	s := fmt.Sprintf("client %d, %.3f ms: %s %s", o.Client, ms(o.Call), o.Kind, o.Key)
	if o.Kind == Set || o.Kind == Append {
		s += " " + shorten(o.Value)
	}
	switch {
	case !o.Known():
		return s + " -> no reply (" + o.Failure + ")"
	case o.Kind == Get && o.Absent:
		s += " -> nil"
	case o.Kind == Get:
		s += " -> " + shorten(o.Text)
	case o.Kind == Set:
		s += " -> OK"
	default:
		s += fmt.Sprintf(" -> %d", o.Number)
	}
	return s + fmt.Sprintf(" at %.3f ms", ms(o.Return))
}

func shorten(s string) string {
	const most = 40
	if len(s) > most {
		return fmt.Sprintf("%q…%q (%d bytes)", s[:most/2], s[len(s)-most/2:], len(s))
	}
	return fmt.Sprintf("%q", s)
}
