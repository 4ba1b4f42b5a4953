package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab/netns"
	"github.com/pollux-ha/pollux/tests/lab/control"
)

// setUp makes the host what /lab.json says.
func setUp() error {
	b, err := os.ReadFile(control.SetupFile)
	if err != nil {
		return err
	}
	var s control.Setup
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s: %w", control.SetupFile, err)
	}
	errs := []error{unix.Sethostname([]byte(s.Name)), netns.Prepare()}
	for _, c := range s.Cards {
		if err := plug(c); err != nil {
			errs = append(errs, fmt.Errorf("network card %s: %w", c.Name, err))
		}
	}
	for _, d := range s.Disks {
		if err := mount(d); err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", d.Serial, err))
		}
	}
	return errors.Join(errs...)
}

// await asks until there is an answer: devices are found a moment after their driver has been loaded.
func await[T any](what string, find func() (T, bool)) (T, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if v, ok := find(); ok {
			return v, nil
		} else if time.Now().After(deadline) {
			return v, fmt.Errorf("there is no %s", what)
		}
	}
}

func plug(c control.Card) error {
	link, err := await("card with the address "+c.MAC, func() (netlink.Link, bool) {
		links, _ := netlink.LinkList()
		for _, l := range links {
			if l.Attrs().HardwareAddr.String() == c.MAC && l.Type() == "device" {
				return l, true
			}
		}
		return nil, false
	})
	if err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, c.Name); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	addressed := link
	if c.Bridge != "" {
		if err := netns.AddBridge(c.Bridge); err != nil {
			return err
		}
		if addressed, err = netlink.LinkByName(c.Bridge); err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, addressed); err != nil {
			return fmt.Errorf("put onto %s: %w", c.Bridge, err)
		}
	}
	ip, subnet, err := net.ParseCIDR(c.Address)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(addressed, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: subnet.Mask}})
}

func mount(d control.Disk) error {
	device, err := await("disk with that serial number", func() (string, bool) {
		found, _ := filepath.Glob("/sys/block/vd*/serial")
		for _, f := range found {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == d.Serial {
				return "/dev/" + filepath.Base(filepath.Dir(f)), true
			}
		}
		return "", false
	})
	if err != nil {
		return err
	}
	if d.Mount == "" {
		return nil
	}
	var flags uintptr = unix.MS_NOATIME
	if d.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := os.MkdirAll(d.Mount, 0o755); err != nil {
		return err
	}
	return unix.Mount(device, d.Mount, "ext4", flags, "")
}
