package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/pollux-ha/pollux/tests/lab/control"
	"github.com/pollux-ha/pollux/tests/lab/emulator"
	"github.com/pollux-ha/pollux/tests/lab/parts"
	"github.com/pollux-ha/pollux/vmm/firmware"
)

// Host is a lab host: an emulated machine with KVM. Its root is in memory; /data is its disk and outlives
// power cuts.
type Host struct {
	Name   string
	Number byte // last byte of its addresses
	Dir    string

	lab     *Lab
	options HostOptions
	cut     map[Network]bool

	mu      sync.Mutex
	machine *emulator.Machine // nil: off
	onBoot  []func(ctx context.Context, h *Host) error
	booting sync.Mutex
}

// bridge is the hosts' own switch for their guests.
const bridge = "br0"

func (l *Lab) addHost(ctx context.Context, number byte, o HostOptions) error {
	if o.CPUs == 0 {
		o.CPUs = l.options.CPUs
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = l.options.MemoryMiB
	}
	if o.DiskMiB == 0 {
		o.DiskMiB = l.options.DiskMiB
	}
	h := &Host{Name: o.Name, Number: number, Dir: filepath.Join(l.Dir, o.Name), lab: l, options: o, cut: make(map[Network]bool)}
	if err := os.Mkdir(h.Dir, 0o755); err != nil {
		return err
	}
	files := make(map[string]string)
	for _, m := range []map[string]string{l.options.Data, o.Data} {
		for to, from := range m {
			files[to] = from
		}
	}
	if err := parts.Disk(ctx, o.Name, h.disk(), o.DiskMiB, files); err != nil {
		return fmt.Errorf("disk of %s: %w", o.Name, err)
	}
	l.hosts = append(l.hosts, h)
	return nil
}

func (h *Host) disk() string { return filepath.Join(h.Dir, "data.qcow2") }

// mac is the card's on a network.
func (h *Host) mac(n Network) string {
	return fmt.Sprintf("52:54:00:4c:%02x:%02x", n.index(), h.Number)
}

// cable is the name of the switch's end. Names of interfaces have 15 characters at most.
func (h *Host) cable(n Network) string { return fmt.Sprintf("host%d-%s", h.Number, n) }

// OnBoot has f called at the end of every PowerOn, from the next one on.
func (h *Host) OnBoot(f func(ctx context.Context, h *Host) error) { h.onBoot = append(h.onBoot, f) }

// PowerOn switches the host on and waits until it is up.
func (h *Host) PowerOn(ctx context.Context) error {
	h.booting.Lock()
	defer h.booting.Unlock()
	if h.On() {
		return fmt.Errorf("host %s is on already", h.Name)
	}
	m, err := h.boot(ctx)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.machine = m
	h.mu.Unlock()
	h.lab.logf("host %s is up after %.1f s", h.Name, m.Booted.Seconds())
	for _, f := range h.onBoot {
		if err := f(ctx, h); err != nil {
			return fmt.Errorf("host %s, after its start: %w", h.Name, err)
		}
	}
	return nil
}

