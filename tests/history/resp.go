package history

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// Bounds on a reply. They are far above what the workload can cause; a reply beyond them is a
// broken server, not a big value.
const (
	maxBulkBytes     = 64 << 20
	maxArrayElements = 1 << 20
	maxLineBytes     = 64 << 10
)

// ReplyType is the first byte of a reply in the Redis protocol, version 2.
type ReplyType byte

const (
	SimpleString ReplyType = '+'
	ErrorReply   ReplyType = '-'
	Integer      ReplyType = ':'
	Bulk         ReplyType = '$'
	Array        ReplyType = '*'
)

// Reply is one reply.
type Reply struct {
	Type   ReplyType
	Text   string // of a simple string, an error or a bulk string
	Number int64
	Nil    bool // a bulk string or an array that is absent
	Items  []Reply
}

// ErrProtocol says that the server sent something that isn't the Redis protocol.
var ErrProtocol = errors.New("not a Redis reply")

// Conn is a connection to a Redis server. It never reconnects by itself: what became of a TCP
// connection is one of the things that are watched. It is not safe for concurrent use.
type Conn struct {
	c net.Conn
	r *bufio.Reader
	b []byte
}

// NewConn wraps an open connection.
func NewConn(c net.Conn) *Conn {
	return &Conn{c: c, r: bufio.NewReaderSize(c, 16<<10)}
}

// Close closes the connection.
func (c *Conn) Close() error { return c.c.Close() }

// Do sends one command and reads its reply. A reply of type ErrorReply is not an error of Do; every
// error of Do means that the connection can't be used any more.
func (c *Conn) Do(args ...string) (Reply, error) {
	if err := c.Send(args...); err != nil {
		return Reply{}, err
	}
	return c.Receive()
}

// Send writes one command.
func (c *Conn) Send(args ...string) error {
	c.b = AppendCommand(c.b[:0], args...)
	if _, err := c.c.Write(c.b); err != nil {
		return fmt.Errorf("send %s: %w", args[0], err)
	}
	return nil
}

// Receive reads one reply.
func (c *Conn) Receive() (Reply, error) { return readReply(c.r, 0) }

// AppendCommand appends the encoding of a command to b.
func AppendCommand(b []byte, args ...string) []byte {
	b = append(b, '*')
	b = strconv.AppendInt(b, int64(len(args)), 10)
	b = append(b, "\r\n"...)
	for _, a := range args {
		b = append(b, '$')
		b = strconv.AppendInt(b, int64(len(a)), 10)
		b = append(b, "\r\n"...)
		b = append(b, a...)
		b = append(b, "\r\n"...)
	}
	return b
}

func readReply(r *bufio.Reader, depth int) (Reply, error) {
	line, err := readLine(r)
	if err != nil {
		return Reply{}, err
	}
	if len(line) == 0 {
		return Reply{}, fmt.Errorf("%w: an empty line", ErrProtocol)
	}
	rest := line[1:]
	switch t := ReplyType(line[0]); t {
	case SimpleString, ErrorReply:
		return Reply{Type: t, Text: rest}, nil
	case Integer:
		n, err := strconv.ParseInt(rest, 10, 64)
		if err != nil {
			return Reply{}, fmt.Errorf("%w: integer %q", ErrProtocol, rest)
		}
		return Reply{Type: t, Number: n}, nil
	case Bulk:
		n, err := strconv.Atoi(rest)
		if err != nil || n < -1 || n > maxBulkBytes {
			return Reply{}, fmt.Errorf("%w: bulk length %q", ErrProtocol, rest)
		}
		if n == -1 {
			return Reply{Type: t, Nil: true}, nil
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return Reply{}, fmt.Errorf("read a bulk string: %w", err)
		}
		if string(b[n:]) != "\r\n" {
			return Reply{}, fmt.Errorf("%w: bulk string without its end", ErrProtocol)
		}
		return Reply{Type: t, Text: string(b[:n])}, nil
	case Array:
		n, err := strconv.Atoi(rest)
		if err != nil || n < -1 || n > maxArrayElements || depth > 8 {
			return Reply{}, fmt.Errorf("%w: array length %q", ErrProtocol, rest)
		}
		if n == -1 {
			return Reply{Type: t, Nil: true}, nil
		}
		a := Reply{Type: t}
		for range n {
			item, err := readReply(r, depth+1)
			if err != nil {
				return Reply{}, err
			}
			a.Items = append(a.Items, item)
		}
		return a, nil
	}
	return Reply{}, fmt.Errorf("%w: type %q", ErrProtocol, line[:1])
}

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", fmt.Errorf("read a reply: %w", err)
		}
		if len(line) > maxLineBytes {
			return "", fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, maxLineBytes)
		}
	}
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return "", fmt.Errorf("%w: a line that doesn't end with CR LF", ErrProtocol)
	}
	return string(line[:len(line)-2]), nil
}
