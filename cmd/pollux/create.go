package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/console"
	"github.com/pollux-ha/pollux/vmm/cpu"
)

func (p *program) guestCreateCommand() *cobra.Command {
	var o order
	var hosts, disks, nets []string
	var memory string
	var spec pact.Spec
	var start bool
	cmd := p.mutation("create", "Create a guest", `Create a guest. Its kernel and initrd are files on every host that may run it, or "builtin:ledger",
the small Redis server that comes with Pollux. With --firmware uefi the guest boots from its own disk, by the boot
loader there; each host needs Debian's package ovmf, or firmware.code and firmware.vars in its configuration. Disks are made on first use, or lie in the host's state
directory as guests/NAME/disk0.raw and so on.

  pollux guest create ledger --hosts a,b --kernel builtin:ledger --memory 64M \
      --disk size=256M --net bridge=lan --cmdline "ip=10.77.0.10/24" --start`, &o, false,
		func(ctx context.Context, _ *cobra.Command, name string) (*console.Guest, error) {
			var err error
			if spec.MemoryBytes, err = parseBytes(memory); err != nil {
				return nil, usagef("--memory %s: %w", memory, err)
			}
			if spec.Kernel == "" && spec.Firmware == "" {
				return nil, usagef("--kernel is needed: a file on the hosts, or builtin:ledger; or --firmware uefi")
			}
			for _, d := range disks {
				disk, err := parseDisk(d)
				if err != nil {
					return nil, usagef("--disk %s: %w", d, err)
				}
				spec.Disks = append(spec.Disks, disk)
			}
			for _, n := range nets {
				nic, err := parseNet(n)
				if err != nil {
					return nil, usagef("--net %s: %w", n, err)
				}
				spec.Nets = append(spec.Nets, nic)
			}
			c := p.client()
			if spec.Hosts = hosts; len(hosts) == 0 {
				if spec.Hosts, err = allHosts(ctx, c); err != nil {
					return nil, err
				}
			}
			return c.Create(ctx, console.CreateRequest{Name: name, Spec: spec, Start: start, DryRun: o.dryRun})
		})
	f := cmd.Flags()
	f.StringSliceVar(&hosts, "hosts", nil, "hosts that may hold a copy, the first one starts it (where the cluster has two: both)")
	f.StringVar(&spec.Kernel, "kernel", "", "kernel image: an ELF with a PVH note, a bzImage, or builtin:ledger")
	f.StringVar(&spec.Initrd, "initrd", "", "initial RAM disk")
	f.StringVar(&spec.Cmdline, "cmdline", "", "kernel command line")
	f.StringVar(&spec.Firmware, "firmware", "", "boot from the guest's own disk instead: uefi")
	f.StringVar((*string)(&spec.OnPanic), "on-panic", string(pact.PanicRestart), "what becomes of a guest that has crashed, panicked or starved its watchdog: restart, stop or keep (for a dump)")
	f.StringVar(&memory, "memory", "256M", "memory, in bytes or with K, M, G")
	f.IntVar(&spec.CPUs, "cpus", 1, "virtual CPUs")
	f.StringVar(&spec.CPU.Policy, "cpu", string(cpu.Pair), cpuHelp)
	f.StringArrayVar(&disks, "disk", nil, "a disk: size=SIZE[,readonly][,serial=TEXT][,queues=N]; may be repeated")
	f.StringArrayVar(&nets, "net", nil, "a network card: bridge=NAME[,mac=MAC][,queues=N][,mtu=N][,uso]; may be repeated")
	f.BoolVar(&spec.Test, "test", false, "it is there to be tested: a fault that is injected needs no confirmation")
	f.BoolVar(&start, "start", false, "start it at once")
	return cmd
}

// allHosts are the hosts of a cluster that has just two.
func allHosts(ctx context.Context, c *console.Client) ([]string, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	var hosts []string
	for _, m := range s.Members {
		if m.Role == "host" {
			hosts = append(hosts, m.Name)
		}
	}
	if len(hosts) != 2 {
		return nil, usagef("the cluster has %d hosts: name those for this guest with --hosts", len(hosts))
	}
	return hosts, nil
}

