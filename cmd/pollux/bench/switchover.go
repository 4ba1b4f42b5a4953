package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/tests/history"
)

const (
	switchTarget  = 10 // milliseconds
	switchClients = 6
)

// switchovers measures the gap that clients see when the roles are exchanged (P4s).
func (b *bench) switchovers(ctx context.Context) (err error) {
	s, err := demo.NewStage(ctx, b.tell)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(err != nil)) }()
	working, stop := context.WithCancel(ctx)
	defer stop()
	recorder := history.NewRecorder()
	w := &history.Workload{
		Dial: func(ctx context.Context) (net.Conn, error) { return s.Dial(ctx) }, Recorder: recorder,
		Think: time.Millisecond, Connections: switchClients, Prefix: "switch", Seed: 1,
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(working, 0) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()

	var gaps, usual samples
	defer func() {
		b.add(row("P4s", fmt.Sprintf("%d clients", switchClients), "ms", gaps).atMost(switchTarget).
			noted("the longest time between two replies on one connection around a switchover, what the client pauses between them included; "+
				"with nothing happening for as long it is %s ms (p50), %s ms (p99)", number(round(usual.quantiles().p50)), number(round(usual.quantiles().p99))))
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
		// As long again, with nothing happening.
		if err := wait(ctx, max(end-begin, 200*time.Millisecond)); err != nil {
			return err
		}
		usual.addTime(recorder.LongestWait(end, recorder.Now()))
	}
	if n := w.Resets(); n > 0 {
		return fmt.Errorf("%d connections were reset: %v", n, w.Failures())
	}
	return nil
}
