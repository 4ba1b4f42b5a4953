package dataplane

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/lockstep"
	"github.com/pollux-ha/pollux/replica/store"
	"github.com/pollux-ha/pollux/vmm"
	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/cpu"
	"github.com/pollux-ha/pollux/vmm/tap"
	"github.com/pollux-ha/pollux/vmm/virtio"
)

// builtinLedger is the kernel that is in the program.
const builtinLedger = "builtin:ledger"

// outlet leads what leaves the machine to the engine of the moment. While there is none (a replica's
// machine does not run) nothing can leave, and what does is dropped.
type outlet struct {
	engine atomic.Pointer[lockstep.Engine]
}

func (o *outlet) Transmit(nic int, frame []byte) {
	if e := o.engine.Load(); e != nil {
		e.Transmit(nic, frame)
	}
}

func (o *outlet) Console(p []byte) {
	if e := o.engine.Load(); e != nil {
		e.Console(p)
	}
}

func (o *outlet) Agent(p []byte) {
	if e := o.engine.Load(); e != nil {
		e.Agent(p)
	}
}

func (o *outlet) DiskWritten(disk int, offset int64, data []byte) {
	if e := o.engine.Load(); e != nil {
		e.DiskWritten(disk, offset, data)
	}
}

func (o *outlet) DiskZeroed(disk int, offset, n int64, unmap bool) {
	if e := o.engine.Load(); e != nil {
		e.DiskZeroed(disk, offset, n, unmap)
	}
}

func (o *outlet) pause(p *vmm.Pause) bool {
	if e := o.engine.Load(); e != nil {
		return e.OnPause(p)
	}
	return true
}

// machineConfig describes the machine of the configured guest.
func machineConfig(cfg link.ProcessConfig, disks []*store.Disk, openTap tapOpener) (vmm.Config, error) {
	m := vmm.Config{
		MemoryBytes: cfg.Spec.MemoryBytes, CPUs: cfg.Spec.CPUs, Cmdline: cfg.Spec.Cmdline, PinCPUs: cfg.PinCPUs,
	}
	var err error
	if text := cfg.Spec.CPU.Model; text != "" {
		model, err := cpu.ParseModel(text)
		if err != nil {
			return m, fmt.Errorf("the guest's CPU: %w", err)
		}
		m.CPU = &model
	}
	// What is wrong is found out now, and not when the guest is being started.
	if cfg.Spec.Firmware != "" {
		m.Firmware, err = firmwareConfig(cfg.Firmware, disks[len(cfg.Spec.Disks)])
	} else {
		err = loadKernel(&m, cfg.Spec)
	}
	if err != nil {
		return m, err
	}
	for i, d := range cfg.Spec.Disks {
		m.Disks = append(m.Disks, vmm.DiskConfig{File: disks[i], ReadOnly: d.ReadOnly, Serial: d.Serial, Queues: d.Queues})
	}
	for i, n := range cfg.Spec.Nets {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil {
			return m, fmt.Errorf("network card %d: %w", i, err)
		}
		t, err := openTap(cfg.NetNS, cfg.Taps[i], tap.Options{Queues: n.QueuePairs(cfg.Spec.CPUs), USO: n.USO})
		if err != nil {
			return m, fmt.Errorf("network card %d: %w", i, err)
		}
		m.Nets = append(m.Nets, vmm.NetConfig{Tap: t, MAC: mac, MTU: n.MTU, USO: n.USO})
	}
	return m, nil
}

func loadKernel(m *vmm.Config, s pact.Spec) (err error) {
	if m.Kernel, err = image(s.Kernel); err != nil {
		return fmt.Errorf("the guest's kernel: %w: every host of the guest needs it at that path", err)
	}
	if err := boot.Check(m.Kernel); err != nil {
		return fmt.Errorf("%s: %w", s.Kernel, err)
	}
	if s.Initrd != "" {
		if m.Initrd, err = image(s.Initrd); err != nil {
			return fmt.Errorf("the guest's initial RAM disk: %w: every host of the guest needs it at that path", err)
		}
	}
	return nil
}

// bootDigest is that of what the guest boots from: it has to be the same on both hosts, also for a reset after a
// takeover. A reset of a guest with firmware begins with what lies in its flash memory, which is mirrored.
func bootDigest(m vmm.Config) checkpoint.Digest {
	if m.Firmware != nil {
		return checkpoint.BootDigest([]byte(pact.FirmwareUEFI))
	}
	return checkpoint.BootDigest(m.Kernel, m.Initrd, []byte(m.Cmdline))
}

func image(path string) ([]byte, error) {
	if path == builtinLedger {
		return ledger.Image(), nil
	}
	return os.ReadFile(path)
}

// tapOpener opens a tap by its name, in a network namespace.
type tapOpener func(netns, name string, o tap.Options) (virtio.Tap, error)

// openTap opens a tap, in the network namespace at path where one is named.
func openTap(netns, name string, o tap.Options) (virtio.Tap, error) {
	if netns == "" {
		return tap.Open(name, o)
	}
	type result struct {
		tap virtio.Tap
		err error
	}
	// The thread is never unlocked: it ends with its goroutine, and its namespace with it.
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(netns)
		if err != nil {
			done <- result{err: fmt.Errorf("open the network namespace: %w", err)}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter the network namespace %s: %w", netns, err)}
			return
		}
		t, err := tap.Open(name, o)
		done <- result{t, err}
	}()
	r := <-done
	return r.tap, r.err
}