// parseBytes reads a size: 268435456, 256M, 1G. Suffixes are powers of 1,024.
func parseBytes(s string) (uint64, error) {
	digits := strings.TrimRight(s, "KMGTkmgtiBb")
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[strings.ToUpper(strings.TrimSuffix(strings.TrimRight(s[len(digits):], "Bb"), "i"))]
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || !ok || n > math.MaxUint64>>shift {
		return 0, errors.New("give a size like 256M or 1G")
	}
	return n << shift, nil
}

// options reads key=value pairs and bare words, separated by commas.
func options(s string, known ...string) (map[string]string, error) {
	found := make(map[string]string)
	for _, part := range strings.Split(s, ",") {
		key, value, _ := strings.Cut(part, "=")
		ok := false
		for _, k := range known {
			ok = ok || k == key
		}
		if !ok {
			return nil, fmt.Errorf("%q is unknown; known are %s", key, strings.Join(known, ", "))
		}
		if _, twice := found[key]; twice {
			return nil, fmt.Errorf("%q is given twice", key)
		}
		found[key] = value
	}
	return found, nil
}

func parseDisk(s string) (pact.DiskSpec, error) {
	o, err := options(s, "size", "readonly", "serial", "queues")
	if err != nil {
		return pact.DiskSpec{}, err
	}
	size, err := parseBytes(o["size"])
	if err != nil {
		return pact.DiskSpec{}, fmt.Errorf("size: %w", err)
	}
	if size == 0 || size%512 != 0 {
		return pact.DiskSpec{}, errors.New("size: a disk has a multiple of 512 bytes, and not none")
	}
	_, readonly := o["readonly"]
	serial, queues, err := identity(o)
	return pact.DiskSpec{SizeBytes: size, ReadOnly: readonly, Serial: serial, Queues: queues}, err
}

// identity reads what a disk says of itself to the guest.
func identity(o map[string]string) (serial string, queues int, err error) {
	serial, given := o["serial"]
	if !pact.ValidSerial(serial) || given && serial == "" {
		return "", 0, fmt.Errorf("serial=%s: give 1 to 20 printable ASCII characters without spaces", serial)
	}
	queues, err = parseQueues(o)
	return serial, queues, err
}

func parseNet(s string) (pact.NetSpec, error) {
	o, err := options(s, "bridge", "mac", "queues", "mtu", "uso")
	if err != nil {
		return pact.NetSpec{}, err
	}
	if o["bridge"] == "" {
		return pact.NetSpec{}, errors.New("bridge=NAME is needed")
	}
	n, err := makeNet(o["bridge"], o["mac"])
	if err != nil {
		return n, err
	}
	if n.Queues, err = parseQueues(o); err != nil {
		return n, err
	}
	if mtu, given := o["mtu"]; given {
		if n.MTU, err = strconv.Atoi(mtu); err != nil || n.MTU < pact.MinMTU || n.MTU > pact.MaxMTU {
			return n, fmt.Errorf("mtu=%s: between %d and %d are possible", mtu, pact.MinMTU, pact.MaxMTU)
		}
	}
	_, n.USO = o["uso"]
	return n, nil
}

// parseQueues reads queues=N; without it 0, which leaves the number to the device.
func parseQueues(o map[string]string) (int, error) {
	text, given := o["queues"]
	if !given {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > pact.MaxQueues {
		return 0, fmt.Errorf("queues=%s: between 1 and %d are possible", text, pact.MaxQueues)
	}
	return n, nil
}

// makeNet is a network card on a bridge; without a MAC address it gets one.
func makeNet(bridge, address string) (pact.NetSpec, error) {
	n := pact.NetSpec{Bridge: bridge, MAC: address}
	if n.MAC == "" {
		n.MAC = randomMAC().String()
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return pact.NetSpec{}, fmt.Errorf("mac=%s: give a unicast address like 02:00:00:12:34:56", n.MAC)
	}
	n.MAC = mac.String()
	return n, nil
}

// randomMAC is a locally administered unicast address. 40 random bits keep guests of one LAN apart
// without a register of addresses.
func randomMAC() net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 0}
	rand.Read(mac[1:])
	return mac
}
