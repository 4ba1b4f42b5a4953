package sim

// event is something that a guest did. A guest's whole state, in memory and on disk alike, is the chain of
// all that it has done: its last event.
type event struct {
	parent *event
	depth  int
	output bool // seen outside, if it gets out
}

// contains says whether a guest in state e has done o. Every guest has done nothing at all.
func (e *event) contains(o *event) bool {
	if o == nil {
		return true
	}
	for e != nil && e.depth > o.depth {
		e = e.parent
	}
	return e == o
}

func (e *event) number() int {
	if e == nil {
		return 0
	}
	return e.depth
}

// then is the guest's state after one more event.
func (e *event) then(output bool) *event {
	return &event{parent: e, depth: e.number() + 1, output: output}
}
