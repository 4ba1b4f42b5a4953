package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
	"github.com/pollux-ha/pollux/console"
)

// How long a thing may take before the demo gives it up. They decide nothing but when to stop waiting.
const (
	takeoverPatience  = 60 * time.Second
	protectedPatience = 120 * time.Second
)

// strike hits a host with a fault, waits until clients are served again, repairs the host and waits
// until the guest is protected again. What happened is in the Strike, also where there is an error.
func (r *run) strike(ctx context.Context, round int, fault Fault, victim *node) (Strike, error) {
	s := Strike{Round: round, Fault: fault, Host: victim.Name}
	err := r.play(ctx, &s, fault, victim)
	if err != nil {
		s.Error = err.Error()
	}
	return s, err
}

func (r *run) play(ctx context.Context, s *Strike, fault Fault, victim *node) error {
	before := r.monitor.now()
	if before == nil {
		return errors.New("no daemon has told of the guest yet")
	}
	s.State, s.PrimaryBefore, s.TermBefore = before.State, before.Primary, uint64(before.Term)
	s.HitPrimary = before.Primary == victim.Name
	switch {
	case s.HitPrimary:
		s.Victim = VictimPrimary
	case victim.role == "witness":
		s.Victim = VictimWitness
	default:
		s.Victim = VictimReplica
	}
	asking, cancel := context.WithTimeout(ctx, time.Second)
	if status, err := r.cluster.witness.client().Status(asking); err == nil {
		s.RaftLeader = status.Leader
	}
	cancel()

	begin := r.recorder.Now()
	cut, err := r.harm(ctx, fault, victim)
	if err != nil {
		return err
	}
	s.Variant = string(cut)
	done := r.recorder.Now()
	s.FaultMs = milliseconds(done - begin)

	// What the clients see.
	waiting, cancel := context.WithTimeout(ctx, takeoverPatience)
	defer cancel()
	if err := r.recorder.AwaitReplies(waiting, done, 1); err != nil {
		return fmt.Errorf("no client has got a reply for %v after the fault (%w)", takeoverPatience, context.Cause(waiting))
	}
	replied := r.recorder.Now()
	s.TakeoverMs = milliseconds(r.recorder.LongestSilence(begin, replied).End - begin)
	s.NewRequestMs = milliseconds(replied - begin)

	// What the API says.
	after, err := r.monitor.await(waiting, "the outcome of the fault was known", func(g *console.Guest) bool {
		switch {
		case fault == Daemon || victim.role == "witness":
			return true // it is no part of the data's way
		case fault == Link && before.State == "protected":
			return g.Term > before.Term // both hosts are alive, and either may go on
		case fault == Link:
			return true
		}
		return g.Primary != victim.Name // whoever lost the primary must have taken the guest over
	})
	if err != nil {
		return err
	}
	if (fault == Daemon || victim.role == "witness") && (after.Term != before.Term || after.Primary != before.Primary) {
		return fmt.Errorf("the guest noticed: term %d became %d, primary %s became %s", before.Term, after.Term, before.Primary, after.Primary)
	}
	s.SeenMs = milliseconds(r.recorder.Now() - begin)
	s.PrimaryAfter, s.TermAfter = after.Primary, uint64(after.Term)

	if r.afterTakeover != nil {
		if err := r.afterTakeover(ctx, s); err != nil {
			return err
		}
	}
	// The damage lasts a while longer, so that repairs come at any moment of what follows.
	r.pause(ctx, 0, time.Second)
	repaired := r.recorder.Now()
	if err := r.repair(fault, victim); err != nil {
		return err
	}
	if r.afterRepair != nil {
		if err := r.afterRepair(ctx, s); err != nil {
			return err
		}
	}
	again, cancel := context.WithTimeout(ctx, protectedPatience)
	defer cancel()
	g, err := r.monitor.await(again, "the guest was protected again", protected)
	if err != nil {
		return err
	}
	if err := r.cluster.await(again, r.cluster.hosts[0], "to have three voters again", allVote); err != nil {
		return err
	}
	s.ProtectedAgain, s.ProtectedAgainMs = true, milliseconds(r.recorder.Now()-repaired)
	gap := r.recorder.LongestGap(begin, r.recorder.Now())
	s.GapMs, s.GapAtMs = milliseconds(gap.Duration()), milliseconds(gap.Begin-begin)
	s.TermAfter = uint64(g.Term)
	if p := primary(g); p != nil && s.HitPrimary {
		for _, phase := range []string{"detect", "decide", "activate", "announce"} {
			if t, ok := p.TimingsUs[phase]; ok {
				if s.PhasesUs == nil {
					s.PhasesUs = make(map[string]float64)
				}
				s.PhasesUs[phase] = t.Max
			}
		}
	}
	// The first reply doesn't say that all clients go on.
	if err := r.recorder.AwaitReplies(again, r.recorder.Now(), clients); err != nil {
		return fmt.Errorf("not every client gets replies again: %w", err)
	}
	return r.loadFailure()
}

// harm does it, and returns once it is done.
func (r *run) harm(ctx context.Context, fault Fault, victim *node) (lab.Cut, error) {
	switch fault {
	case Kill:
		pid := 0
		for _, p := range r.monitor.now().Processes {
			// A predecessor that is on its way out may be there as well.
			if p.Host == victim.Name && (pid == 0 || p.Status != nil && p.Status.Role != link.RoleLoser) {
				pid = p.PID
			}
		}
		if pid == 0 {
			return "", fmt.Errorf("host %s has no process of the guest to be killed", victim.Name)
		}
		return "", victim.Kill(ctx, pid)
	case Power:
		r.monitor.setDown(victim.Name, true)
		// The dead send no resets: first the cables fall silent.
		if err := victim.Cut(lab.Silent); err != nil {
			return "", err
		}
		return "", victim.PowerOff()
	case Hang:
		r.monitor.setDown(victim.Name, true)
		return "", victim.Freeze(ctx)
	case Link:
		cut := r.chooseCut()
		return cut, victim.Cut(cut, lab.Replication)
	case Daemon:
		r.monitor.setDown(victim.Name, true)
		return "", victim.killDaemon(ctx)
	case Isolate:
		r.monitor.setDown(victim.Name, true)
		cut := r.chooseCut()
		return cut, victim.Cut(cut)
	case Memory:
		q := console.FaultRequest{Fault: "memory", State: link.PageDirty, Confirm: guestName, Operator: "demo"}
		if r.monitor.now().Primary != victim.Name {
			q.State, q.Copy = "", "replica"
		}
		_, err := victim.client().Fault(ctx, guestName, q)
		return "", err
	}
	return "", fmt.Errorf("unknown fault %q", fault)
}

// chooseCut decides how a cable is cut.
func (r *run) chooseCut() lab.Cut {
	return []lab.Cut{lab.Silent, lab.Unplugged}[r.random.IntN(2)]
}

// repair undoes the harm.
func (r *run) repair(fault Fault, victim *node) error {
	defer r.monitor.setDown(victim.Name, false)
	switch fault {
	case Power:
		if err := victim.Mend(); err != nil {
			return err
		}
		return victim.start()
	case Daemon:
		return victim.start()
	case Hang:
		return victim.Thaw()
	case Link:
		return victim.Mend(lab.Replication)
	case Isolate:
		return victim.Mend()
	}
	return nil // a killed process is the daemon's business
}
