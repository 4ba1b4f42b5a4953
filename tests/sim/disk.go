package sim

import (
	"github.com/pollux-ha/pollux/cluster/pact"
)

// disk is a host's copy of the guest's disk, with its mark. The mark is durable when its write is done, whole
// or not at all (a file that replaces another); what the guest writes is durable when it was flushed.
type disk struct {
	state   string // as in replica/mark: "", "current", "outdated", "inconsistent"
	term    pact.Term
	holds   *event
	durable *event   // of holds, what a power cut leaves for certain
	owner   *process // has the lock
	broken  bool     // every write fails: EIO, or no space
	torn    bool     // a power cut has taken what was not flushed
}

// flush makes a state durable that the disk has taken.
func (d *disk) flush(e *event) {
	if d.holds.contains(e) && e.number() > d.durable.number() {
		d.durable = e
	}
}

// powerLoss leaves what was durable, and of the rest as much as had come to the medium.
func (d *disk) powerLoss(w *World) {
	if !d.holds.contains(d.durable) {
		d.durable = common(d.holds, d.durable)
	}
	e := d.holds
	for n := w.rng.IntN(e.number() - d.durable.number() + 1); n > 0; n-- {
		e = e.parent
	}
	if e != d.holds {
		d.torn = true
	}
	d.holds, d.durable = e, e
}
