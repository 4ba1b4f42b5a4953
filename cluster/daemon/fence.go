package daemon

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/pact"
)

const (
	fencePoll = 500 * time.Millisecond
	// fenceLinger is how long a loser whose daemon answers may take to end: the daemon kills it after grace.
	fenceLinger = 2 * grace
	// fencePermit is how long the cluster is asked for permission: the loser's other guests must be taken over first.
	fencePermit = time.Minute
)

// power is one host's power: an agent.Device.
type power interface {
	Cut(ctx context.Context) error
	Cycle(ctx context.Context) (off bool, err error)
}

// loser is what is left of a primary whose guest was taken over.
type loser struct {
	guest string
	term  pact.Term // of the takeover
	party pact.Party
}

// fenceStage is how far a fencing has come. Stages are part of the API.
type fenceStage string

const (
	fenceWaiting  fenceStage = "waiting"    // whether the loser stops by itself
	fenceNeedless fenceStage = "not-needed" // it has
	fenceRefused  fenceStage = "refused"    // the cluster needs the host, or could not be asked
	fenceShooting fenceStage = "fencing"    // the agent is at work
	fenceDone     fenceStage = "off"        // confirmed by the agent
	fenceFailed   fenceStage = "failed"     // not confirmed
)

// FenceReport is what has become of the last fencing of a host by this one.
type FenceReport struct {
	Host   string    `json:"host"`
	Stage  string    `json:"stage"` // "waiting", "not-needed", "refused", "fencing", "off" or "failed"
	Guest  string    `json:"guest,omitempty"`
	Time   time.Time `json:"time"`
	Detail string    `json:"detail,omitempty"`
}

// fenceWorld is what a fencer does outside itself.
type fenceWorld interface {
	// holdouts says which of a host's losers still runs its guest, by the word of the host's daemon; "": none. An
	// error: there was no word.
	holdouts(ctx context.Context, host string, losers []loser) (string, error)
	// permit asks the cluster, and keeps the host out meanwhile; refused says why not.
	permit(ctx context.Context, host, reason string) (refused string, err error)
	// release ends that.
	release(ctx context.Context, host string) error
	// fenced tells of a stage, in the event log too.
	fenced(host string, stage fenceStage, l loser, detail string)
}

// fencer powers off hosts that have lost a guest and don't show that they have stopped it. It begins only after
// the takeover is committed, has the cluster's permission before it acts, and nothing waits for it.
type fencer struct {
	world    fenceWorld
	when     config.FenceWhen
	patience time.Duration
	devices  map[string]fenceDevice
	begin    func(func()) bool

	mu     sync.Mutex
	active map[string][]loser // by host
}

type fenceDevice struct {
	power
	reboot bool
}

func newFencer(world fenceWorld, when config.FenceWhen, patience time.Duration, devices map[string]fenceDevice, begin func(func()) bool) *fencer {
	return &fencer{world: world, when: when, patience: patience, devices: devices, begin: begin, active: map[string][]loser{}}
}

// lost is told that a guest was taken over by this host. It does not block.
func (f *fencer) lost(ctx context.Context, l loser) {
	host := l.party.Host
	device, ok := f.devices[host]
	if !ok || f.when != config.FenceAfterDecision {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active[host] = append(f.active[host], l)
	if len(f.active[host]) > 1 {
		return // it is being seen to
	}
	if !f.begin(func() { f.run(ctx, host, device) }) {
		delete(f.active, host)
	}
}

// losers are all that are known of on a host whose fencing is under way.
func (f *fencer) losers(host string) []loser {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.active[host])
}

// finished ends a host's fencing where nobody has been added since its losers were looked at.
func (f *fencer) finished(host string, seen int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.active[host]) > seen {
		return false
	}
	delete(f.active, host)
	return true
}

func (f *fencer) run(ctx context.Context, host string, device fenceDevice) {
	first := f.losers(host)[0]
	tell := func(stage fenceStage, detail string) { f.world.fenced(host, stage, first, detail) }
	tell(fenceWaiting, "")
	for ctx.Err() == nil {
		seen := len(f.losers(host))
		why, needed := f.needed(ctx, host)
		if !needed {
			if f.finished(host, seen) {
				tell(fenceNeedless, "its daemon says that it has stopped")
				return
			}
			continue // one more guest was taken over from it
		}
		if ctx.Err() != nil {
			return
		}
		f.shoot(ctx, host, device, why, tell)
		f.finished(host, math.MaxInt) // who was added meanwhile was on the same host
		return
	}
}

// needed waits for the losers to stop. Where they don't it says what they do instead: their daemon has been silent
// for the whole of patience, or it answers and they go on.
func (f *fencer) needed(ctx context.Context, host string) (why string, needed bool) {
	begun := time.Now()
	for heard := begun; ; {
		runs, err := f.world.holdouts(ctx, host, f.losers(host))
		limit := f.patience + fenceLinger
		switch {
		case err != nil:
			why = "its daemon does not answer: " + err.Error()
			if time.Since(heard) >= f.patience {
				return why, true
			}
		case runs == "":
			return "", false
		default:
			why, heard = runs, time.Now()
		}
		if time.Since(begun) >= limit || !sleep(ctx, fencePoll) {
			return why, true
		}
	}
}

func (f *fencer) shoot(ctx context.Context, host string, device fenceDevice, why string, tell func(fenceStage, string)) {
	for begun := time.Now(); ; {
		refused, err := f.world.permit(ctx, host, why)
		if err == nil && refused == "" {
			break
		}
		if time.Since(begun) >= fencePermit || !sleep(ctx, fencePoll) {
			if err != nil {
				refused = err.Error()
			}
			tell(fenceRefused, refused)
			return
		}
		if runs, err := f.world.holdouts(ctx, host, f.losers(host)); err == nil && runs == "" {
			tell(fenceNeedless, "its daemon says that it has stopped")
			return
		}
	}
	tell(fenceShooting, why)
	var off bool
	var err error
	if device.reboot {
		off, err = device.Cycle(ctx)
	} else {
		err = device.Cut(ctx)
		off = err == nil
	}
	switch {
	case !off:
		tell(fenceFailed, err.Error())
	case err != nil:
		tell(fenceDone, "it was off; on again it is not: "+err.Error())
	default:
		tell(fenceDone, "")
	}
	for f.world.release(ctx, host) != nil && sleep(ctx, fencePoll) {
	}
}

// sleep waits, and says that the context has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	pause(ctx, d)
	return ctx.Err() == nil
}
