package lab

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/pollux-ha/pollux/console"
)

// Create makes a guest: `pollux guest create NAME ARGS`, on the first host that has power.
func (c *Cluster) Create(ctx context.Context, name string, args ...string) error {
	_, err := c.operate(ctx, append([]string{"guest", "create", name}, args...)...)
	return err
}

// Start starts a guest and waits until it runs.
func (c *Cluster) Start(ctx context.Context, name string) error {
	_, err := c.operate(ctx, "guest", "start", name, "--wait", "2m")
	return err
}

// Stop stops a guest by its power button, or at once.
func (c *Cluster) Stop(ctx context.Context, name string, force bool) error {
	args := []string{"guest", "stop", name, "--wait", "3m"}
	if force {
		args = append(args, "--force")
	}
	_, err := c.operate(ctx, args...)
	return err
}

// Switchover exchanges primary and replica, and returns once the guest runs on the host that held its copy. A
// host that stood still at the wrong moment makes it wait and try again.
func (c *Cluster) Switchover(ctx context.Context, name string) error {
	began, err := c.Wait(ctx, name, "is protected", protected)
	if err != nil {
		return err
	}
	return until(ctx, name+" runs on "+began.Replica, 250*time.Millisecond, func() (bool, error) {
		g, err := c.Wait(ctx, name, "is protected", protected)
		if err != nil || g.Primary == began.Replica {
			return err == nil, err
		}
		_, err = c.operate(ctx, "guest", "switchover", name, "--wait", "2m")
		return err == nil, err
	})
}

func protected(g *console.Guest) bool { return g.State == "protected" }

// Status is the guest's, as the witness knows it.
func (c *Cluster) Status(ctx context.Context, name string) (*console.Guest, error) {
	return c.watcher.Guest(ctx, name)
}

// ClusterStatus is the cluster's, as the witness knows it.
func (c *Cluster) ClusterStatus(ctx context.Context) (*console.ClusterStatus, error) {
	return c.watcher.Status(ctx)
}

// Events are a host's newest events of a guest, oldest first.
func (c *Cluster) Events(ctx context.Context, h *Host, guest string) ([]console.Event, error) {
	out, err := c.Pollux(ctx, h, "events", "--guest", guest, "-o", "json")
	if err != nil {
		return nil, err
	}
	return decodeLines[console.Event](out)
}

// Wait waits until the guest's status is as wanted.
func (c *Cluster) Wait(ctx context.Context, name, what string, wanted func(*console.Guest) bool) (*console.Guest, error) {
	var found *console.Guest
	err := until(ctx, "guest "+name+" "+what, 250*time.Millisecond, func() (bool, error) {
		asked, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		g, err := c.Status(asked, name)
		if err != nil {
			return false, err
		}
		found = g
		return wanted(g), fmt.Errorf("it is %s (%s), primary %q, replica %q, term %d", g.State, g.Detail, g.Primary, g.Replica, g.Term)
	})
	return found, err
}

// WaitProtected waits until the guest is protected.
func (c *Cluster) WaitProtected(ctx context.Context, name string) error {
	_, err := c.Wait(ctx, name, "is protected", protected)
	return err
}

// WaitPrimary waits until the guest runs on a host.
func (c *Cluster) WaitPrimary(ctx context.Context, name string, h *Host) error {
	_, err := c.Wait(ctx, name, "runs on "+h.Name, func(g *console.Guest) bool {
		return g.Primary == h.Name && (g.State == "protected" || g.State == "solo" || g.State == "syncing")
	})
	return err
}

// Address waits until a guest's first network card has its address on the LAN.
func (c *Cluster) Address(ctx context.Context, name string) (net.IP, error) {
	g, err := c.Status(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(g.Spec.Nets) == 0 {
		return nil, fmt.Errorf("guest %s has no network card", name)
	}
	return c.lab.Lease(ctx, g.Spec.Nets[0].MAC)
}

// Console is what a guest has written to its serial console, as far as a host has it.
func (c *Cluster) Console(ctx context.Context, h *Host, name string) (string, error) {
	out, err := h.Exec(ctx, "cat", StateDir+"/guests/"+name+"/console.log")
	return strings.ReplaceAll(out, "\r", ""), err
}
