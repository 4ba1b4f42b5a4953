// Package config reads the configuration of a Pollux daemon: one TOML file, strict, where an unknown
// key is an error that names its line, the key and what is allowed there.
package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is what a host or a witness is told. Host, port and path names are those of this machine.
type Config struct {
	// Name is the host's name in the cluster; the same as in its certificate.
	Name string `toml:"name"`
	// StateDir holds what must survive a power cut: pki/, raft/, events.jsonl, guests/<guest>/.
	StateDir string `toml:"state_dir"`
	// RunDir holds what must not: pollux.sock and guests/<guest>-<incarnation>.{json,sock,log}.
	RunDir string `toml:"run_dir"`
	// ClusterAddress is the one TCP port of the control plane: Raft, RPC between daemons, joining.
	ClusterAddress string `toml:"cluster_address"`
	// GossipAddress is memberlist's, UDP and TCP.
	GossipAddress string `toml:"gossip_address"`
	// ReplicationAddress is the IP address on which checkpoint streams are accepted. Hosts only.
	ReplicationAddress string `toml:"replication_address"`
	// APIAddress is where the API is to be had over TLS, for users with a token. Left out: nowhere; then only
	// the Unix socket has it.
	APIAddress string `toml:"api_address"`
	// Bridges maps the names that guests use to this host's bridges. A name that is not in it is
	// the bridge's own.
	Bridges map[string]string `toml:"bridges"`

	// Firmware says where this host has OVMF. Left out: where Debian's package ovmf puts it.
	Firmware Firmware `toml:"firmware"`

	// DataPlane says how guests' processes are kept from the host.
	DataPlane DataPlane `toml:"dataplane"`

	Fencing  Fencing  `toml:"fencing"`
	Flapping Flapping `toml:"flapping"`
	Shutdown Shutdown `toml:"shutdown"`

	Timeouts Timeouts `toml:"timeouts"`
	Log      Log      `toml:"log"`
	Events   Events   `toml:"events"`

	// Program is the command that starts a data-plane process; the daemon adds
	// "dataplane --config FILE". Empty: this program itself. Not in the file: tests set it.
	Program []string `toml:"-"`
}

// Firmware names the two files of UEFI firmware, of OVMF's build with 4 MiB of flash memory.
type Firmware struct {
	Code string `toml:"code"`
	Vars string `toml:"vars"` // the variables of a new guest
}

// DataPlane is for the processes that hold guests.
type DataPlane struct {
	// Confine is "auto" (a process is confined as far as this machine can, and says what is missing), "required" (or it
	// does not start) or "off".
	Confine string `toml:"confine"`
	// FirstUser is the first of 65,536 numbers for the users that guests' processes run as. No account needs to have
	// them, and none should.
	FirstUser uint32 `toml:"first_user"`
	// Strict ends a process at any system call that it is not known to need. Otherwise such a call fails.
	Strict bool `toml:"strict"`
}

// Timeouts are all optional. None of them decides anything: each only makes somebody ask.
type Timeouts struct {
	// RaftHeartbeat is how long a voter waits for word from the leader before it calls for an
	// election; RaftElection bounds one election.
	RaftHeartbeat Duration `toml:"raft_heartbeat"`
	RaftElection  Duration `toml:"raft_election"`
	// RaftLease is how long a leader goes on without word from a majority.
	RaftLease Duration `toml:"raft_lease"`
	// Propose bounds one proposal before its outcome is reported as unknown.
	Propose Duration `toml:"propose"`
	// Stop is how long a guest has to power off before it is forced.
	Stop Duration `toml:"stop"`
	// Silence is how long a checkpoint stream may be silent before its ends ask Raft; StreamHeartbeat
	// is the interval of heartbeats on an idle one.
	Silence         Duration `toml:"silence"`
	StreamHeartbeat Duration `toml:"stream_heartbeat"`
}

// Log says how much the daemon tells on its standard error.
type Log struct {
	Level string `toml:"level"` // debug, info, warn or error
}

// Duration is a time.Duration that is written as in "300ms".
type Duration time.Duration

// D converts.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalText reads "300ms".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration; write it like \"300ms\" or \"2s\"", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// The defaults. A LAN answers within a millisecond; the margin is for a machine that is out of breath.
const (
	DefaultStateDir      = "/var/lib/pollux"
	DefaultRunDir        = "/run/pollux"
	DefaultConfine       = "auto"
	DefaultFirstUser     = 1_900_000_000 // above what systemd gives to containers, below what some programs take for negative
	DefaultRaftHeartbeat = Duration(500 * time.Millisecond)
	DefaultRaftElection  = Duration(500 * time.Millisecond)
	DefaultRaftLease     = Duration(400 * time.Millisecond)
	DefaultPropose       = Duration(2 * time.Second)
	DefaultStop          = Duration(60 * time.Second)
)

// ErrInvalid says that a configuration can't be used.
var ErrInvalid = errors.New("configuration")

var nameSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidName says whether a host's name can be one: a DNS label in lower case.
func ValidName(name string) bool { return nameSyntax.MatchString(name) }

// WithDefaults fills in what was left out.
func (c Config) WithDefaults() Config {
	str := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	dur := func(v *Duration, d Duration) {
		if *v == 0 {
			*v = d
		}
	}
	str(&c.StateDir, DefaultStateDir)
	str(&c.RunDir, DefaultRunDir)
	str(&c.Log.Level, "info")
	str(&c.DataPlane.Confine, DefaultConfine)
	if c.DataPlane.FirstUser == 0 {
		c.DataPlane.FirstUser = DefaultFirstUser
	}
	dur(&c.Timeouts.RaftHeartbeat, DefaultRaftHeartbeat)
	dur(&c.Timeouts.RaftElection, max(DefaultRaftElection, c.Timeouts.RaftHeartbeat))
	dur(&c.Timeouts.RaftLease, min(DefaultRaftLease, c.Timeouts.RaftHeartbeat))
	dur(&c.Timeouts.Propose, DefaultPropose)
	dur(&c.Timeouts.Stop, DefaultStop)
	c.Events = c.Events.withDefaults()
	c.Fencing, c.Flapping, c.Shutdown = c.Fencing.withDefaults(), c.Flapping.withDefaults(), c.Shutdown.withDefaults()
	return c
}

