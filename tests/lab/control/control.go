// Package control is what a lab and the agent in a lab host say to each other over a virtio-serial port: a
// stream of messages in both directions, in which several commands run side by side.
package control

import (
	"encoding/gob"
	"fmt"
	"io"
	"sync"
)

// PortName is the virtio-serial port's name.
const PortName = "pollux.lab"

// Kind says what a message is.
type Kind byte

const (
	Ready    Kind = iota + 1 // agent: the host is up
	Start                    // lab: run Command under this ID
	Input                    // lab: Data for its standard input; none: the end of it
	Kill                     // lab: kill it and what it started, as far as it stayed in its process group
	Output                   // agent: Data from its standard output
	Complain                 // agent: Data from its standard error
	Exit                     // agent: it is over
)

// Message is one message.
type Message struct {
	ID      uint64
	Kind    Kind
	Command *Command
	Data    []byte
	Code    int    // Exit: the exit code, 128 and more for a signal
	Error   string // Exit: why there was no exit code; Ready: what went wrong on the way
}

// Command is a program to be run. Its first word may be one of the agent's own commands.
type Command struct {
	Argv []string
	Dir  string
	Env  []string // added to the agent's
}

// The agent's own commands.
const (
	Put      = "@put"      // PATH MODE: writes its input to a file, mode in octal
	Get      = "@get"      // PATH: a file's content
	PowerOff = "@poweroff" // writes everything to the disks and switches the host off
)

// ChunkBytes bounds a message's data.
const ChunkBytes = 32 << 10

// Conn is one end of the channel. Send may be called from several goroutines, Receive from one.
type Conn struct {
	mu  sync.Mutex
	enc *gob.Encoder
	dec *gob.Decoder
}

// NewConn talks over rw.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{enc: gob.NewEncoder(rw), dec: gob.NewDecoder(rw)}
}

// Send sends a message.
func (c *Conn) Send(m *Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.enc.Encode(m); err != nil {
		return fmt.Errorf("control channel: %w", err)
	}
	return nil
}

// Receive waits for a message.
func (c *Conn) Receive() (*Message, error) {
	m := &Message{}
	if err := c.dec.Decode(m); err != nil {
		return nil, fmt.Errorf("control channel: %w", err)
	}
	return m, nil
}

// Queue holds what one goroutine has for another that may be slower, without an end: whoever serves a
// channel must never wait for one command's reader.
type Queue struct {
	mu     sync.Mutex
	wake   *sync.Cond
	chunks [][]byte
	closed bool
}

// NewQueue makes an empty queue.
func NewQueue() *Queue {
	q := &Queue{}
	q.wake = sync.NewCond(&q.mu)
	return q
}

// Put adds a chunk, which is the queue's from now on.
func (q *Queue) Put(b []byte) {
	q.mu.Lock()
	q.chunks = append(q.chunks, b)
	q.mu.Unlock()
	q.wake.Signal()
}

// Close says that no more will come.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wake.Broadcast()
}

// Drain writes everything to w until the queue is closed and empty. After an error of w the rest is
// thrown away.
func (q *Queue) Drain(w io.Writer) (err error) {
	for {
		q.mu.Lock()
		for len(q.chunks) == 0 && !q.closed {
			q.wake.Wait()
		}
		chunks := q.chunks
		q.chunks = nil
		q.mu.Unlock()
		if len(chunks) == 0 {
			return err
		}
		for _, b := range chunks {
			if err == nil {
				_, err = w.Write(b)
			}
		}
	}
}
