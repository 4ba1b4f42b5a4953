package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
)

// takeover is a fault whose consequences are measured.
type takeover struct {
	fault  demo.Fault
	about  string
	target float64 // milliseconds
}

var takeovers = []takeover{
	{demo.Kill, "the process that runs the guest is killed", 30},
	{demo.Power, "the host loses its power", 150},
	{demo.Hang, "the host stands still", 150},
	{demo.Isolate, "the host is cut off from everyone", 150},
	{demo.Link, "the replication link is cut", 150},
	{demo.Memory, "a page of memory that is nowhere else is damaged, and the guest surrendered", 20},
}

// takeovers measures how long clients wait for a reply after a fault (P4). The demo plays the rounds,
// and has all that its clients saw checked.
func (b *bench) takeovers(ctx context.Context, t takeover) error {
	result, err := demo.Run(ctx, demo.Options{Fault: t.fault, Rounds: b.count(12, 3)}, b.progress)
	if result == nil {
		return err
	}
	for _, r := range takeoverRows(t, result) {
		b.add(r)
	}
	switch {
	case err != nil || result.Good():
	case result.Error != "":
		err = errors.New(result.Error)
	default:
		err = fmt.Errorf("the clients saw what they must not see, or not everything could be checked: %d acknowledged writes lost, %d connections reset, %d stale reads, history linearizable: %v, %v",
			result.LostWrites, result.Resets, result.StaleReads, result.Linearizable, result.Findings)
	}
	return errors.Join(err, context.Cause(ctx))
}

// takeoverRows sorts takeovers by what Raft had to do for them.
func takeoverRows(t takeover, result *demo.Result) []Row {
	type kind struct {
		name   string
		target bool
		took   samples
		split  phases
	}
	kinds := []*kind{
		{name: "leader on the witness", target: true, split: phases{}},
		{name: "leader on the other host", split: phases{}},
		{name: "with an election", split: phases{}},
	}
	for _, s := range result.Strikes {
		if !s.HitPrimary || s.TakeoverMs == 0 || s.Error != "" {
			continue
		}
		k := kinds[1]
		switch s.RaftLeader {
		case "w":
			k = kinds[0]
		case s.Host:
			// With only its link cut a leader stays one.
			if t.fault != demo.Link && t.fault != demo.Kill && t.fault != demo.Memory {
				k = kinds[2]
			}
		}
		k.took.add(s.TakeoverMs)
		rest := time.Duration(s.TakeoverMs * float64(time.Millisecond))
		for name, us := range s.PhasesUs {
			d := time.Duration(us * float64(time.Microsecond))
			k.split.add(name, d)
			rest -= d
		}
		if len(s.PhasesUs) > 0 {
			k.split.add("the rest", max(rest, 0))
		}
	}
	var rows []Row
	for _, k := range kinds {
		if len(k.took) == 0 && !k.target {
			continue
		}
		r := row("P4", t.about+", "+k.name, "ms", k.took).split(k.split).
			noted("from the fault to the first reply that a client got after it; seed %d, %d acknowledged writes, %d lost, %d connections reset; "+
				"the phase \"the rest\" is what the others leave: up to the fault's detection, and from the start to the first reply", result.Seed, result.Acknowledged, result.LostWrites, result.Resets)
		if k.target {
			r = r.atMost(t.target)
		}
		rows = append(rows, r)
	}
	return rows
}
