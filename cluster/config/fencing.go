package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/pollux-ha/pollux/fencing/agent"
)

// Fencing is how hosts that have lost a guest are kept from doing harm, on top of the cluster's decision: it frees
// what they hold sooner, and no guest waits for it. Without a device and a watchdog nothing of it happens.
type Fencing struct {
	// When is FenceAfterDecision, unless it is FenceOff.
	When FenceWhen `toml:"when"`
	// Patience is how long a host from which a guest was taken over has to show that it has stopped, before it
	// is powered off.
	Patience Duration `toml:"patience"`
	// Hosts are the devices with which this machine can switch others' power, by the host's name.
	Hosts map[string]FenceDevice `toml:"hosts"`

	// Watchdog is the kernel's watchdog device, which resets this host when it hangs. Left out: none.
	Watchdog        string   `toml:"watchdog"`
	WatchdogTimeout Duration `toml:"watchdog_timeout"`
}

// FenceWhen says when a host is powered off.
type FenceWhen string

const (
	FenceAfterDecision FenceWhen = "after-decision" // once the takeover is committed
	FenceOff           FenceWhen = "off"            // only by an operator's order
)

// FenceDevice is one host's power, by way of a standard fence agent.
type FenceDevice struct {
	Agent string `toml:"agent"` // absolute path of the agent
	// Parameters go to the agent. Passwords go into SecretsFile: lines key=value, mode 0600.
	Parameters  map[string]string `toml:"parameters"`
	SecretsFile string            `toml:"secrets_file"`
	// Action is "off", or "reboot": off, and on again once off is confirmed.
	Action  string   `toml:"action"`
	Timeout Duration `toml:"timeout"` // of one run of the agent
	Retries *int     `toml:"retries"`
}

// What a fence device does.
const (
	FenceActionOff    = "off"
	FenceActionReboot = "reboot"
)

// Flapping says when a host is kept out that loses guests by faults again and again.
type Flapping struct {
	Off    bool     `toml:"off"`
	Faults int      `toml:"faults"` // so many
	Within Duration `toml:"within"` // within this time
}

// Shutdown is what becomes of the guests whose primary is on this host when its daemon is told to end.
type Shutdown struct {
	// Guests is ShutdownSwitchover, unless it is ShutdownStay.
	Guests string `toml:"guests"`
	// Within bounds the switchovers; then the daemon ends whatever has become of them.
	Within Duration `toml:"within"`
}

const (
	ShutdownSwitchover = "switchover" // those that are protected go to their replicas
	ShutdownStay       = "stay"       // they go on where they are, in processes of their own
)

// The defaults.
const (
	DefaultPatience        = Duration(5 * time.Second)
	DefaultWatchdogTimeout = Duration(30 * time.Second)
	DefaultFlappingFaults  = 5
	DefaultFlappingWithin  = Duration(10 * time.Minute)
	DefaultShutdownWithin  = Duration(20 * time.Second)
)

func (f Fencing) withDefaults() Fencing {
	if f.When == "" {
		f.When = FenceAfterDecision
	}
	if f.Patience == 0 {
		f.Patience = DefaultPatience
	}
	if f.WatchdogTimeout == 0 {
		f.WatchdogTimeout = DefaultWatchdogTimeout
	}
	f.Hosts = maps.Clone(f.Hosts)
	for name, d := range f.Hosts {
		if d.Action == "" {
			d.Action = FenceActionOff
		}
		if d.Timeout == 0 {
			d.Timeout = Duration(agent.DefaultTimeout)
		}
		if d.Retries == nil {
			n := agent.DefaultRetries
			d.Retries = &n
		}
		f.Hosts[name] = d
	}
	return f
}

func (f Flapping) withDefaults() Flapping {
	if f.Faults == 0 {
		f.Faults = DefaultFlappingFaults
	}
	if f.Within == 0 {
		f.Within = DefaultFlappingWithin
	}
	return f
}

func (s Shutdown) withDefaults() Shutdown {
	if s.Guests == "" {
		s.Guests = ShutdownSwitchover
	}
	if s.Within == 0 {
		s.Within = DefaultShutdownWithin
	}
	return s
}

// secretParameters are those whose value is a secret in every agent that has them.
var secretParameters = []string{"password", "passwd", "snmp_priv_passwd", "snmp-priv-passwd", "token", "secret_key", "api_key"}

func (f Fencing) validate(self string) error {
	var errs []error
	switch f.When {
	case FenceAfterDecision, FenceOff:
	case "before-decision":
		errs = append(errs, errors.New("fencing.when = \"before-decision\": fencing follows the cluster's decision, or two hosts that can't hear each other would power each other off; the guest does not wait for it and is safe without it. Give after-decision or off"))
	default:
		errs = append(errs, fmt.Errorf("fencing.when = %q: after-decision or off", f.When))
	}
	if f.Patience < 0 {
		errs = append(errs, fmt.Errorf("fencing.patience = %q is negative", f.Patience))
	}
	if f.Watchdog != "" && !filepath.IsAbs(f.Watchdog) {
		errs = append(errs, fmt.Errorf("fencing.watchdog = %q: give the absolute path of a watchdog device, like \"/dev/watchdog\"", f.Watchdog))
	}
	if d := f.WatchdogTimeout.D(); d < 5*time.Second || d > time.Hour {
		errs = append(errs, fmt.Errorf("fencing.watchdog_timeout = %q: between 5s and 1h", f.WatchdogTimeout))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Hosts)) {
		if err := f.Hosts[name].validate(name, self); err != nil {
			errs = append(errs, fmt.Errorf("fencing.hosts.%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (d FenceDevice) validate(name, self string) error {
	var errs []error
	if !ValidName(name) {
		errs = append(errs, fmt.Errorf("%q is no host's name", name))
	}
	if name == self {
		errs = append(errs, errors.New("a host does not fence itself: give the others' devices here, and this host's to the others"))
	}
	if d.Action != FenceActionOff && d.Action != FenceActionReboot {
		errs = append(errs, fmt.Errorf("action = %q: off or reboot", d.Action))
	}
	if d.SecretsFile != "" && !filepath.IsAbs(d.SecretsFile) {
		errs = append(errs, fmt.Errorf("secrets_file = %q: give an absolute path", d.SecretsFile))
	}
	for _, k := range secretParameters {
		if _, ok := d.Parameters[k]; ok {
			errs = append(errs, fmt.Errorf("parameters.%s: give it in secrets_file, which only its owner can read", k))
		}
	}
	errs = append(errs, d.Device(nil).Check())
	return errors.Join(errs...)
}

// Device is the agent's side of it, with the secrets that were read from SecretsFile.
func (d FenceDevice) Device(secrets map[string]string) agent.Device {
	v := agent.Device{
		Path: d.Agent, Parameters: d.Parameters, Secrets: secrets,
		Timeout: d.Timeout.D(), Poll: agent.DefaultPoll,
	}
	if d.Retries != nil {
		v.Retries = *d.Retries
	}
	return v
}

func (f Flapping) validate() error {
	if f.Faults < 2 || f.Within <= 0 {
		return fmt.Errorf("flapping: faults = %d within %q: at least 2 faults, in a time above 0; off = true never keeps a host out", f.Faults, f.Within)
	}
	return nil
}

func (s Shutdown) validate() error {
	if s.Guests != ShutdownSwitchover && s.Guests != ShutdownStay {
		return fmt.Errorf("shutdown.guests = %q: switchover or stay", s.Guests)
	}
	if s.Within < 0 {
		return fmt.Errorf("shutdown.within = %q is negative", s.Within)
	}
	return nil
}
