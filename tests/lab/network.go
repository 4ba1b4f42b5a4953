package lab

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab/netns"
)

// Network is one of the lab's networks. Each is a bridge in a network namespace of its own.
type Network string

const (
	LAN         Network = "lan"     // guests and their clients; addresses by DHCP
	Control     Network = "cluster" // Raft, gossip, calls between daemons
	Replication Network = "repl"    // checkpoint streams
)

// Networks are all of them.
var Networks = []Network{LAN, Control, Replication}

func (n Network) index() byte {
	for i, o := range Networks {
		if o == n {
			return byte(i)
		}
	}
	panic("there is no network " + string(n))
}

// Address is the address with this last byte on the network: 10.78.0, .1 or .2.
func (n Network) Address(last byte) net.IP { return net.IPv4(10, 78, n.index(), last).To4() }

// prefix is the address in CIDR form.
func (n Network) prefix(last byte) string { return n.Address(last).String() + "/24" }

// Who has which last byte: hosts from 1, then the native machines, then what DHCP gives.
const (
	firstMachine  = 20
	firstLease    = 100
	lastLease     = 250
	routerAddress = firstMachine - 1
)

func makeSwitches() error {
	for _, n := range Networks {
		if err := netns.AddBridge(string(n)); err != nil {
			return err
		}
	}
	return nil
}

// setMaster puts a cable into its switch, or takes it out while both ends keep their carrier: what a broken
// switch in between does.
func setMaster(cable string, n Network, in bool) error {
	link, err := netlink.LinkByName(cable)
	if err != nil {
		return fmt.Errorf("cable %s: %w", cable, err)
	}
	if !in {
		return netlink.LinkSetNoMaster(link)
	}
	bridge, err := netlink.LinkByName(string(n))
	if err != nil {
		return fmt.Errorf("switch %s: %w", n, err)
	}
	return netlink.LinkSetMaster(link, bridge)
}

// addTap makes a host's cable: a tap in the switch, whose other end the emulator gets. It goes when that is
// closed everywhere.
func addTap(name string, n Network) (*os.File, error) {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP, NonPersist: true, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	if len(tap.Fds) != 1 {
		return nil, fmt.Errorf("make tap %s: %d files", name, len(tap.Fds))
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = errors.Join(netlink.LinkSetUp(link), setMaster(name, n, true))
	}
	if err != nil {
		tap.Fds[0].Close()
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return tap.Fds[0], nil
}

// addCable lays a cable from a switch into a native machine. It runs in the switches' namespace.
func addCable(name string, n Network, machine *netns.Namespace, last byte) error {
	inside := string(n) + "0"
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: inside, PeerNamespace: netlink.NsFd(machine.FD)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("lay cable %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cable %s: %w", name, err)
	}
	if err := errors.Join(netlink.LinkSetUp(link), setMaster(name, n, true)); err != nil {
		return fmt.Errorf("cable %s: %w", name, err)
	}
	return machine.Do(func() error {
		link, err := netlink.LinkByName(inside)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", inside, machine.Name, err)
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: n.Address(last), Mask: net.CIDRMask(24, 32)}}
		if err := errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, a)); err != nil {
			return fmt.Errorf("%s in %s: %w", inside, machine.Name, err)
		}
		return nil
	})
}
