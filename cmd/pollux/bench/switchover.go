package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/tests/history"
)

const (
	switchTarget  = 10 // milliseconds
	switchClients = 6
)

// switchovers measures the gap that clients see when the roles are exchanged (P4s).
func (b *bench) switchovers(ctx context.Context) error {
	return b.besideClients(ctx, switchClients, "switch", func(s *demo.Stage, recorder *history.Recorder) error {
		return b.switchover(ctx, s, recorder)
	})
}

func (b *bench) switchover(ctx context.Context, s *demo.Stage, recorder *history.Recorder) error {
	var gaps, usual, silences samples
	defer func() {
		q := usual.quantiles()
		b.add(row("P4s", fmt.Sprintf("%d clients, the longest gap of any of them", switchClients), "ms", gaps).atMost(switchTarget).
			noted("the longest time between two replies on one connection around a switchover, what the client pauses between them included; "+
				"with nothing happening for as long it is %s ms (p50), %s ms (p99). A client whose request was lost on the way sends it again after 200 ms",
				number(round(q.p50)), number(round(q.p99))))
		b.add(row("P4s", fmt.Sprintf("%d clients, no reply to any of them", switchClients), "ms", silences).
			noted("the longest time around a switchover in which no client got a reply: how long the guest could not be reached"))
	}()
	for range b.count(20, 5) {
		if err := recorder.AwaitReplies(ctx, recorder.Now(), switchClients); err != nil {
			return err
		}
		begin := recorder.Now()
		if err := s.Switchover(ctx); err != nil {
			return err
		}
		if err := recorder.AwaitReplies(ctx, recorder.Now(), switchClients); err != nil {
			return fmt.Errorf("not every client gets replies after the switchover: %w", err)
		}
		end := recorder.Now()
		gaps.addTime(recorder.LongestWait(begin, end))
		silences.addTime(recorder.LongestSilence(begin, end).Duration())
		// As long again, with nothing happening.
		if err := wait(ctx, max(end-begin, 200*time.Millisecond)); err != nil {
			return err
		}
		usual.addTime(recorder.LongestWait(end, recorder.Now()))
	}
	return nil
}
