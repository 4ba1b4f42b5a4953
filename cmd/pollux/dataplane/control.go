package dataplane

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/link"
)

// control is the process's end of the conversation with the daemon. Daemons come and go; the newest
// connection counts. What can't be said is not kept: both sides repeat what is still true when they
// meet again.
type control struct {
	l     net.Listener
	log   *zap.Logger
	hello func() []link.Message // what a new daemon is told first
	take  func(link.Message)    // one message of the daemon's
	up    func()                // after hello
	queue chan link.Message

	mu   sync.Mutex
	conn *link.Conn
	done chan struct{}
	wg   sync.WaitGroup
}

func listenControl(path string) (net.Listener, error) {
	// A socket that a predecessor left behind: nobody listens on it any more, since the disks' locks
	// are this process's.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the stale control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the daemon: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("protect the control socket: %w", err)
	}
	return l, nil
}

func (c *control) run() {
	c.queue, c.done = make(chan link.Message, 256), make(chan struct{})
	c.wg.Go(c.send)
	c.wg.Go(func() {
		for {
			conn, err := c.l.Accept()
			if err != nil {
				return // closed
			}
			c.wg.Go(func() { c.serve(link.NewConn(conn)) })
		}
	})
}

func (c *control) serve(conn *link.Conn) {
	c.mu.Lock()
	old := c.conn
	c.conn = conn
	c.mu.Unlock()
	if old != nil {
		old.Close()
	}
	defer c.drop(conn)
	conn.TakeFiles()
	c.log.Info("daemon connected")
	for _, m := range c.hello() {
		if err := conn.Send(m); err != nil {
			return
		}
	}
	c.up()
	for {
		m, err := conn.Receive()
		if err != nil {
			c.log.Info("daemon gone", zap.Error(err))
			return
		}
		c.take(m)
	}
}

// drop forgets a connection that has failed.
func (c *control) drop(conn *link.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn = nil
	}
}

// say sends a message if a daemon is there. It does not wait.
func (c *control) say(m link.Message) {
	select {
	case c.queue <- m:
	default: // the daemon does not read; what matters will be said again
	}
}

func (c *control) send() {
	for {
		select {
		case m := <-c.queue:
			c.mu.Lock()
			conn := c.conn
			c.mu.Unlock()
			if conn == nil {
				continue
			}
			if err := conn.Send(m); err != nil {
				c.drop(conn)
			}
		case <-c.done:
			return
		}
	}
}

func (c *control) close() {
	c.l.Close()
	c.mu.Lock()
	if c.conn != nil {
		c.conn.Close()
	}
	c.mu.Unlock()
	close(c.done)
	c.wg.Wait()
}
