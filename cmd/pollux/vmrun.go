package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cluster/agent"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/kvm"
	"github.com/pollux-ha/pollux/vmm/memory"
	"github.com/pollux-ha/pollux/vmm/platform"
	"github.com/pollux-ha/pollux/vmm/tap"
)

// newVMCommand is "pollux vm": machines without a cluster.
func newVMCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Run a machine without protection, to try a guest",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newVMRunCommand())
	return cmd
}

// vmOptions is the command line of "vm run".
type vmOptions struct {
	kernel, initrd, cmdline string
	firmware                firmwareOptions
	disks, nets             []string
	memory                  string
	cpus                    int
	cpu                     string
	noReboot                bool
	onPanic                 string
	services                vmServices
	debug                   bool
}

func newVMRunCommand() *cobra.Command {
	var o vmOptions
	cmd := &cobra.Command{
		Use:   "run {--kernel FILE | --firmware uefi}",
		Short: "Run one guest on this host, with its console here",
		Long: `Run one guest on this host, with its console on this terminal. Nothing protects it and no daemon
knows of it: this is for trying out whether a guest runs on Pollux.

A guest boots from a kernel, or with --firmware uefi from its own disk, as on a real machine. The firmware is
OVMF as Debian's package ovmf has it. Its variables, boot entries among them, are forgotten in the end unless
--firmware-vars names a file for them, which is made where it is missing.

The guest's console is the serial port ttyS0; a Linux kernel that does not boot quietly finds it with
--cmdline console=ttyS0. On a terminal, Ctrl-] or Ctrl-A x ends the guest as a power cut does, Ctrl-A
Ctrl-A sends one Ctrl-A. Input that is not a terminal is passed on as it is, and its end ends nothing.

The command ends with 0 when the guest powers off or is ended from the terminal, and with 1 when it
dies (but see --on-panic) or a signal ends it, which is a power cut too. A guest that resets boots again,
unless --no-reboot is given.

  pollux vm run --kernel /boot/vmlinuz --initrd initrd.img --cmdline "console=ttyS0 quiet" \
      --disk root.raw --net tap=tap0 --memory 512M
  pollux vm run --firmware uefi --firmware-vars vars.raw --disk debian.raw --memory 1G`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runVM(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.kernel, "kernel", "", "kernel image: an ELF with a PVH note, a bzImage, or "+builtinLedger)
	f.StringVar(&o.initrd, "initrd", "", "initial RAM disk")
	f.StringVar(&o.cmdline, "cmdline", "", "kernel command line")
	f.StringVar(&o.firmware.kind, "firmware", "", "boot from the guest's own disk: uefi")
	f.StringVar(&o.firmware.vars, "firmware-vars", "", "file that keeps the firmware's variables")
	f.StringVar(&o.firmware.image, "firmware-image", "", "another OVMF than the package's: CODE.fd,VARS.fd")
	f.StringArrayVar(&o.disks, "disk", nil, "a disk: FILE[,readonly][,serial=TEXT][,queues=N], raw; may be repeated")
	f.StringArrayVar(&o.nets, "net", nil, "a network card: tap=NAME[,mac=MAC][,queues=N][,uso]; may be repeated")
	f.StringVar(&o.memory, "memory", "256M", "memory, in bytes or with K, M, G")
	f.IntVar(&o.cpus, "cpus", 1, "virtual CPUs")
	f.StringVar(&o.cpu, "cpu", string(cpu.HostP), "what the guest's CPUs are: host (all that this one has), x86-64-v2, x86-64-v3 or x86-64-v4")
	f.StringVar(&o.services.agentSocket, "agent", "", "make a Unix socket here that leads to the guest's agent (qemu-guest-agent)")
	f.StringVar(&o.services.keep, "balloon", "", "ask the guest to keep only so much of its memory")
	f.StringVar(&o.onPanic, "on-panic", string(pact.PanicStop), "what becomes of a guest that has crashed, panicked or starved its watchdog: restart, stop or keep (it stands still)")
	f.BoolVar(&o.noReboot, "no-reboot", false, "end, too, when the guest resets")
	f.BoolVar(&o.debug, "debug", false, "log on standard error what the machine does, and which devices the guest misses")
	return cmd
}

func runVM(ctx context.Context, o vmOptions) (err error) {
	config, release, err := o.machine()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if config.Firmware == nil {
		if err := boot.Check(config.Kernel); err != nil {
			return fmt.Errorf("%s: %w", o.kernel, err)
		}
	}
	if err := kvm.Check(); err != nil {
		return err
	}
	t, err := openTerminal(os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	config.Generation = newGeneration()
	event, err := runMachine(ctx, config, o, t)
	if err == nil && event.Died() {
		how := map[platform.PowerEvent]string{platform.Panicked: "the guest's kernel panicked", platform.WatchdogExpired: "the guest starved its watchdog"}[event]
		if how == "" {
			how = "the guest crashed"
		}
		err = errors.New(how + "; its last words, if it had any, are above")
	}
	return err
}

// outcome is what is done about a power event: the guest boots again, it ends, or it stands still.
func (o vmOptions) outcome(e platform.PowerEvent) (reset, end bool) {
	switch {
	case e == platform.Reset:
		return !o.noReboot, o.noReboot
	case e.Died():
		return o.onPanic == string(pact.PanicRestart), o.onPanic == string(pact.PanicStop)
	}
	return false, true
}

// runMachine runs the machine from power-on to what ended it; 0 stands for a wish from the terminal.
func runMachine(ctx context.Context, config vmm.Config, o vmOptions, t *terminal) (event platform.PowerEvent, err error) {
	services := o.services
	out := &vmOutput{console: t}
	power := make(chan platform.PowerEvent, 1)
	in := t.input()
	defer in.Close()
	config.ConsoleIn = in
	config.Output = out
	failed := make(chan error, 1)
	tell := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	var m *vmm.Machine
	config.OnFault = tell
	config.OnPower = func(e platform.PowerEvent) {
		switch reset, end := o.outcome(e); {
		case reset:
			if err := m.Reset(nil); err != nil && !errors.Is(err, vmm.ErrStopped) {
				tell(err)
			}
		case end:
			power <- e // the last one: the guest stands still
		default:
			t.print([]byte(fmt.Sprintf("\r\npollux: the guest has died (%s) and stands still\r\n", e)))
		}
	}
	if m, err = vmm.New(config); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	out.machine = m
	stop, err := services.start(m, out)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := m.Boot(); err != nil {
		return 0, err
	}
	if err := m.Start(); err != nil {
		return 0, err
	}
	select {
	case event = <-power:
	case err = <-failed:
	case <-t.left():
	case <-ctx.Done():
		err = errors.New("ended by a signal; the guest had no chance to shut down")
	}
	if stopErr := m.Stop(); stopErr != nil {
		err = errors.Join(err, fmt.Errorf("stop the guest: %w", stopErr))
	}
	return event, err
}

// vmOutput lets all that the guest says out at once.
type vmOutput struct {
	console *terminal
	machine *vmm.Machine  // set before the guest runs
	agent   *agent.Socket // the same; nil: none
}

func (o *vmOutput) Transmit(nic int, frame []byte) {
	// A frame that the tap does not take is lost, as on any network.
	_ = o.machine.Emit(nic, frame)
}

func (o *vmOutput) Console(p []byte) { o.console.print(p) }

func (o *vmOutput) Agent(p []byte) {
	if o.agent != nil {
		o.agent.Output(p)
	}
}

func (o *vmOutput) DiskWritten(int, int64, []byte) {}

func (o *vmOutput) DiskZeroed(int, int64, int64, bool) {}

// machine opens all that the options name. release closes it again.
func (o vmOptions) machine() (config vmm.Config, release func() error, err error) {
	var opened []interface{ Close() error }
	release = sync.OnceValue(func() error {
		var errs []error
		for _, c := range opened {
			errs = append(errs, c.Close())
		}
		return errors.Join(errs...)
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, release())
		}
	}()
	config = vmm.Config{Cmdline: o.cmdline, CPUs: o.cpus}
	if config.MemoryBytes, err = parseBytes(o.memory); err != nil {
		return config, release, usagef("--memory %s: %w", o.memory, err)
	}
	if config.MemoryBytes < memory.MinSize || config.MemoryBytes > memory.MaxSize {
		return config, release, usagef("--memory %s: a guest has between 1M and 4T", o.memory)
	}
	if config.CPU, err = o.model(); err != nil {
		return config, release, err
	}
	switch pact.PanicPolicy(o.onPanic) {
	case pact.PanicRestart, pact.PanicStop, pact.PanicKeep:
	default:
		return config, release, usagef("--on-panic %s: restart, stop or keep", o.onPanic)
	}
	if o.cpus < 1 {
		return config, release, usagef("--cpus %d: a guest has at least one", o.cpus)
	}
	switch {
	case o.firmware.kind != "":
		flash, err := o.openFirmware(&config)
		if err != nil {
			return config, release, err
		}
		opened = append(opened, flash)
	case o.kernel == "":
		return config, release, usagef("--kernel is needed: a file, or %s; or --firmware uefi", builtinLedger)
	default:
		if config.Kernel, err = readKernel(o.kernel); err != nil {
			return config, release, err
		}
	}
	if o.debug {
		if config.Log, err = zap.NewDevelopment(); err != nil {
			return config, release, fmt.Errorf("make the log: %w", err)
		}
	}
	if o.initrd != "" {
		if config.Initrd, err = readImage("initrd", o.initrd, config.MemoryBytes); err != nil {
			return config, release, err
		}
	}
	for _, s := range o.disks {
		d, err := openDisk(s)
		if err != nil {
			return config, release, err
		}
		opened = append(opened, d)
		config.Disks = append(config.Disks, vmm.DiskConfig{File: d, ReadOnly: d.readOnly, Serial: d.serial, Queues: d.queues})
	}
	for _, s := range o.nets {
		n, t, err := openNet(s, o.cpus)
		if err != nil {
			return config, release, err
		}
		opened = append(opened, t)
		config.Nets = append(config.Nets, n)
	}
	return config, release, nil
}

const maxKernelBytes = 1 << 30

func readKernel(name string) ([]byte, error) {
	if strings.HasPrefix(name, "builtin:") {
		return builtinKernel(name)
	}
	return readImage("kernel", name, maxKernelBytes)
}

// readImage reads a file that goes into guest memory.
func readImage(what, path string, limit uint64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s: not a regular file", what, path)
	}
	if uint64(st.Size()) > limit {
		return nil, fmt.Errorf("%s %s: %s do not fit into %s", what, path, bytesText(uint64(st.Size())), bytesText(limit))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b, nil
}

// openNet opens an existing tap: a typing error must not leave a new interface behind.
func openNet(s string, cpus int) (vmm.NetConfig, *tap.Tap, error) {
	o, err := options(s, "tap", "mac", "queues", "uso")
	if err != nil {
		return vmm.NetConfig{}, nil, usagef("--net %s: %w", s, err)
	}
	name := o["tap"]
	if name == "" {
		return vmm.NetConfig{}, nil, usagef("--net %s: tap=NAME is needed", s)
	}
	mac := randomMAC()
	if o["mac"] != "" {
		mac, err = net.ParseMAC(o["mac"])
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return vmm.NetConfig{}, nil, usagef("--net %s: give a unicast address like 02:00:00:12:34:56", s)
		}
	}
	flags, err := interfaceNumber(name, "tun_flags")
	if err != nil {
		return vmm.NetConfig{}, nil, fmt.Errorf("there is no tap %q on this host: make it with \"ip tuntap add %s mode tap && ip link set %s up\"", name, name, name)
	}
	multi := flags&unix.IFF_MULTI_QUEUE != 0
	n := pact.NetSpec{}
	if n.Queues, err = parseQueues(o); err != nil {
		return vmm.NetConfig{}, nil, usagef("--net %s: %w", s, err)
	}
	queues := n.QueuePairs(cpus)
	if n.Queues > 1 && !multi {
		return vmm.NetConfig{}, nil, fmt.Errorf("--net %s: the tap has one queue: make it with \"ip tuntap add %s mode tap multi_queue\"", s, name)
	}
	if !multi {
		queues = 1
	}
	mtu, err := interfaceNumber(name, "mtu")
	if err != nil {
		return vmm.NetConfig{}, nil, err
	}
	_, uso := o["uso"]
	t, err := tap.Open(name, tap.Options{Queues: queues, USO: uso})
	if err != nil {
		return vmm.NetConfig{}, nil, err
	}
	return vmm.NetConfig{Tap: t, MAC: mac, MTU: int(mtu), USO: uso}, t, nil
}

// interfaceNumber is a number that the kernel tells of a network interface.
func interfaceNumber(name, what string) (int64, error) {
	if strings.Contains(name, "/") {
		return 0, fmt.Errorf("network interface %q: %w", name, fs.ErrNotExist)
	}
	b, err := os.ReadFile("/sys/class/net/" + name + "/" + what)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 0, 64)
}
