// Package e2e runs the built program as a user would: a real cluster with a real guest, real faults, and
// checkers that know nothing of Pollux.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
)

// program is bin/pollux, as `make build` leaves it.
func program(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, bridges and taps")
	}
	if err := demo.Preflight(); err != nil {
		t.Skipf("needs /dev/kvm, network namespaces and redis-tools: %v", err)
	}
	path, err := filepath.Abs("../../bin/pollux")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs bin/pollux: make build")
	}
	return path
}

// play runs a demo and returns its result.
func play(t *testing.T, args ...string) demo.Result {
	t.Helper()
	path := program(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{"demo", "-o", "json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	err := cmd.Run()
	t.Log("\n" + progress.String())
	var r demo.Result
	if e := json.Unmarshal(out.Bytes(), &r); e != nil {
		t.Fatalf("no result (%v): %v", err, e)
	}
	if (err == nil) != r.Good() {
		t.Errorf("the exit code (%v) and the result (good: %v) don't agree", err, r.Good())
	}
	if !r.Good() {
		t.Errorf("%s", out.Bytes())
	}
	return r
}

// rounds is how many rounds of each fault are played.
func rounds() string {
	if n := os.Getenv("POLLUX_E2E_ROUNDS"); n != "" {
		return n
	}
	return "2"
}

// patient is for faults that must change nothing, or need a replica. A machine that stands still for a tenth of a
// second is reason enough for a takeover by default, and would be taken for the fault's doing.
var patient = []string{"--silence", "2s"}

func TestFaults(t *testing.T) {
	for _, fault := range demo.Faults {
		t.Run(string(fault), func(t *testing.T) {
			if fault == demo.Memory {
				needsPoison(t)
			}
			args := []string{"--fault", string(fault), "--rounds", rounds()}
			if fault == demo.Daemon || fault == demo.Memory {
				args = append(args, patient...)
			}
			r := play(t, args...)
			if strconv.Itoa(r.Rounds) != rounds() {
				t.Errorf("%d rounds were played", r.Rounds)
			}
			if r.Acknowledged == 0 || r.Epochs == 0 || r.WireBytes == 0 {
				t.Errorf("nothing went on: %d writes, %d epochs, %d bytes", r.Acknowledged, r.Epochs, r.WireBytes)
			}
		})
	}
}

func TestFaultsUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	for _, fault := range []demo.Fault{demo.Kill, demo.Power, demo.Hang} {
		t.Run(string(fault), func(t *testing.T) { play(t, "--fault", string(fault), "--rounds", "1", "--load") })
	}
}

func TestFaultsAtBadMoments(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	for name, args := range map[string][]string{
		"during resync":     {"--fault", "power", "--during", "resync"},
		"during switchover": {"--fault", "kill", "--during", "switchover"},
		"twice":             {"--fault", "kill", "--twice"},
	} {
		t.Run(name, func(t *testing.T) { play(t, append(args, "--rounds", rounds())...) })
	}
}

// What is no part of the data's way may come and go, and no guest notices.
func TestOtherVictims(t *testing.T) {
	for name, args := range map[string][]string{
		"replica lost":    {"--fault", "power", "--victim", "replica"},
		"replica hangs":   {"--fault", "hang", "--victim", "replica"},
		"witness lost":    append([]string{"--fault", "power", "--victim", "witness"}, patient...),
		"witness cut off": append([]string{"--fault", "isolate", "--victim", "witness"}, patient...),
	} {
		t.Run(name, func(t *testing.T) { play(t, append(args, "--rounds", rounds())...) })
	}
}

func TestStory(t *testing.T) {
	r := play(t)
	if len(r.Strikes) != 1 || r.SwitchoverGapMs == 0 {
		t.Errorf("the story was not told to its end: %+v", r)
	}
}
