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

// besideClients has something measured on a stage while clients work, and none of their connections may break.
func (b *bench) besideClients(ctx context.Context, connections int, prefix string, measure func(*demo.Stage, *history.Recorder) error) (err error) {
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
		Think: time.Millisecond, Connections: connections, Prefix: prefix, Seed: 1,
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(working, 0) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	if err := measure(s, recorder); err != nil {
		return err
	}
	if n := w.Resets(); n > 0 {
		return fmt.Errorf("%d connections were reset: %v", n, w.Failures())
	}
	return nil
}
