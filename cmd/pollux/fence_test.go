package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/console"
)

func TestFenceText(t *testing.T) {
	f := &console.Fencing{
		When:    "after-decision",
		Devices: []console.FenceDevice{{Host: "b", Agent: "/usr/sbin/fence_ipmilan", Action: "off"}, {Host: "c", Agent: "/usr/sbin/fence_apc", Action: "reboot"}},
		Reports: []daemon.FenceReport{{Host: "c", Stage: "failed", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Detail: "no answer"}},
		KeptOut: []pact.Out{{Host: "c", Kind: pact.OutFlapping, By: "a", Reason: "5 faults"}},
	}
	var w bytes.Buffer
	fenceText(&w, f)
	for _, want := range []string{"when: after-decision", "watchdog: none", "fence_ipmilan", "failed", "2026-01-02 03:04:05", "no answer", "flapping", "5 faults"} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("%q is not in\n%s", want, w.String())
		}
	}
	f.Watchdog = daemon.WatchdogInfo{Device: "/dev/watchdog", Armed: true, Identity: "Software Watchdog"}
	w.Reset()
	fenceText(&w, f)
	if !strings.Contains(w.String(), "/dev/watchdog armed, Software Watchdog") {
		t.Error(w.String())
	}
}

// Nothing is powered off without a confirmation, and nothing is asked of a daemon before.
func TestFenceTestIsCareful(t *testing.T) {
	for line, want := range map[string]int{
		"fence test --off":                  exitUsage,
		"fence test b --even-primary":       exitUsage,
		"fence test b c":                    exitUsage,
		"fence test b --off":                exitNeedsConfirmation,
		"fence test b --off --even-primary": exitNeedsConfirmation,
	} {
		if got := run(t.Context(), append([]string{"--socket", t.TempDir() + "/none"}, strings.Fields(line)...)); got != want {
			t.Errorf("%s: exit code %d, expected %d", line, got, want)
		}
	}
}
