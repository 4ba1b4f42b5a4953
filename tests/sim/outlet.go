package sim

import "github.com/pollux-ha/pollux/cluster/pact"

// outlet is what becomes of output: lockstep's outputCommit.
type outlet struct {
	opened  bool
	current []*event // of the running epoch
	sealed  []sealed
	ready   []*event
}

type sealed struct {
	epoch pact.Epoch
	items []*event
}

func (o *outlet) put(e *event) (now bool) {
	if o.opened {
		if len(o.ready) == 0 {
			return true
		}
		o.ready = append(o.ready, e)
		return false
	}
	o.current = append(o.current, e)
	return false
}

func (o *outlet) seal(n pact.Epoch) []*event {
	if len(o.current) == 0 {
		return nil
	}
	items := o.current
	o.current = nil
	o.sealed = append(o.sealed, sealed{n, items})
	return items
}

func (o *outlet) hold() { o.opened = false }

func (o *outlet) open() {
	o.opened = true
	for _, s := range o.sealed {
		o.ready = append(o.ready, s.items...)
	}
	o.ready = append(o.ready, o.current...)
	o.sealed, o.current = nil, nil
}

func (o *outlet) release(upTo pact.Epoch) {
	for len(o.sealed) > 0 && o.sealed[0].epoch <= upTo {
		o.ready = append(o.ready, o.sealed[0].items...)
		o.sealed = o.sealed[1:]
	}
}

func (o *outlet) drop() {
	o.opened = false
	o.current, o.sealed, o.ready = nil, nil, nil
}
