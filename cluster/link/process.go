package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/pollux-ha/pollux/cluster/pact"
)

// LastWords begin the line on standard error in which a process says why it ends.
const LastWords = "pollux dataplane: "

// ProcessConfig is all that a data-plane process (`pollux dataplane --config FILE`) is told at its
// start. The daemon writes it (JSON, mode 0600); what changes later arrives over the control socket.
type ProcessConfig struct {
	Guest string `json:"guest"`
	// Party is this process: the host's name in the cluster and the incarnation that the daemon
	// has drawn for it. No incarnation is ever used twice.
	Party pact.Party `json:"party"`
	// Spec is the guest as the pact has it. Spec.Kernel and Spec.Initrd are paths on this host,
	// or "builtin:ledger".
	Spec pact.Spec `json:"spec"`

	// Disks are this host's copies, in the order of Spec.AllDisks. The process creates a file that is
	// missing (sparse, of the spec's size). Beside each lies <file>.mark (the disk mark).
	Disks []string `json:"disks,omitempty"`
	// Firmware is where this host has UEFI firmware; empty names stand for the places of Debian's package.
	Firmware FirmwareImage `json:"firmware,omitzero"`
	// Journal is the file that keeps committed disk writes until they are on the disks.
	Journal string `json:"journal"`
	// Taps are the names of existing tap interfaces, in the order of Spec.Nets. The process opens
	// them; the daemon makes them, puts them on their bridges and removes them.
	Taps []string `json:"taps,omitempty"`
	// NetNS, where set, is the path of the network namespace that holds the taps.
	NetNS string `json:"netns,omitempty"`

	ControlSocket string `json:"control_socket"` // path of the Unix socket to listen on
	// AgentSocket is the path of the Unix socket that leads to the guest's agent. Empty: none.
	AgentSocket string `json:"agent_socket,omitempty"`
	// Cluster is the cluster's ID: equally named guests of two clusters are two.
	Cluster string `json:"cluster,omitempty"`
	// StreamListen is the host:port on which a checkpoint stream is accepted; port 0 takes a free
	// one (Hello.StreamAddress tells which). Empty: this guest is never a replica here.
	StreamListen string `json:"stream_listen,omitempty"`
	PKI          string `json:"pki"`                   // directory with ca.crt, host.crt, host.key
	EventLog     string `json:"event_log"`             // the host's event log, shared with the daemon
	LogFile      string `json:"log_file"`              // structured log of this process; empty: stderr
	ConsoleLog   string `json:"console_log,omitempty"` // what the guest wrote to its console, once it was let out

	// Confine says how the process shuts itself in before it hears of anybody.
	Confine  Confinement     `json:"confine,omitzero"`
	Timeouts ProcessTimeouts `json:"timeouts,omitzero"`
	PinCPUs  bool            `json:"pin_cpus,omitempty"`
	// JournalBytes bounds the disk journal; 0 means the default.
	JournalBytes int64 `json:"journal_bytes,omitempty"`
	// CachePages bounds the primary's delta cache; 0 means the default.
	CachePages int `json:"cache_pages,omitempty"`
}

// Confinement of a process.
type Confinement struct {
	// Mode is "auto" (what this machine can do), "required" (all of it, or the process does not start) or "off", which is
	// also the meaning of "".
	Mode string `json:"mode,omitempty"`
	// User is the process's own user and group, by number; 0: there is none for it. Group is a further group, which
	// may read what is in PKI.
	User  uint32 `json:"user,omitempty"`
	Group uint32 `json:"group,omitempty"`
	// Root is an empty directory on which the process may mount, since it was given mounts of its own. Empty: it was
	// not, and Why says for what reason.
	Root string `json:"root,omitempty"`
	Why  string `json:"why,omitempty"`
	// Strict ends the process at every system call that is not on its list.
	Strict bool `json:"strict,omitempty"`
}

// Modes of a Confinement.
const (
	ConfineAuto     = "auto"
	ConfineRequired = "required"
	ConfineOff      = "off"
)

// Off says that the process is not confined.
func (c Confinement) Off() bool { return c.Mode == "" || c.Mode == ConfineOff }

// FirmwareImage names the two files of UEFI firmware (vmm/firmware.ReadImage).
type FirmwareImage struct {
	Code string `json:"code,omitempty"`
	Vars string `json:"vars,omitempty"`
}

// ProcessTimeouts are in nanoseconds in JSON; 0 means the default.
type ProcessTimeouts struct {
	// Silence on the stream after which a side asks Raft.
	Silence time.Duration `json:"silence_ns,omitempty"`
	// Heartbeat is the interval of heartbeats on an idle stream.
	Heartbeat time.Duration `json:"heartbeat_ns,omitempty"`
	// MaxEpoch bounds the length of an epoch when nothing demands its end.
	MaxEpoch time.Duration `json:"max_epoch_ns,omitempty"`
	// AskAgain is the pause before a question without an answer is put again.
	AskAgain time.Duration `json:"ask_again_ns,omitempty"`
	// DiskLock bounds the wait for a predecessor that still holds a disk.
	DiskLock time.Duration `json:"disk_lock_ns,omitempty"`
}

