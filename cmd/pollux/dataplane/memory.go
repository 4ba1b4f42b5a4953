package dataplane

import (
	"errors"
	"math/rand/v2"
	"time"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/link"
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

// injectTries is how many pages are looked at for one that is as ordered.
const injectTries = 1000

// inject has a page of this copy's memory break, by an operator's order. The event log has the order already.
func (p *process) inject(d *link.Damage) {
	if d == nil {
		p.log.Warn("an order to damage nothing")
		return
	}
	how := vmm.Injection{Clean: d.State == link.PageClean, Dirty: d.State == link.PageDirty, Quiet: d.Quiet}
	page, err := d.Page, error(nil)
	if page != link.AnyPage {
		err = p.machine.InjectDamage(page, how)
	} else {
		for range injectTries {
			if page, err = p.anyPage(); err != nil {
				break
			}
			if err = p.machine.InjectDamage(page, how); !errors.Is(err, vmm.ErrPageDirty) {
				break
			}
		}
	}
	if err != nil {
		(*host)(p).Refused(link.OrderDamage + ": " + err.Error())
		return
	}
	p.events.Note(audit.Operator, map[string]any{"order": link.OrderDamage, "page": page, "outcome": "damaged"})
}

var errNoPage = errors.New("the guest uses no memory yet")

// anyPage is a page that the guest uses.
func (p *process) anyPage() (int, error) {
	ram := p.machine.RAM()
	from := rand.IntN(ram.Pages())
	for _, at := range []int{from, 0} {
		start, end, err := ram.Populated(at)
		if err != nil {
			return 0, err
		}
		if start < end {
			return max(start, min(from, end-1)), nil
		}
	}
	return 0, errNoPage
}
