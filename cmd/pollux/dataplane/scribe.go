package dataplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cmd/pollux/dataplane/confine"
)

// A confined process can't write to the host's event log itself: who holds that file can cut it off. A small process
// beside it, the scribe, holds the log, takes events over a socket that only the two have, and writes them in this
// guest's name. It ends with its process, after the last event.

const (
	scribeCommand = "dataplane-events" // not "dataplane": the daemon looks for that
	scribeSocket  = 3
	scribeLine    = 2 * audit.MaxLine // bytes of a request
)

// What a process may write of. The rest is others' to say.
var scribeKinds = []audit.Kind{
	audit.GuestStart, audit.GuestStop, audit.GuestReset, audit.GuestKept, audit.GuestDump, audit.Protect, audit.GoSolo, audit.RoleChange,
	audit.Takeover, audit.Switchover, audit.Surrender, audit.Fault, audit.Heal, audit.DiskMark, audit.Operator,
}

type (
	scribeOrder struct {
		ID    uint64      `json:"id"`
		Event audit.Event `json:"event"`
	}
	// scribeWord answers the order of that number; 0: the log is open, or can't be opened.
	scribeWord struct {
		ID        uint64 `json:"id"`
		Error     string `json:"error,omitempty"`
		Uncertain bool   `json:"uncertain,omitempty"`
	}
)

// NewEventsCommand returns the hidden command of a scribe.
func NewEventsCommand() *cobra.Command {
	var path, host, guest, root string
	var strict bool
	cmd := &cobra.Command{
		Use:    scribeCommand + " --log FILE --host NAME --guest NAME",
		Short:  "Write a guest's events (started by its data-plane process)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// It ends when its process has: what that has to say of its end still gets written.
			signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
			socket := os.NewFile(scribeSocket, "events")
			if socket == nil {
				return errors.New("this command is started by a data-plane process")
			}
			return serveEvents(socket, path, host, guest, func() error {
				return shutScribeIn(path, root, strict)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&path, "log", "", "the event log")
	f.StringVar(&host, "host", "", "this host's name")
	f.StringVar(&guest, "guest", "", "the guest")
	f.StringVar(&root, "root", "", "an empty directory to mount on")
	f.BoolVar(&strict, "strict", false, "end at any system call that is not expected")
	for _, name := range []string{"log", "host", "guest"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is defined above
		}
	}
	return cmd
}

// shutScribeIn confines a scribe: it hears a process that may be the guest's. It stays root, whose the log is.
func shutScribeIn(path, root string, strict bool) error {
	_, err := confine.Apply(confine.Options{
		Root: root, Without: "it has no mounts of its own", WithoutUser: "the event log is root's", Kill: strict,
		Dirs: []confine.Dir{{Path: filepath.Dir(path), Writable: true}},
	})
	return err
}

// serveEvents is a scribe's life.
func serveEvents(socket io.ReadWriter, path, host, guest string, shutIn func() error) error {
	say := json.NewEncoder(socket)
	log, err := audit.Open(path, host)
	if err == nil {
		defer log.Close()
		err = shutIn()
	}
	if err != nil {
		return errors.Join(err, say.Encode(scribeWord{Error: err.Error()}))
	}
	if err := say.Encode(scribeWord{}); err != nil {
		return fmt.Errorf("answer the data-plane process: %w", err)
	}
	in := bufio.NewScanner(socket)
	in.Buffer(make([]byte, 0, 4096), scribeLine)
	for in.Scan() {
		var o scribeOrder
		d := json.NewDecoder(bytes.NewReader(in.Bytes()))
		d.UseNumber() // an epoch's number stays what it is
		if err := d.Decode(&o); err != nil {
			return fmt.Errorf("an order that is none: %w", err)
		}
		w := scribeWord{ID: o.ID}
		if err := write(log, o.Event, guest); err != nil {
			w.Error, w.Uncertain = err.Error(), errors.Is(err, audit.ErrUncertain)
		}
		// A process that does not listen any more is ending; what it has said before is still written.
		_ = say.Encode(w)
	}
	return in.Err()
}

// write appends what the process says, in this guest's name whatever it says.
func write(log *audit.Log, e audit.Event, guest string) error {
	if !slices.Contains(scribeKinds, e.Kind) {
		return fmt.Errorf("an event of the kind %q is not a data-plane process's to write", e.Kind)
	}
	e.Guest, e.Actor, e.Time = guest, actor, time.Time{}
	ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
	defer cancel()
	return log.Append(ctx, e)
}

// errScribe says that the scribe is gone.
var errScribe = errors.New("the process that writes the event log is gone")

type scribeConn interface {
	io.ReadWriteCloser
	SetWriteDeadline(time.Time) error
}

// scribe is the process's end.
type scribe struct {
	socket  scribeConn
	sending sync.Mutex

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan error
	gone    error
}

// startScribe starts one and returns when the log is open.
func startScribe(cfg link.ProcessConfig) (_ *scribe, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make the socket for events: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "events"), os.NewFile(uintptr(fds[1]), "events")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", scribeCommand, "--log", cfg.EventLog, "--host", cfg.Party.Host, "--guest", cfg.Guest)
	cmd.Args[0] = os.Args[0]
	if root := cfg.Confine.Root; root != "" {
		// Mounts of its own: this process is about to change the root of all that share its own.
		cmd.Args = append(cmd.Args, "--root", root)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	}
	if cfg.Confine.Strict {
		cmd.Args = append(cmd.Args, "--strict")
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the process that writes the event log: %w", err)
	}
	// It is not waited for: whoever inherits it when this process ends does that.
	if err := cmd.Process.Release(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the process that writes the event log: %w", err)
	}
	return converse(ours)
}