// The defaults of ProcessTimeouts and of sizes.
const (
	DefaultSilence      = 100 * time.Millisecond
	DefaultHeartbeat    = 25 * time.Millisecond
	DefaultMaxEpoch     = 100 * time.Millisecond
	DefaultAskAgain     = 50 * time.Millisecond
	DefaultDiskLock     = 10 * time.Second
	DefaultJournalBytes = 256 << 20
	DefaultCachePages   = 8192
)

// SyncSilences is how many times longer than ProcessTimeouts.Silence both sides bear silence while a
// replica is being filled.
const SyncSilences = 10

// Exit codes of a data-plane process. The daemon decides by them whether to start another one.
const (
	ExitDone      = 0  // the guest was stopped, or the process was told to abandon its copy
	ExitFailed    = 1  // the log says why
	ExitUsage     = 2  // the configuration can't be used
	ExitDiskBusy  = 10 // another process holds a disk
	ExitReplaced  = 11 // it lost the guest to its twin, has drained its disks and marked them outdated: start a new incarnation as the next replica
	ExitDiscarded = 12 // its copy of the memory is of no use any more (stream replaced, guest gone solo): start a new incarnation as the next replica
)

// The kinds of Order.
const (
	OrderSwitchover  = "switchover"
	OrderPowerButton = "power-button"
	OrderKill        = "kill"    // stop at once
	OrderReset       = "reset"   // the guest boots again at once
	OrderDump        = "dump"    // the memory of a guest that stands still is written to Path
	OrderAbandon     = "abandon" // a replica that is not wanted any more: exit
	OrderBalloon     = "balloon" // the guest is to keep MemoryBytes of its memory and to give the rest back
	// An operator accepts a disk that a synchronization has left half overwritten. Sent before the
	// Start entry that carries the accepted loss is proposed: without it the process refuses to boot
	// from such a disk. (For one that is merely outdated the applied Start is enough.)
	OrderAcceptInconsistent = "accept-inconsistent"
)

// ErrConfig says that a ProcessConfig can't be used.
var ErrConfig = errors.New("data-plane configuration")

// WithDefaults fills in what was left out.
func (c ProcessConfig) WithDefaults() ProcessConfig {
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&c.Timeouts.Silence, DefaultSilence}, {&c.Timeouts.Heartbeat, DefaultHeartbeat},
		{&c.Timeouts.MaxEpoch, DefaultMaxEpoch}, {&c.Timeouts.AskAgain, DefaultAskAgain},
		{&c.Timeouts.DiskLock, DefaultDiskLock},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if c.JournalBytes == 0 {
		c.JournalBytes = DefaultJournalBytes
	}
	if c.CachePages == 0 {
		c.CachePages = DefaultCachePages
	}
	return c
}

// Validate reports everything that is wrong at once.
func (c ProcessConfig) Validate() error {
	var errs []error
	need := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	need(c.Guest != "", "guest is not named")
	need(c.Party.Host != "", "party.host is empty")
	need(c.Party.Incarnation != 0, "party.incarnation is 0, which is nobody's")
	need(c.Spec.MemoryBytes > 0, "spec.memory_bytes is 0")
	need(c.Spec.CPUs > 0, "spec.cpus is 0")
	need(c.Spec.Kernel != "" || c.Spec.Firmware != "", "spec.kernel and spec.firmware are empty")
	all := len(c.Spec.AllDisks())
	need(len(c.Disks) == all, "%d disk paths for the %d disks of the spec", len(c.Disks), all)
	need(len(c.Taps) == len(c.Spec.Nets), "%d taps for the %d network cards of the spec", len(c.Taps), len(c.Spec.Nets))
	need(c.Journal != "" || len(c.Disks) == 0, "journal has no path")
	need(c.ControlSocket != "", "control_socket is empty")
	need(c.EventLog != "", "event_log is empty: nothing may change its role unlogged")
	need(c.PKI != "" || c.StreamListen == "", "pki is empty: a checkpoint stream needs certificates")
	need(c.Confine.Off() || c.Confine.Mode == ConfineAuto || c.Confine.Mode == ConfineRequired, "confine.mode is %q", c.Confine.Mode)
	t := c.Timeouts
	need(t.Silence >= 0 && t.Heartbeat >= 0 && t.MaxEpoch >= 0 && t.AskAgain >= 0 && t.DiskLock >= 0, "a timeout is negative")
	need(t.Heartbeat == 0 || t.Silence == 0 || t.Silence >= 2*t.Heartbeat,
		"timeouts.silence (%v) must be at least twice timeouts.heartbeat (%v)", t.Silence, t.Heartbeat)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

// ReadProcessConfig reads a file that the daemon wrote, refuses unknown keys, fills in defaults
// and validates.
func ReadProcessConfig(path string) (ProcessConfig, error) {
	f, err := os.Open(path)
	if err != nil {
		return ProcessConfig{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, MaxMessageBytes))
	d.DisallowUnknownFields()
	var c ProcessConfig
	if err := d.Decode(&c); err != nil {
		return ProcessConfig{}, fmt.Errorf("%w: %s: %w", ErrConfig, path, err)
	}
	c = c.WithDefaults()
	if err := c.Validate(); err != nil {
		return ProcessConfig{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}
