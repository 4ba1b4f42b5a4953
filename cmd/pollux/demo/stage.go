package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
	"github.com/pollux-ha/pollux/console"
)

// Stage is the demo's cluster with its guest, for whoever wants to do something else with it than the
// demo does. It lives in a session of its own.
type Stage struct {
	Lab     *lab.Lab
	dir     *lab.Dir
	cluster *cluster
	monitor *monitor
	stop    context.CancelFunc
	over    chan struct{}
}

// GuestAddress is where the guest of a Stage serves the Redis protocol.
const GuestAddress = guestAddress

// NewStage sets a cluster up and waits until its guest is protected. tell hears of every step.
func NewStage(ctx context.Context, tell func(format string, a ...any)) (_ *Stage, err error) {
	s := &Stage{over: make(chan struct{})}
	if s.dir, err = lab.NewDir(""); err != nil {
		return nil, err
	}
	if s.Lab, err = lab.New(s.dir.Path); err != nil {
		return nil, errors.Join(err, s.dir.Remove())
	}
	asking, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(true))
		}
	}()
	if s.cluster, err = newCluster(s.Lab, Options{}); err != nil {
		close(s.over)
		return nil, err
	}
	s.monitor = newMonitor(s.cluster)
	go func() {
		defer close(s.over)
		s.monitor.run(asking)
	}()
	if err := s.cluster.found(ctx, tell); err != nil {
		return nil, fmt.Errorf("found the cluster: %w", err)
	}
	if err := s.cluster.createGuest(ctx); err != nil {
		return nil, fmt.Errorf("create the guest: %w", err)
	}
	_, err = s.AwaitProtected(ctx)
	return s, err
}

// Close ends everything. With keep the logs stay behind, and an error says where.
func (s *Stage) Close(keep bool) error {
	s.stop()
	<-s.over
	err := s.Lab.Close()
	if !keep {
		return errors.Join(err, s.dir.Remove())
	}
	kept, failed := s.dir.Keep()
	return errors.Join(err, failed, fmt.Errorf("configurations and logs are kept in %s", kept))
}

// Dial opens a connection to the guest, as a client on the LAN.
func (s *Stage) Dial(ctx context.Context) (net.Conn, error) { return dialPatiently(ctx, s.Lab) }

// AwaitProtected waits until the guest is protected.
func (s *Stage) AwaitProtected(ctx context.Context) (*console.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, protectedPatience)
	defer cancel()
	return s.monitor.await(ctx, "the guest was protected", protected)
}

// Primary is what the primary's process said last; nil: nothing.
func (s *Stage) Primary() *link.Status {
	if g := s.monitor.now(); g != nil {
		return primary(g)
	}
	return nil
}

// Fresh waits for an answer of the daemons to a question that is asked from now on.
func (s *Stage) Fresh(ctx context.Context) (*console.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, takeoverPatience)
	defer cancel()
	return s.monitor.await(ctx, "a daemon answered", func(*console.Guest) bool { return true })
}

// RaftTerm is the cluster's, as the witness knows it.
func (s *Stage) RaftTerm(ctx context.Context) (uint64, error) {
	status, err := s.cluster.witness.client().Status(ctx)
	if err != nil {
		return 0, err
	}
	return status.RaftTerm, nil
}

// Separate takes the power from the replica's host and returns that host's name once the guest goes on alone.
func (s *Stage) Separate(ctx context.Context) (string, error) {
	g, err := s.AwaitProtected(ctx)
	if err != nil {
		return "", err
	}
	n, err := s.cluster.host(g.Replica)
	if err != nil {
		return "", err
	}
	s.monitor.setDown(n.Name, true)
	if err := n.PowerOff(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, takeoverPatience)
	defer cancel()
	_, err = s.monitor.await(ctx, "the guest went on alone", func(now *console.Guest) bool { return now.State == "solo" && now.Primary == g.Primary })
	return n.Name, err
}

// Reunite gives a host its power back and waits until the guest is protected again.
func (s *Stage) Reunite(ctx context.Context, host string) error {
	n, err := s.cluster.host(host)
	if err != nil {
		return err
	}
	s.monitor.setDown(host, false)
	if err := n.start(); err != nil {
		return err
	}
	_, err = s.AwaitProtected(ctx)
	return err
}

// protectedOn waits until the guest is protected, and returns its primary's host too.
func (s *Stage) protectedOn(ctx context.Context) (*console.Guest, *node, error) {
	g, err := s.AwaitProtected(ctx)
	if err != nil {
		return nil, nil, err
	}
	n, err := s.cluster.host(g.Primary)
	return g, n, err
}

// Switchover exchanges the roles and returns when that is done.
func (s *Stage) Switchover(ctx context.Context) error {
	g, n, err := s.protectedOn(ctx)
	if err != nil {
		return err
	}
	if _, err := n.client().Switchover(ctx, guestName, console.SwitchoverRequest{Operator: "pollux"}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, protectedPatience)
	defer cancel()
	_, err = s.monitor.await(ctx, "the roles were exchanged", func(now *console.Guest) bool { return protected(now) && now.Primary == g.Replica })
	return err
}

// Damage injects a fault into the guest.
func (s *Stage) Damage(ctx context.Context, q console.FaultRequest) error {
	_, n, err := s.protectedOn(ctx)
	if err != nil {
		return err
	}
	q.Confirm, q.Operator = guestName, "pollux"
	_, err = n.client().Fault(ctx, guestName, q)
	return err
}

// Await waits until the primary's process says something.
func (s *Stage) Await(ctx context.Context, what string, fn func(*link.Status) bool) error {
	_, err := s.monitor.await(ctx, what, func(g *console.Guest) bool { p := primary(g); return p != nil && fn(p) })
	return err
}

// CPUTime is the processor time that the guest's data-plane processes have used so far on a host,
// the guest's own included. What threads have used that are gone is not in it.
func (s *Stage) CPUTime(host string) (time.Duration, error) {
	n, err := s.cluster.host(host)
	if err != nil {
		return 0, err
	}
	processes, err := n.Processes()
	if err != nil {
		return 0, err
	}
	var total time.Duration
	for _, p := range processes {
		if !slices.Contains(p.Argv, "dataplane") {
			continue
		}
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.PID))
		if err != nil {
			return 0, fmt.Errorf("list the threads of process %d: %w", p.PID, err)
		}
		for _, path := range threads {
			b, err := os.ReadFile(path)
			if err != nil {
				continue // gone
			}
			// Nanoseconds on a processor, nanoseconds waiting for one, how often (Documentation/scheduler/sched-stats.rst).
			var on time.Duration
			if _, err := fmt.Sscan(string(b), &on); err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			total += on
		}
	}
	return total, nil
}
