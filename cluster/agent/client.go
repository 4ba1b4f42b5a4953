package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

var (
	// ErrNone says that no agent answers.
	ErrNone = errors.New("no agent answers in the guest: is qemu-guest-agent installed and running there?")
	// ErrAgent says that the agent refuses, or that what it says makes no sense.
	ErrAgent = errors.New("the guest's agent")
	// ErrCommand says that there is no such command.
	ErrCommand = errors.New("no such command for a guest's agent")
)

// command is what an operator may have the agent do.
type command struct {
	name    string
	execute string
	silent  bool // success has no answer (QEMU, qga/qapi-schema.json)
	patient bool // takes as long as the guest's disks do
	args    map[string]any
}

var commands = []command{
	{name: "ping", execute: "guest-ping"},
	{name: "info", execute: "guest-get-osinfo"},
	{name: "version", execute: "guest-info"},
	{name: "freeze", execute: "guest-fsfreeze-freeze", patient: true},
	{name: "thaw", execute: "guest-fsfreeze-thaw", patient: true},
	{name: "freeze-status", execute: "guest-fsfreeze-status"},
	{name: "shutdown", execute: "guest-shutdown", silent: true, args: map[string]any{"mode": "powerdown"}},
}

// Commands are the names of all commands, in the order in which they are told.
func Commands() []string {
	var names []string
	for _, c := range commands {
		names = append(names, c.name)
	}
	return names
}

// Check fails with ErrCommand where there is no such command.
func Check(name string) error {
	_, err := find(name)
	return err
}

func find(name string) (command, error) {
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == name })
	if i < 0 {
		return command{}, fmt.Errorf("%w: %q; there are %s", ErrCommand, name, strings.Join(Commands(), ", "))
	}
	return commands[i], nil
}

const (
	syncTimeout    = 5 * time.Second // an agent that lives answers in milliseconds
	answerTimeout  = 10 * time.Second
	patientTimeout = 45 * time.Second // below what a daemon gives another for an answer
	silentTimeout  = 2 * time.Second  // for a refusal to come
	answerLimit    = 1 << 20          // bytes
	sentinel       = 0xff             // begins the answer to guest-sync-delimited; no byte of UTF-8
)

// Do has the agent behind the socket at path do something, and returns its answer. Errors wrap ErrNone,
// ErrAgent or ErrCommand.
func Do(ctx context.Context, path, name string) (json.RawMessage, error) {
	c, err := find(name)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent's channel: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r := bufio.NewReader(conn)
	if err := inStep(conn, r); err != nil {
		return nil, err
	}
	timeout := answerTimeout
	switch {
	case c.silent:
		timeout = silentTimeout
	case c.patient:
		timeout = patientTimeout
	}
	_ = conn.SetDeadline(time.Now().Add(timeout))
	if err := send(conn, nil, c.execute, c.args); err != nil {
		return nil, err
	}
	answer, err := receive(r)
	var late net.Error
	if c.silent && (errors.As(err, &late) && late.Timeout() || errors.Is(err, io.EOF)) {
		return json.RawMessage("{}"), nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: no answer to %s: %w", ErrAgent, c.execute, err)
	}
	return answer, nil
}

// inStep brings the agent, which may have something left over of an earlier client's, in step.
func inStep(conn net.Conn, r *bufio.Reader) error {
	_ = conn.SetDeadline(time.Now().Add(syncTimeout))
	var b [8]byte
	_, _ = rand.Read(b[:])                              // never fails: it would end the program
	id := int64(binary.LittleEndian.Uint64(b[:]) >> 12) // a number that JSON keeps
	if err := send(conn, []byte{sentinel}, "guest-sync-delimited", map[string]any{"id": id}); err != nil {
		return fmt.Errorf("%w (%w)", ErrNone, err)
	}
	for skipped := 0; skipped < answerLimit; {
		junk, err := r.ReadSlice(sentinel)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("%w (%w)", ErrNone, err)
		}
		if skipped += len(junk); err != nil {
			continue
		}
		answer, err := receive(r)
		if err != nil {
			return fmt.Errorf("%w (%w)", ErrNone, err)
		}
		var got int64
		if json.Unmarshal(answer, &got) == nil && got == id {
			return nil
		}
	}
	return fmt.Errorf("%w: it can't be brought in step", ErrAgent)
}

func send(conn net.Conn, before []byte, execute string, args map[string]any) error {
	request := map[string]any{"execute": execute}
	if args != nil {
		request["arguments"] = args
	}
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(append(before, b...), '\n')); err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	return nil
}

// receive reads one answer: a JSON object in one line.
func receive(r *bufio.Reader) (json.RawMessage, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if line = append(line, part...); len(line) > answerLimit {
			return nil, fmt.Errorf("%w: an answer of more than %d bytes", ErrAgent, answerLimit)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, fmt.Errorf("%w: an answer that is no JSON: %w", ErrAgent, err)
	}
	if answer.Error != nil {
		return nil, fmt.Errorf("%w refuses: %q", ErrAgent, answer.Error.Desc)
	}
	return answer.Return, nil
}
