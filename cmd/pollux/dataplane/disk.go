package dataplane

import (
	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm"
)

// diskError takes an access to a disk that failed under the guest. While a replica is entitled the guest
// never hears of it: the request stays in flight and the replica issues it again, on its own copy of the
// disk. A guest without one is told, as by any disk that fails.
func (p *process) diskError(e vmm.DiskError) (hold bool) {
	p.mu.Lock()
	engine, protected, first := p.engine, p.applied.Mode == pact.Protected, !p.diskFailed
	p.diskFailed = true
	p.mu.Unlock()
	hold = engine != nil && protected
	if first {
		p.events.Note(audit.Fault, map[string]any{"what": "disk", "reason": e.Error()})
	}
	if hold {
		go engine.Fault(e.Error()) // it may wait for the disk to drain, whose goroutine this is
	}
	return hold
}
