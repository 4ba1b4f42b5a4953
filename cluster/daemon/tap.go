package daemon

import (
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/vishvananda/netlink"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// defaultMTU is the MTU of a tap whose guest is told none, in bytes.
const defaultMTU = 1500

// tapName is the name of a network card's tap on every host: short enough for Linux, the same each time.
func tapName(guest string, nic int) string {
	h := fnv.New64a()
	h.Write([]byte(guest))
	return fmt.Sprintf("px%010x%d", h.Sum64()&0xff_ffff_ffff, nic)
}

// prepareTaps makes a guest's taps, persistent, so that they outlive processes, and puts them on their bridges.
func prepareTaps(cfg *config.Config, a pact.Assignment) ([]string, error) {
	var names []string
	for i, n := range a.Spec.Nets {
		name := tapName(a.Guest, i)
		if err := prepareTap(name, cfg.Bridge(n.Bridge), n, n.QueuePairs(a.Spec.CPUs)); err != nil {
			return nil, fmt.Errorf("network card %d: %w", i, err)
		}
		names = append(names, name)
	}
	return names, nil
}

func prepareTap(name, bridge string, n pact.NetSpec, queues int) error {
	alias := n.Bridge
	br, err := netlink.LinkByName(bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("this host has no bridge %q (for %q): make it (`ip link add %s type bridge`), or map %q to another under [bridges]", bridge, alias, bridge, alias)
	}
	if err != nil {
		return fmt.Errorf("look for the bridge %q: %w", bridge, err)
	}
	if br.Type() != "bridge" {
		return fmt.Errorf("%q is no bridge but a %s; map %q to a bridge under [bridges]", bridge, br.Type(), alias)
	}
	if have := br.Attrs().MTU; n.MTU > have {
		return fmt.Errorf("the bridge %q has an MTU of %d, the guest's network card one of %d: raise the bridge's (`ip link set %s mtu %d`), or create the guest with less",
			bridge, have, n.MTU, bridge, n.MTU)
	}
	tap, err := findTap(name, queues > 1)
	if err != nil {
		return err
	}
	// Before the tap joins the bridge: a bridge whose MTU nobody has set takes the least of its ports.
	if mtu := max(n.MTU, defaultMTU); tap.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(tap, mtu); err != nil {
			return fmt.Errorf("give the tap %s an MTU of %d: %w", name, mtu, err)
		}
	}
	if tap.Attrs().MasterIndex != br.Attrs().Index {
		if err := netlink.LinkSetMaster(tap, br); err != nil {
			return fmt.Errorf("put the tap %s on the bridge %s: %w", name, bridge, err)
		}
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return fmt.Errorf("set the tap %s up: %w", name, err)
	}
	return nil
}

// findTap finds a tap or makes it. One of the other kind, with several queues or with one, is made anew: a
// version of this program before this one has left it behind.
func findTap(name string, multi bool) (netlink.Link, error) {
	tap, err := netlink.LinkByName(name)
	if old, ok := tap.(*netlink.Tuntap); ok && err == nil && old.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 != multi {
		if err := netlink.LinkDel(tap); err != nil {
			return nil, fmt.Errorf("remove the tap %s, which has not the right number of queues: %w", name, err)
		}
		tap, err = netlink.LinkByName(name)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		t := &netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: name},
			Mode:      netlink.TUNTAP_MODE_TAP,
			Flags:     netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_ONE_QUEUE,
		}
		if multi { // how many is decided by who opens it
			t.Flags = netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_MULTI_QUEUE
			t.Queues = 1
		}
		if err := netlink.LinkAdd(t); err != nil {
			return nil, fmt.Errorf("make the tap %s: %w", name, err)
		}
		for _, f := range t.Fds {
			f.Close()
		}
		tap, err = netlink.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the tap %s: %w", name, err)
	}
	return tap, nil
}

// removeTaps takes a deleted guest's taps away.
func removeTaps(a pact.Assignment) error {
	var errs []error
	for i := range a.Spec.Nets {
		l, err := netlink.LinkByName(tapName(a.Guest, i))
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove the tap %s: %w", tapName(a.Guest, i), err))
		}
	}
	return errors.Join(errs...)
}
