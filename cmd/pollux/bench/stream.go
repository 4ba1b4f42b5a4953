package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pki"
)

// stream is a checkpoint stream to a replica in the same process, over TCP and TLS as in production.
type stream struct {
	conn    net.Conn
	encoder *checkpoint.Encoder
	writer  *checkpoint.Writer
	reader  *checkpoint.Reader
	sent    *atomic.Uint64 // bytes given to TCP

	replica image
	done    chan struct{} // the replica has ended, with
	ended   error
}

// image is the replica's memory.
type image []byte

func (m image) Pages() int { return len(m) / checkpoint.PageSize }
func (m image) Page(i int) []byte {
	return m[i*checkpoint.PageSize : (i+1)*checkpoint.PageSize]
}

// counted counts what is written to a connection.
type counted struct {
	net.Conn
	sent atomic.Uint64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(uint64(n))
	return n, err
}

// newStream opens one to a replica that has so many pages.
func newStream(ctx context.Context, pages int) (_ *stream, err error) {
	identity, err := throwawayIdentity()
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", identity.ServerConfig(pki.ALPNStream))
	if err != nil {
		return nil, fmt.Errorf("listen for the stream: %w", err)
	}
	s := &stream{replica: make(image, pages*checkpoint.PageSize), done: make(chan struct{})}
	go func() {
		conn, err := l.Accept()
		l.Close() // not before: it would reset a connection that is not yet accepted
		if err == nil {
			err = s.serve(conn)
		}
		s.ended = err
		close(s.done)
	}()
	var d net.Dialer
	tcp, err := d.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("open the stream: %w", err)
	}
	c := &counted{Conn: tcp}
	s.conn, s.sent = tls.Client(c, identity.ClientConfig(streamPeer, pki.ALPNStream)), &c.sent
	if deadline, ok := ctx.Deadline(); ok {
		if err := s.conn.SetDeadline(deadline); err != nil {
			return nil, fmt.Errorf("bound the stream's waiting: %w", err)
		}
	}
	s.encoder = checkpoint.NewEncoder(checkpoint.EncoderConfig{CachePages: checkpoint.DefaultCachePages})
	s.writer = checkpoint.NewWriter(s.conn)
	s.reader = checkpoint.NewReader(s.conn, nil, checkpoint.DefaultLimits())
	return s, nil
}

const streamPeer = "bench"

// throwawayIdentity makes the certificate of a cluster of one host that nobody will see again.
func throwawayIdentity() (*pki.Identity, error) {
	dir, err := os.MkdirTemp("", "pollux-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for certificates: %w", err)
	}
	defer os.RemoveAll(dir)
	if _, _, err := pki.Found(dir, streamPeer); err != nil {
		return nil, err
	}
	return pki.Load(dir)
}

// serve is the replica: it acknowledges each epoch once it holds all of it, and applies it then.
func (s *stream) serve(conn net.Conn) error {
	defer conn.Close()
	reader, writer := checkpoint.NewReader(conn, s.replica, checkpoint.DefaultLimits()), checkpoint.NewWriter(conn)
	for {
		m, err := reader.Next()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *checkpoint.Goodbye:
			return nil
		case *checkpoint.Staged:
			if err := writer.Write(&checkpoint.Ack{Epoch: m.Number, Digest: m.Digest}); err != nil {
				return err
			}
			m.Apply(s.replica)
			m.Release()
		default:
			return fmt.Errorf("the replica got a %T", m)
		}
	}
}

// sending is what became of an epoch.
type sending struct {
	wireBytes uint64 // all that TCP was given
	stats     checkpoint.Stats
	ack       time.Duration // from the last byte sent until the acknowledgement was there
}

// send sends an epoch and waits for its acknowledgement.
func (s *stream) send(e *checkpoint.Epoch) (sending, error) {
	before := s.sent.Load()
	stats, err := s.encoder.Encode(s.writer, e)
	if err != nil {
		return sending{}, errors.Join(err, s.why())
	}
	sent := time.Now()
	m, err := s.reader.Next()
	if err != nil {
		return sending{}, errors.Join(fmt.Errorf("wait for the acknowledgement: %w", err), s.why())
	}
	a, ok := m.(*checkpoint.Ack)
	if !ok || a.Epoch != e.Number || a.Digest != stats.Digest {
		return sending{}, fmt.Errorf("the answer to epoch %d is %T %+v", e.Number, m, m)
	}
	return sending{wireBytes: s.sent.Load() - before, stats: stats, ack: time.Since(sent)}, nil
}

// why is how the replica ended, if it has.
func (s *stream) why() error {
	select {
	case <-s.done:
		return s.ended
	default:
		return nil
	}
}

// close says goodbye and returns once the replica has applied everything.
func (s *stream) close() error {
	err := s.writer.Write(&checkpoint.Goodbye{Reason: "measured"})
	<-s.done
	return errors.Join(err, s.ended, s.conn.Close())
}
