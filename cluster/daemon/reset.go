package daemon

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// CheckReset says why a guest can't be reset.
func (d *Daemon) CheckReset(name string) (pact.Assignment, error) { return d.running(name) }

// Reset has a guest boot again, as by the reset button; it does not wait for it. A guest that is kept after its
// death goes on by it.
func (d *Daemon) Reset(ctx context.Context, name, operator string) error {
	a, err := d.CheckReset(name)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "reset", nil); err != nil {
		return err
	}
	return d.tellPrimaryHost(ctx, a, order{Kind: link.OrderReset, Guest: name, Operator: orOperator(operator)})
}

// CheckDump says why a guest's memory can't be written to a file.
func (d *Daemon) CheckDump(name, path string) (pact.Assignment, error) {
	a, err := d.running(name)
	if err == nil && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
		err = fmt.Errorf("%w: %q is no clean absolute path; the file is written on the primary's host", ErrRefused, path)
	}
	return a, err
}

// Dump has the memory of a guest that stands still after its death written to a new file on its primary's host.
// It does not wait for it: the primary's status tells.
func (d *Daemon) Dump(ctx context.Context, name, path, operator string) error {
	a, err := d.CheckDump(name, path)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, name, "dump", map[string]any{"path": path, "host": a.Primary.Host}); err != nil {
		return err
	}
	return d.tellPrimaryHost(ctx, a, order{Kind: link.OrderDump, Guest: name, Path: path, Operator: orOperator(operator)})
}

func (d *Daemon) tellPrimaryHost(ctx context.Context, a pact.Assignment, o order) error {
	if err := d.tellHost(ctx, a.Primary.Host, o); err != nil {
		return fmt.Errorf("give the order to %s: %w", a.Primary.Host, err)
	}
	return nil
}
