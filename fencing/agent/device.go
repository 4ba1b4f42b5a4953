package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Device is one machine's power, as an agent sees it.
type Device struct {
	// Path is the agent's absolute path, "/usr/sbin/fence_ipmilan".
	Path string
	// Parameters and Secrets are given to the agent alike; they differ only for people.
	Parameters, Secrets map[string]string
	// Timeout bounds one run of the agent.
	Timeout time.Duration
	// Retries is how often an order that did not lead to the wanted state is given again.
	Retries int
	// Poll is how long to wait between two questions for the state after an order.
	Poll time.Duration
}

// Defaults of a device.
const (
	DefaultTimeout = 60 * time.Second
	DefaultRetries = 2
	DefaultPoll    = time.Second
)

// Action is what an agent is asked for.
type Action string

const (
	On       Action = "on"
	Off      Action = "off"
	Reboot   Action = "reboot"
	Status   Action = "status"
	Monitor  Action = "monitor"  // whether the device can be reached
	Metadata Action = "metadata" // what the agent can do, as XML
)

// Power is a machine's state.
type Power string

const (
	PowerOn  Power = "on"
	PowerOff Power = "off"
)

var (
	// ErrTimeout says that an agent did not end in time. Nobody knows what it has done.
	ErrTimeout = errors.New("the fence agent did not end in time")
	// ErrAgent says that an agent has failed, or could not be run.
	ErrAgent = errors.New("fence agent")
	// ErrNotVerified says that the order was given and the state is not what was ordered.
	ErrNotVerified = errors.New("the power was not confirmed")
)

// Check reports everything that keeps a device from being used.
func (d Device) Check() error {
	var errs []error
	if !strings.HasPrefix(d.Path, "/") {
		errs = append(errs, fmt.Errorf("agent = %q: give the absolute path of a fence agent, like \"/usr/sbin/fence_ipmilan\"", d.Path))
	}
	if d.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout = %v: give more than 0", d.Timeout))
	}
	if d.Retries < 0 || d.Retries > 10 {
		errs = append(errs, fmt.Errorf("retries = %d: between 0 and 10", d.Retries))
	}
	for _, set := range []map[string]string{d.Parameters, d.Secrets} {
		for _, k := range slices.Sorted(maps.Keys(set)) {
			switch {
			case k == "" || strings.ContainsAny(k, "=\n\r\x00 "):
				errs = append(errs, fmt.Errorf("parameter %q: a fence agent's parameter has no space, \"=\" or line break in its name", k))
			case strings.ContainsAny(set[k], "\n\r\x00"):
				errs = append(errs, fmt.Errorf("parameter %s: its value may have no line break", k))
			case k == "action" || k == "option":
				errs = append(errs, fmt.Errorf("parameter %s: what the agent does is not for the configuration to say", k))
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(d.Secrets)) {
		if _, twice := d.Parameters[k]; twice {
			errs = append(errs, fmt.Errorf("parameter %s: it is in the secrets file too", k))
		}
	}
	return errors.Join(errs...)
}

// input is what the agent reads.
func (d Device) input(a Action) string {
	var b strings.Builder
	fmt.Fprintf(&b, "action=%s\n", a)
	for _, set := range []map[string]string{d.Parameters, d.Secrets} {
		for _, k := range slices.Sorted(maps.Keys(set)) {
			fmt.Fprintf(&b, "%s=%s\n", k, set[k])
		}
	}
	return b.String()
}

// minSecret is how long a value is at least that is struck out where it occurs in an agent's words: shorter ones,
// a port's number, occur by chance, and would make the words unreadable.
const minSecret = 3

// redact takes from an agent's words what it was told. Many repeat their input when they complain.
func (d Device) redact(text string) string {
	var values []string
	for _, v := range d.Secrets {
		values = append(values, v)
	}
	for _, v := range d.Parameters {
		if len(v) >= minSecret {
			values = append(values, v)
		}
	}
	// Longer ones first: one may be part of another.
	slices.SortFunc(values, func(a, b string) int { return len(b) - len(a) })
	for _, v := range values {
		if v != "" {
			text = strings.ReplaceAll(text, v, "[...]")
		}
	}
	return text
}
