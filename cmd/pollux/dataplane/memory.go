package dataplane

import (
	"time"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/vmm"
)

// memoryFault takes a page of guest memory that the hardware can't read any more.
func (p *process) memoryFault(f vmm.MemoryFault) {
	p.events.Note(audit.Fault, map[string]any{"what": "memory", "page": f.Page, "gpa": f.GPA, "vcpu": f.VCPU, "optional": f.Optional})
	if e := p.currentEngine(); e != nil {
		e.Damaged(f)
	} else {
		p.side.LosePage(uint32(f.Page))
	}
	p.change("")
}

// Healed notes a page that can be read again.
func (h *host) Healed(page int, took time.Duration) {
	p := (*process)(h)
	p.events.Note(audit.Heal, map[string]any{"what": "memory", "page": page, "us": took.Microseconds()})
	p.change("")
}

// ReplicaLost notes what the replica has asked for again.
func (h *host) ReplicaLost(pages []uint32, differs bool) {
	p := (*process)(h)
	why := "damaged"
	if differs {
		why = "differs"
	}
	p.events.Note(audit.Heal, map[string]any{"what": "replica-memory", "pages": pages, "reason": why})
	p.change("")
}
