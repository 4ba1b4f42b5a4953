package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/console"
)

// monitorInterval is how often the monitor asks.
const monitorInterval = 100 * time.Millisecond

// answerTime bounds one question. A daemon may itself wait for another one that has just died.
const answerTime = 3 * time.Second

// monitor asks the daemons about the guest, again and again, and remembers what they said.
type monitor struct {
	cluster *cluster

	mu      sync.Mutex
	guest   *console.Guest          // the newest answer
	asked   time.Time               // when that question was put
	changed chan struct{}           // closed and replaced with every answer
	seen    map[string]*link.Status // by incarnation: what each process last said as a primary
	down    map[string]bool         // machines that must not be asked: they can't answer
}

func newMonitor(c *cluster) *monitor {
	return &monitor{cluster: c, changed: make(chan struct{}), seen: make(map[string]*link.Status), down: make(map[string]bool)}
}

// run asks until ctx ends.
func (m *monitor) run(ctx context.Context) {
	tick := time.NewTicker(monitorInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		asked := time.Now()
		if g := m.ask(ctx); g != nil {
			m.take(g, asked)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// ask asks all hosts at once, or the witness where none of them answers, and returns the answer that
// knows most.
func (m *monitor) ask(ctx context.Context) *console.Guest {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answers := make(chan *console.Guest)
	asked := 0
	for _, n := range m.cluster.hosts {
		if m.isDown(n.Name) {
			continue
		}
		asked++
		go func() {
			g, _ := n.client().Guest(ctx, guestName)
			answers <- g
		}()
	}
	var best *console.Guest
	for range asked {
		// A host that has just come back may be behind.
		if g := <-answers; g != nil && (best == nil || g.Term > best.Term || g.Term == best.Term && len(g.Processes) > len(best.Processes)) {
			best = g
		}
	}
	if best == nil && !m.isDown(m.cluster.witness.Name) {
		best, _ = m.cluster.witness.client().Guest(ctx, guestName)
	}
	return best
}

func (m *monitor) take(g *console.Guest, asked time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest != nil && g.Term < m.guest.Term {
		return // from a host that is behind
	}
	m.guest, m.asked = g, asked
	for _, p := range g.Processes {
		if p.Status != nil && p.Status.Role == link.RolePrimary {
			m.seen[p.Incarnation] = p.Status
		}
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

// setDown has the monitor ask a machine no more, or again.
func (m *monitor) setDown(name string, down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down[name] = down
}

func (m *monitor) isDown(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.down[name]
}

// assume overrides the state of the newest answer: what has just been ordered no daemon has told yet.
func (m *monitor) assume(state string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guest != nil {
		g := *m.guest
		g.State = state
		m.guest = &g
	}
}

// now is the newest answer; nil: none yet.
func (m *monitor) now() *console.Guest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guest
}

// await waits until the guest is as wanted, by an answer to a question asked from now on.
func (m *monitor) await(ctx context.Context, what string, wanted func(*console.Guest) bool) (*console.Guest, error) {
	begin := time.Now()
	for {
		m.mu.Lock()
		g, asked, changed := m.guest, m.asked, m.changed
		m.mu.Unlock()
		if g != nil && asked.After(begin) && wanted(g) {
			return g, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			state := "nobody answers"
			if g != nil {
				state = fmt.Sprintf("%s, primary %s, replica %s, term %d: %s", g.State, g.Primary, g.Replica, g.Term, g.Detail)
			}
			return g, fmt.Errorf("waited in vain until %s (%w); the guest is: %s", what, context.Cause(ctx), state)
		}
	}
}

// protected says whether the guest is protected between two different hosts.
func protected(g *console.Guest) bool {
	return g.State == "protected" && g.Replica != "" && g.Replica != g.Primary
}

// primary is what the primary's process last said; nil: nothing.
func primary(g *console.Guest) *link.Status {
	for _, p := range g.Processes {
		if p.Status != nil && p.Status.Role == link.RolePrimary && p.Host == g.Primary {
			return p.Status
		}
	}
	return nil
}

// totals sums up what all primaries have said. A process that died has done a little more than it
// last said.
func (m *monitor) totals() (epochs, wireBytes, dirtyBytes uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.seen {
		epochs += s.Epochs
		wireBytes += s.WireBytes
		dirtyBytes += s.DirtyBytes
	}
	return
}