func (h *Host) boot(ctx context.Context) (*emulator.Machine, error) {
	spec := emulator.Spec{
		Name: h.Name, Kernel: h.lab.kernel.Image, Initrd: filepath.Join(h.Dir, "initrd"),
		CPUs: h.options.CPUs, MemoryMiB: h.options.MemoryMiB,
		Console: filepath.Join(h.Dir, "console"),
		Disks:   []emulator.Disk{{File: h.disk(), Format: "qcow2", Serial: "data"}},
	}
	setup := control.Setup{Name: h.Name, Disks: []control.Disk{{Serial: "data", Mount: "/data"}}}
	for _, n := range Networks {
		c := control.Card{MAC: h.mac(n), Name: string(n) + "0", Address: n.prefix(h.Number)}
		if n == LAN {
			c.Bridge = bridge
		}
		setup.Cards = append(setup.Cards, c)
		err := h.lab.switches.Do(func() error {
			tap, err := addTap(h.cable(n), n)
			spec.Cards = append(spec.Cards, emulator.Card{Tap: tap, MAC: c.MAC})
			if err == nil && h.cut[n] {
				err = setMaster(h.cable(n), n, false)
			}
			return err
		})
		// The emulator has it then.
		defer func(i int) { spec.Cards[i].Tap.Close() }(len(spec.Cards) - 1)
		if err != nil {
			return nil, err
		}
	}
	files := map[string]string{"/bin/pollux": h.lab.options.Pollux}
	if h.lab.options.Firmware {
		for _, name := range []string{firmware.DefaultCode, firmware.DefaultVars} {
			files[name] = name
		}
	}
	host := parts.Host{Kernel: h.lab.kernel, Modules: h.lab.options.Modules, Setup: setup, Files: files, CalmKVM: h.lab.options.Firmware}
	if err := host.Write(ctx, spec.Initrd); err != nil {
		return nil, err
	}
	return start(ctx, spec, h.lab.logf)
}

func (h *Host) running() *emulator.Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machine != nil {
		select {
		case <-h.machine.Gone():
			h.machine = nil
		default:
		}
	}
	return h.machine
}

// On says whether the host has power.
func (h *Host) On() bool { return h.running() != nil }

// PowerCut pulls the plug and returns when the host is gone.
func (h *Host) PowerCut() error {
	m, err := h.up()
	if err != nil {
		return err
	}
	m.PowerCut()
	return nil
}

// PowerOff switches the host off in an orderly way.
func (h *Host) PowerOff(ctx context.Context) error {
	m, err := h.up()
	if err != nil {
		return err
	}
	return m.PowerOff(ctx)
}

// Freeze makes the host hang until Thaw.
func (h *Host) Freeze() error {
	m, err := h.up()
	if err != nil {
		return err
	}
	return m.Freeze()
}

// Thaw ends what Freeze began.
func (h *Host) Thaw() error {
	m, err := h.up()
	if err != nil {
		return err
	}
	return m.Thaw()
}

func (h *Host) up() (*emulator.Machine, error) {
	if m := h.running(); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("host %s is off: %w", h.Name, emulator.ErrPower)
}

// Exec runs a program on the host and returns its standard output. The error of one that ends with a code other
// than 0 is an *emulator.ExitError.
func (h *Host) Exec(ctx context.Context, argv ...string) (string, error) {
	m, err := h.up()
	if err != nil {
		return "", err
	}
	return m.Exec(ctx, nil, argv...)
}

// Start starts a program on the host.
func (h *Host) Start(c emulator.Command) (*emulator.Process, error) {
	m, err := h.up()
	if err != nil {
		return nil, err
	}
	return m.Start(c)
}

// Run runs a program on the host to its end.
func (h *Host) Run(ctx context.Context, c emulator.Command) error {
	m, err := h.up()
	if err != nil {
		return err
	}
	return m.Run(ctx, c)
}

// Put copies a file of this machine to the host, with its permissions.
func (h *Host) Put(ctx context.Context, remote, local string) error {
	m, err := h.up()
	if err != nil {
		return err
	}
	return m.Put(ctx, remote, local)
}

// Get copies a file of the host to this machine.
func (h *Host) Get(ctx context.Context, remote, local string) error {
	m, err := h.up()
	if err != nil {
		return err
	}
	return m.Get(ctx, remote, local)
}

// Console is all that the host wrote to its serial console, over all its starts.
func (h *Host) Console() string {
	b, err := os.ReadFile(filepath.Join(h.Dir, "console"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Cut makes the host's cable to a network carry nothing, without losing its carrier, until Mend.
func (h *Host) Cut(n Network) error { return h.plug(n, false) }

// Mend ends what Cut began.
func (h *Host) Mend(n Network) error { return h.plug(n, true) }

func (h *Host) plug(n Network, in bool) error {
	return h.lab.switches.Do(func() error {
		h.cut[n] = !in
		if !h.On() {
			return nil
		}
		return setMaster(h.cable(n), n, in)
	})
}
