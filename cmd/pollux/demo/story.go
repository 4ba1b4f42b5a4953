package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/console"
)

// story is the demo for people: a host dies, its guest doesn't.
func (r *run) story(ctx context.Context, result *Result) error {
	r.tell("%d checking clients, each with one TCP connection, and redis-benchmark with 50 more, use the guest all the time", clients)
	begin := r.recorder.Now()
	if err := r.watch(ctx, 5); err != nil {
		return err
	}
	result.ProtectedP50Ms = milliseconds(r.recorder.Latency(begin, r.recorder.Now()).P50)

	name := r.monitor.now().Primary
	victim, err := r.cluster.host(name)
	if err != nil {
		return err
	}
	twin := r.cluster.other(victim)
	r.afterTakeover = func(ctx context.Context, s *Strike) error {
		r.tell("host %s has taken over: the first reply came %.1f ms after the power cut, on the connections that were open", s.PrimaryAfter, s.TakeoverMs)
		begin := r.recorder.Now()
		if err := r.watch(ctx, 3); err != nil {
			return err
		}
		result.SoloP50Ms = milliseconds(r.recorder.Latency(begin, r.recorder.Now()).P50)
		r.tell("host %s comes back", victim.Name)
		return nil
	}
	r.tell("host %s, which runs the guest, loses its power: its cables fall silent and all its processes are gone", victim.Name)
	s, err := r.strike(ctx, 1, Power, victim)
	result.Strikes = append(result.Strikes, s)
	if err != nil {
		return err
	}
	r.tell("protected again, %.1f s after host %s came back: it holds the copy now", s.ProtectedAgainMs/1000, victim.Name)
	if err := r.watch(ctx, 3); err != nil {
		return err
	}

	r.tell("pollux guest switchover %s: from %s back to %s", guestName, twin.Name, victim.Name)
	begin = r.recorder.Now()
	if _, err := twin.command(ctx, "", "guest", "switchover", guestName); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, protectedPatience)
	defer cancel()
	g, err := r.monitor.await(waiting, "the roles were exchanged", func(g *console.Guest) bool { return protected(g) && g.Primary == victim.Name })
	if err != nil {
		return err
	}
	if err := r.recorder.AwaitReplies(waiting, r.recorder.Now(), clients); err != nil {
		return fmt.Errorf("not every client gets replies after the switchover: %w", err)
	}
	result.SwitchoverGapMs = milliseconds(r.recorder.LongestWait(begin, r.recorder.Now()))
	r.tell("it runs on %s, its copy is on %s; the longest gap that a client saw: %.1f ms", g.Primary, g.Replica, result.SwitchoverGapMs)
	if err := r.watch(ctx, 3); err != nil {
		return err
	}
	result.Rounds = 1
	r.tell("every key is read once more, and the whole history checked")
	return nil
}

// watch tells once a second what goes on.
func (r *run) watch(ctx context.Context, seconds int) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	epochs, wire, dirty := r.monitor.totals()
	last := r.recorder.Now()
	for range seconds {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		now := r.recorder.Now()
		e, w, d := r.monitor.totals()
		l := r.recorder.Latency(last, now)
		text := fmt.Sprintf("   %5d replies/s in %.2f ms (p50), %.2f ms (p99), longest gap %.1f ms", l.Replies, milliseconds(l.P50), milliseconds(l.P99), milliseconds(r.recorder.LongestWait(last, now)))
		if g := r.monitor.now(); g != nil {
			text += " | " + g.State
		}
		if n := e - epochs; n > 0 && e > epochs {
			text += fmt.Sprintf(", %d epochs/s of %.0f pages, %.1f MB/s to the twin", n, float64(d-dirty)/4096/float64(n), float64(w-wire)/1e6)
		}
		r.tell("%s", text)
		epochs, wire, dirty, last = e, w, d, now
		if err := r.loadFailure(); err != nil {
			return err
		}
	}
	return nil
}
