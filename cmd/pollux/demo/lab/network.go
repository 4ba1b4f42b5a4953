package lab

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab/netns"
)

// Network is one of the lab's networks. Each is a bridge in the session's own namespace.
type Network string

const (
	LAN         Network = "lan"     // guests and their clients
	Cluster     Network = "cluster" // Raft, gossip, calls between daemons
	Replication Network = "repl"    // checkpoint streams
)

// subnets are the first three bytes of each network's addresses.
var subnets = map[Network][3]byte{
	LAN:         {10, 77, 0},
	Cluster:     {10, 77, 1},
	Replication: {10, 77, 2},
}

// Address is the address with this last byte on the network.
func (n Network) Address(last byte) net.IP {
	s := subnets[n]
	return net.IPv4(s[0], s[1], s[2], last).To4()
}

func (n Network) address(last byte) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: n.Address(last), Mask: net.CIDRMask(24, 32)}}
}

// makeSwitches makes the bridges, in the calling thread's namespace.
func makeSwitches() error {
	for _, n := range []Network{LAN, Cluster, Replication} {
		if err := netns.AddBridge(string(n)); err != nil {
			return err
		}
	}
	return nil
}

// port is a machine's cable: one end in a switch, the other one in the machine.
type port struct {
	network Network
	name    string // of the switch's end
	inside  string // of the machine's end
}

// plug lays a cable from the network's switch into a machine. It runs in the session's namespace.
func plug(network Network, machine *netns.Namespace, last byte, bridged bool) (port, error) {
	p := port{network: network, name: machine.Name + "-" + string(network), inside: string(network) + "0"}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: p.name}, PeerName: p.inside, PeerNamespace: netlink.NsFd(machine.FD)}
	if err := netlink.LinkAdd(veth); err != nil {
		return p, fmt.Errorf("lay cable %s: %w", p.name, err)
	}
	if err := p.connect(); err != nil {
		return p, err
	}
	if err := p.setUp(true); err != nil {
		return p, err
	}
	return p, machine.Do(func() error {
		link, err := netlink.LinkByName(p.inside)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", p.inside, machine.Name, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s in %s up: %w", p.inside, machine.Name, err)
		}
		addressed := link
		if bridged {
			if err := netns.AddBridge("br0"); err != nil {
				return err
			}
			if addressed, err = netlink.LinkByName("br0"); err != nil {
				return fmt.Errorf("br0 in %s: %w", machine.Name, err)
			}
			if err := netlink.LinkSetMaster(link, addressed); err != nil {
				return fmt.Errorf("put %s onto br0 in %s: %w", p.inside, machine.Name, err)
			}
		}
		if err := netlink.AddrAdd(addressed, network.address(last)); err != nil {
			return fmt.Errorf("address of %s in %s: %w", p.inside, machine.Name, err)
		}
		return nil
	})
}

// connect puts the cable into its switch.
func (p port) connect() error {
	link, err := netlink.LinkByName(p.name)
	if err != nil {
		return fmt.Errorf("cable %s: %w", p.name, err)
	}
	bridge, err := netlink.LinkByName(string(p.network))
	if err != nil {
		return fmt.Errorf("switch %s: %w", p.network, err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("connect cable %s: %w", p.name, err)
	}
	return nil
}

// disconnect takes the cable out of its switch while both ends keep their carrier: what a broken
// switch in between does. Nobody is told; frames just stop.
func (p port) disconnect() error {
	link, err := netlink.LinkByName(p.name)
	if err != nil {
		return fmt.Errorf("cable %s: %w", p.name, err)
	}
	if err := netlink.LinkSetNoMaster(link); err != nil {
		return fmt.Errorf("disconnect cable %s: %w", p.name, err)
	}
	return nil
}

// setUp switches the switch's end on or off. Off, the machine's end loses its carrier: what a pulled
// cable does.
func (p port) setUp(up bool) error {
	link, err := netlink.LinkByName(p.name)
	if err != nil {
		return fmt.Errorf("cable %s: %w", p.name, err)
	}
	set := netlink.LinkSetDown
	if up {
		set = netlink.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("cable %s: %w", p.name, err)
	}
	return nil
}