// converse begins the conversation with a scribe.
func converse(socket scribeConn) (*scribe, error) {
	s := &scribe{socket: socket, waiting: map[uint64]chan error{}}
	words := json.NewDecoder(bufio.NewReader(socket))
	var w scribeWord
	if err := words.Decode(&w); err != nil {
		socket.Close()
		return nil, fmt.Errorf("%w: %w", errScribe, err)
	}
	if w.Error != "" {
		socket.Close()
		return nil, errors.New(w.Error)
	}
	go s.listen(words)
	return s, nil
}

func (s *scribe) listen(words *json.Decoder) {
	for {
		var w scribeWord
		if err := words.Decode(&w); err != nil {
			s.end(fmt.Errorf("%w: restart the guest's process by a switchover", errScribe))
			return
		}
		s.mu.Lock()
		answer := s.waiting[w.ID]
		delete(s.waiting, w.ID)
		s.mu.Unlock()
		if answer != nil {
			answer <- w.err()
		}
	}
}

func (w scribeWord) err() error {
	switch {
	case w.Error == "":
		return nil
	case w.Uncertain:
		return fmt.Errorf("%w (%s)", audit.ErrUncertain, w.Error)
	}
	return errors.New(w.Error)
}

// end gives everybody who waits the reason why there will be no answer.
func (s *scribe) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone == nil {
		s.gone = why
	}
	for id, answer := range s.waiting {
		delete(s.waiting, id)
		answer <- fmt.Errorf("%w: %w", audit.ErrUncertain, s.gone)
	}
}

// Append returns nil only after the event is durable, as audit.Log's does.
func (s *scribe) Append(ctx context.Context, e audit.Event) error {
	answer := make(chan error, 1)
	id, err := s.send(ctx, e, answer)
	if err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
		return fmt.Errorf("write to the event log: %w: %w", audit.ErrUncertain, ctx.Err())
	}
}

func (s *scribe) send(ctx context.Context, e audit.Event, answer chan error) (id uint64, err error) {
	// Not with mu held: the scribe may be waiting for its answers to be taken, before it reads on.
	s.sending.Lock()
	defer s.sending.Unlock()
	s.mu.Lock()
	if err := s.gone; err != nil {
		s.mu.Unlock()
		return 0, err
	}
	s.next++
	id = s.next
	s.waiting[id] = answer
	s.mu.Unlock()
	defer func() {
		if err != nil {
			s.mu.Lock()
			delete(s.waiting, id)
			s.mu.Unlock()
		}
	}()
	b, err := json.Marshal(scribeOrder{ID: id, Event: e})
	if err != nil {
		return 0, fmt.Errorf("encode the event: %w", err)
	}
	if len(b) > audit.MaxLine {
		return 0, fmt.Errorf("the event takes %d bytes, a line holds at most %d: shorten its detail", len(b), audit.MaxLine)
	}
	// A scribe whose disk hangs reads no more after a while, and nobody may wait longer than he wants to.
	deadline, _ := ctx.Deadline()
	if err := s.socket.SetWriteDeadline(deadline); err != nil {
		return 0, fmt.Errorf("%w: %w", errScribe, err)
	}
	if n, err := s.socket.Write(append(b, '\n')); err != nil {
		if n > 0 {
			s.end(fmt.Errorf("%w: half an event was sent to it", errScribe)) // what follows would make no sense
		}
		return 0, fmt.Errorf("send the event to be written: %w", err)
	}
	return id, nil
}

// Close ends the conversation; what was appended is durable already.
func (s *scribe) Close() error {
	s.end(audit.ErrClosed)
	return s.socket.Close()
}
