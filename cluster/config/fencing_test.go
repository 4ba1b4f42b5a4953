package config

import (
	"strings"
	"testing"
	"time"
)

const fencingTables = `
[fencing]
patience = "3s"
watchdog = "/dev/watchdog"
[fencing.hosts.b]
agent = "/usr/sbin/fence_ipmilan"
secrets_file = "/etc/pollux/fence-b"
parameters = { ip = "10.0.0.2", lanplus = "1" }
retries = 0
[flapping]
faults = 7
[shutdown]
guests = "stay"
`

func TestFencing(t *testing.T) {
	c, err := Parse([]byte(good + fencingTables))
	if err != nil {
		t.Fatal(err)
	}
	f, b := c.Fencing, c.Fencing.Hosts["b"]
	if f.When != FenceAfterDecision || f.Patience.D() != 3*time.Second || f.WatchdogTimeout != DefaultWatchdogTimeout {
		t.Errorf("%+v", f)
	}
	if d := b.Device(map[string]string{"password": "x"}); b.Action != FenceActionOff || d.Timeout != time.Minute || d.Retries != 0 || d.Parameters["ip"] != "10.0.0.2" || d.Check() != nil {
		t.Errorf("%+v %+v", b, d)
	}
	if c.Flapping.Faults != 7 || c.Flapping.Within != DefaultFlappingWithin || c.Shutdown.Guests != ShutdownStay {
		t.Errorf("%+v %+v", c.Flapping, c.Shutdown)
	}
	c, err = Parse([]byte(good))
	if err != nil || len(c.Fencing.Hosts) > 0 || c.Fencing.Watchdog != "" || c.Flapping.Faults != DefaultFlappingFaults || c.Shutdown.Guests != ShutdownSwitchover {
		t.Errorf("%+v %v", c, err)
	}
}

func TestFencingErrors(t *testing.T) {
	for name, tc := range map[string]struct{ from, to, want string }{
		"before":          {`patience = "3s"`, `when = "before-decision"`, "follows the cluster's decision"},
		"when":            {`patience = "3s"`, `when = "never"`, "after-decision or off"},
		"no path":         {`"/usr/sbin/fence_ipmilan"`, `"fence_ipmilan"`, "fencing.hosts.b: agent"},
		"itself":          {`hosts.b]`, `hosts.a]`, "does not fence itself"},
		"password":        {`lanplus = "1"`, `password = "hush"`, "secrets_file"},
		"action":          {`retries = 0`, `action = "explode"`, "off or reboot"},
		"retries":         {`retries = 0`, `retries = -1`, "retries"},
		"unknown":         {`retries = 0`, `retry = 1`, "secrets_file"},
		"watchdog":        {`"/dev/watchdog"`, `"watchdog"`, "fencing.watchdog"},
		"one fault":       {`faults = 7`, `faults = 1`, "flapping"},
		"shutdown guests": {`"stay"`, `"leave"`, "switchover or stay"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(good + strings.Replace(fencingTables, tc.from, tc.to, 1)))
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hush") {
				t.Errorf("%v, expected %q", err, tc.want)
			}
		})
	}
}
