package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/tests/lab"
)

// ports of the program in the guest.
const (
	treePort  = "7001"
	clockPort = "7002"
)

// treeDir is where the guest's program writes, and treeSeed what.
const (
	treeDir  = "/srv/tree"
	treeSeed = 20261122
)

// writer is a connection to the guest's program that writes a tree.
type writer struct {
	s    *stage
	conn net.Conn

	mu      sync.Mutex
	files   int   // acknowledged
	err     error // why there will be no more
	changed chan struct{}
}

// dial connects to a port of the guest.
func (s *stage) dial(port string) net.Conn {
	s.Helper()
	var conn net.Conn
	s.eventually("the guest's program answers", func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		conn, err = s.client.Dial(ctx, "tcp4", net.JoinHostPort(s.address, port))
		return err
	})
	s.Cleanup(func() { conn.Close() })
	return conn
}

func (s *stage) startWriter() *writer {
	s.Helper()
	if _, err := s.ssh(s.Context(), "systemctl stop tree 2>/dev/null; rm -rf "+treeDir); err != nil {
		s.Fatal(err)
	}
	s.inBackground("tree", "inside tree 0.0.0.0:"+treePort+" "+treeDir)
	w := &writer{s: s, conn: s.dial(treePort), changed: make(chan struct{})}
	if _, err := fmt.Fprintln(w.conn, treeSeed); err != nil {
		s.Fatal(err)
	}
	go func() {
		in := bufio.NewScanner(w.conn)
		for in.Scan() {
			w.mu.Lock()
			if in.Text() != fmt.Sprint(w.files) {
				w.err = fmt.Errorf("file %q is acknowledged where %d is due", in.Text(), w.files)
			}
			w.files++
			w.tell()
			w.mu.Unlock()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.err == nil {
			w.err = fmt.Errorf("the connection has ended, with the error %w", errors.Join(io.EOF, in.Err()))
		}
		w.tell()
	}()
	return w
}

func (w *writer) tell() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// more waits for n further files.
func (w *writer) more(n int) {
	w.s.Helper()
	limit := time.After(patience)
	w.mu.Lock()
	want := w.files + n
	w.mu.Unlock()
	for {
		w.mu.Lock()
		files, err, changed := w.files, w.err, w.changed
		w.mu.Unlock()
		switch {
		case err != nil:
			w.s.Fatalf("after %d files: %v", files, err)
		case files >= want:
			w.s.step("%d files are acknowledged", files)
			return
		}
		select {
		case <-changed:
		case <-limit:
			w.s.Fatalf("no progress: %d files, %d wanted", files, want)
		}
	}
}

// acknowledged is how many files the client knows of.
func (w *writer) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.files
}

// check has the guest look at the files that were acknowledged.
func (s *stage) check(files int) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	out, err := s.ssh(ctx, fmt.Sprintf("inside check %s %d %d", treeDir, treeSeed, files))
	s.must(fmt.Sprintf("all %d acknowledged files are there", files), err)
	if !strings.HasPrefix(out, fmt.Sprint(files, " ")) {
		s.Errorf("the check said %q", out)
	}
}

// Files that were written with fsync are there on the new primary, and once more after that host alone has started cold.
func TestFilesOutliveTheirHost(t *testing.T) {
	s := newStage(t, options{})
	w := s.startWriter()
	w.more(60)
	_, survivor := s.pullPlug()
	w.more(60)
	s.check(w.acknowledged())
	w.more(20)

	// Now the host that was the replica loses power too, and comes back alone.
	s.must("the plug of "+survivor.Name+" is pulled", survivor.PowerCut())
	files := w.acknowledged()
	s.coldStart(survivor)
	s.check(files)
}

// coldStart switches on hosts that were all off, and waits until the guest has started from the disk of the first.
func (s *stage) coldStart(hosts ...*lab.Host) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	for _, h := range hosts {
		s.must(h.Name+" is on again", h.PowerOn(ctx))
	}
	s.must("the guest runs on "+hosts[0].Name, s.cluster.WaitPrimary(ctx, guestName, hosts[0]))
	s.login()
}
