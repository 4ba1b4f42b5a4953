package sim

import "github.com/pollux-ha/pollux/cluster/pact"

// digest stands for that of a stream's chain up to an epoch.
type digest uint64

func (d digest) chain(n pact.Epoch, e *event) digest {
	h := uint64(d)*0x9e3779b97f4a7c15 + uint64(n)
	h ^= h >> 29
	h = (h + uint64(e.number())) * 0xbf58476d1ce4e5b9
	return digest(h ^ h>>32)
}

// What travels on a stream.
type (
	hello struct {
		term             pact.Term
		primary, replica pact.Party
		resume           bool
	}
	welcome struct {
		refused string
		last    pact.Epoch
		sum     digest
	}
	sent struct { // an epoch
		number         pact.Epoch
		term           pact.Term
		syncing, final bool
		before, sum    digest
		base, state    *event // it brings what happened between; whole: it completes a copy of everything
		whole          bool
		frames         []*event
	}
	ack struct {
		epoch pact.Epoch
		sum   digest
	}
	beat       struct{ term pact.Term }
	higherTerm struct{ term pact.Term }
	goodbye    struct{}
)