// Validate reports everything that is wrong at once.
func (c Config) Validate() error {
	var errs []error
	need := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	need(ValidName(c.Name), "name = %q: give the host's name in the cluster, lower-case letters, digits and hyphens, at most 63", c.Name)
	need(filepath.IsAbs(c.StateDir), "state_dir = %q: give an absolute path", c.StateDir)
	need(filepath.IsAbs(c.RunDir), "run_dir = %q: give an absolute path", c.RunDir)
	if err := hostPort(c.ClusterAddress); err != nil {
		errs = append(errs, fmt.Errorf("cluster_address = %q: %w", c.ClusterAddress, err))
	}
	if err := hostPort(c.GossipAddress); err != nil {
		errs = append(errs, fmt.Errorf("gossip_address = %q: %w", c.GossipAddress, err))
	}
	if c.APIAddress != "" {
		if err := hostPort(c.APIAddress); err != nil {
			errs = append(errs, fmt.Errorf("api_address = %q: %w", c.APIAddress, err))
		}
	}
	if c.ReplicationAddress != "" {
		need(net.ParseIP(c.ReplicationAddress) != nil, "replication_address = %q: give an IP address without a port; each guest's process takes a free one", c.ReplicationAddress)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bridges)) {
		need(name != "" && c.Bridges[name] != "" && len(c.Bridges[name]) < 16,
			"bridges.%s = %q: give the name of a bridge of this host, at most 15 characters", name, c.Bridges[name])
	}
	need(slices.Contains([]string{"auto", "required", "off"}, c.DataPlane.Confine), "dataplane.confine = %q: auto, required or off", c.DataPlane.Confine)
	need(c.DataPlane.FirstUser >= 1000 && c.DataPlane.FirstUser <= 1<<32-1<<17,
		"dataplane.first_user = %d: the first of 65536 numbers that are no accounts', between 1000 and %d", c.DataPlane.FirstUser, uint32(1<<32-1<<17))
	need((c.Firmware.Code == "") == (c.Firmware.Vars == ""), "firmware: give both code and vars, they belong together, or none")
	for _, path := range []string{c.Firmware.Code, c.Firmware.Vars} {
		need(path == "" || filepath.IsAbs(path), "firmware: %q is no absolute path", path)
	}
	need(slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level), "log.level = %q: debug, info, warn or error", c.Log.Level)
	t := c.Timeouts
	for _, d := range []struct {
		name string
		v    Duration
	}{
		{"raft_heartbeat", t.RaftHeartbeat}, {"raft_election", t.RaftElection}, {"raft_lease", t.RaftLease},
		{"propose", t.Propose}, {"stop", t.Stop}, {"silence", t.Silence}, {"stream_heartbeat", t.StreamHeartbeat},
	} {
		need(d.v >= 0, "timeouts.%s = %q is negative", d.name, d.v)
	}
	need(t.RaftHeartbeat.D() >= 5*time.Millisecond, "timeouts.raft_heartbeat = %q: at least 5ms", t.RaftHeartbeat)
	need(t.RaftElection >= t.RaftHeartbeat, "timeouts.raft_election = %q must not be below raft_heartbeat (%v)", t.RaftElection, t.RaftHeartbeat)
	need(t.RaftLease <= t.RaftHeartbeat && t.RaftLease.D() >= 5*time.Millisecond,
		"timeouts.raft_lease = %q must lie between 5ms and raft_heartbeat (%v)", t.RaftLease, t.RaftHeartbeat)
	need(t.Silence == 0 || t.StreamHeartbeat == 0 || t.Silence >= 2*t.StreamHeartbeat,
		"timeouts.silence = %q must be at least twice stream_heartbeat (%v)", t.Silence, t.StreamHeartbeat)
	errs = append(errs, c.Events.validate(), c.Fencing.validate(c.Name), c.Flapping.validate(), c.Shutdown.validate())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

func hostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || port == "" {
		return errors.New("give an address and a port, like \"10.77.1.1:7700\"")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("give a port between 1 and 65535")
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		return errors.New("give an IP address of this machine that the others can reach, not a name and not 0.0.0.0")
	}
	return nil
}

// Paths of what lies in the two directories.

func (c Config) PKIDir() string     { return filepath.Join(c.StateDir, "pki") }
func (c Config) RaftDir() string    { return filepath.Join(c.StateDir, "raft") }
func (c Config) EventLog() string   { return filepath.Join(c.StateDir, "events.jsonl") }
func (c Config) GuestsDir() string  { return filepath.Join(c.StateDir, "guests") }
func (c Config) Socket() string     { return filepath.Join(c.RunDir, "pollux.sock") }
func (c Config) ProcessDir() string { return filepath.Join(c.RunDir, "guests") }

// GuestDir is where this host's copy of a guest's disks lies.
func (c Config) GuestDir(guest string) string { return filepath.Join(c.GuestsDir(), guest) }

// Bridge is this host's bridge for the name that a guest uses.
func (c Config) Bridge(name string) string {
	if b, ok := c.Bridges[name]; ok {
		return b
	}
	return name
}

// Load reads, fills in and validates a file.
func Load(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.TrimSpace(path), err)
	}
	return c, nil
}
