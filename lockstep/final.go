package lockstep

import (
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// Final is the epoch after which this side's vCPUs have stood still: what a primary holds, beside its
// memory and disks, when a switchover makes it the replica.
type Final struct {
	Epoch    pact.Epoch
	Digest   checkpoint.Digest // of the stream's chain, as the replica has acknowledged it
	State    []byte            // for Machine.LoadState
	Captured time.Duration     // when, on the clock of Config.Now
	acked    bool
}

// Final returns the final epoch of an Engine that has ended with core.Exchanged.
func (e *Engine) Final() (Final, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.final, e.over && e.final.acked
}

// keepFinal notes the captured final epoch; e.mu is held. Its buffers are used again, so the state is copied.
func (e *Engine) keepFinal(ep *epoch) {
	e.final = Final{Epoch: ep.Number, State: append([]byte(nil), ep.State...), Captured: ep.captured}
}
