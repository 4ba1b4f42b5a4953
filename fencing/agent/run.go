package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	// outputMax bounds what is kept of an agent's words, in bytes; metadata is the longest, some tens of KiB.
	outputMax = 256 << 10
	wordsMax  = 300 // of them in an error
	// drain is how long pipes may stay open that an agent's children have inherited.
	drain = time.Second
	// exitOff is the exit code of the action "status" for a machine that is off.
	exitOff = 2
)

// answer is what came of one run.
type answer struct {
	code           int
	stdout, stderr string // as the agent wrote them
}

// run runs the agent once. An error means that it could not be run or did not end in time; how it ended is the
// answer's code.
func (d Device) run(ctx context.Context, a Action) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.Path)
	cmd.Stdin = strings.NewReader(d.input(a))
	var stdout, stderr limited
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// A group of its own: an agent's helpers (ipmitool, ssh) end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = drain
	err := cmd.Run()
	out := answer{code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		// Even where it has ended with a good code meanwhile.
		return out, fmt.Errorf("%w: %s %s, %v: %w", ErrTimeout, d.name(), a, d.Timeout, context.Cause(ctx))
	case err == nil, errors.As(err, &exit), errors.Is(err, exec.ErrWaitDelay): // the last: a helper goes on, the agent has ended well
		return out, nil
	}
	return out, fmt.Errorf("%w: %s %s: %w: install it (Debian: fence-agents), or correct its path", ErrAgent, d.name(), a, err)
}

func (d Device) name() string { return filepath.Base(d.Path) }

// failed puts what an agent has said into an error.
func (d Device) failed(a Action, r answer, what string) error {
	words := strings.Join(strings.FieldsFunc(d.redact(r.stderr+" "+r.stdout), func(c rune) bool {
		return unicode.IsSpace(c) || !unicode.IsPrint(c) // nothing that moves a terminal's cursor
	}), " ")
	if len(words) > wordsMax {
		words = strings.ToValidUTF8(words[:wordsMax], "") + "…"
	}
	if words == "" {
		words = "it said nothing"
	}
	return fmt.Errorf("%w: %s %s: %s (exit code %d): %s", ErrAgent, d.name(), a, what, r.code, words)
}

// do runs an action that succeeds or fails.
func (d Device) do(ctx context.Context, a Action) (answer, error) {
	r, err := d.run(ctx, a)
	if err == nil && r.code != 0 {
		err = d.failed(a, r, "failed")
	}
	return r, err
}

// Monitor asks whether the device can be reached.
func (d Device) Monitor(ctx context.Context) error {
	_, err := d.do(ctx, Monitor)
	return err
}

// Metadata asks the agent what it is, and which parameters it takes; the answer is XML.
func (d Device) Metadata(ctx context.Context) (string, error) {
	r, err := d.do(ctx, Metadata)
	return r.stdout, err
}

// saysState finds the state that an agent has put into words: "Status: OFF".
var saysState = regexp.MustCompile(`(?i)\b(on|off)\b`)

// Status asks for the machine's power. What an agent says and its exit code must agree.
func (d Device) Status(ctx context.Context) (Power, error) {
	r, err := d.run(ctx, Status)
	if err != nil {
		return "", err
	}
	said := Power("")
	for _, word := range saysState.FindAllString(r.stdout, -1) {
		w := Power(strings.ToLower(word))
		if said != "" && said != w {
			return "", d.failed(Status, r, "it says on and off")
		}
		said = w
	}
	switch {
	case r.code == 0 && said != PowerOff:
		return PowerOn, nil
	case r.code == exitOff && said == PowerOff:
		return PowerOff, nil
	case r.code == exitOff && said == "":
		return "", d.failed(Status, r, "its exit code means off, and it does not say so")
	case r.code == 0 || r.code == exitOff:
		return "", d.failed(Status, r, "what it says is not what its exit code means")
	}
	return "", d.failed(Status, r, "failed")
}

// limited keeps the beginning of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	l.Buffer.Write(b[:min(len(b), outputMax-l.Len())])
	return len(b), nil
}
