package lockstep

import (
	"slices"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
)

// The phases of an epoch, in the names of link.Status.
const (
	phaseStop = iota
	phaseHarvest
	phaseCopy
	phaseState
	phaseClear
	phaseResume // what this package adds to the pause
	phasePause
	phaseEncode
	phaseSend
	phaseAck     // from the last byte sent
	phaseRelease // from the pause to the acknowledgement that releases the epoch's output
	phaseHeal    // of a damaged page, from its discovery until it can be read again
	phases
)

var phaseNames = [phases]string{"stop", "harvest", "copy", "state", "clear", "resume", "pause", "encode", "send", "ack", "release", "heal"}

// samples is how many of the newest epochs a summary speaks of.
const samples = 1024

// rolling keeps the newest samples of one phase.
type rolling struct {
	ring []time.Duration
	at   int
}

func (r *rolling) add(d time.Duration) {
	if len(r.ring) < samples {
		r.ring = append(r.ring, d)
		return
	}
	r.ring[r.at] = d
	r.at = (r.at + 1) % samples
}

func (r *rolling) summary() link.Summary {
	if len(r.ring) == 0 {
		return link.Summary{}
	}
	s := slices.Clone(r.ring)
	slices.Sort(s)
	at := func(q float64) float64 {
		i := int(q * float64(len(s)-1))
		return float64(s[i].Nanoseconds()) / 1e3
	}
	return link.Summary{P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1), Samples: len(s)}
}

// counters count from the Engine's start.
type counters struct {
	epochs, dirtyPages, wireBytes, framesReleased, heals, resent, scrubbed, diverged uint64
	phase                                                                            [phases]rolling
}

func (c *counters) add(phase int, d time.Duration) { c.phase[phase].add(d) }

func (c *counters) timings() map[string]link.Summary {
	m := make(map[string]link.Summary, phases)
	for i := range c.phase {
		if s := c.phase[i].summary(); s.Samples > 0 {
			m[phaseNames[i]] = s
		}
	}
	return m
}
