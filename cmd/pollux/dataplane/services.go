package dataplane

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/cluster/agent"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/vmm/legacy"
)

var errNotHere = errors.New("the guest does not run here")

// listenAgent makes the socket of the guest's agent. It answers only while the guest runs here.
func (p *process) listenAgent() (err error) {
	if p.cfg.AgentSocket == "" {
		return nil
	}
	p.agent, err = agent.Listen(p.cfg.AgentSocket, func(b []byte) (int, error) {
		if p.currentEngine() == nil {
			return 0, errNotHere
		}
		return p.machine.AgentInput(b)
	})
	return err
}

// agentSaid passes on what the guest's agent said, now that it may be heard.
func (p *process) agentSaid(b []byte) {
	if p.agent != nil {
		p.agent.Output(b)
	}
}

// setBalloon asks the guest to keep only so much of its memory.
func (p *process) setBalloon(keep uint64) {
	size := p.cfg.Spec.MemoryBytes
	if err := p.machine.SetBalloon(size - min(keep, size)); err != nil {
		p.log.Error("the balloon is not moved", zap.Error(err))
		p.change(err.Error())
	}
}

// balloon is the guest's memory as its balloon tells of it, nil where it has no driver for one and nobody
// wants it smaller.
func (p *process) balloon() *link.Balloon {
	s := p.machine.Balloon()
	if !s.Driver && s.Target == 0 {
		return nil
	}
	size := p.cfg.Spec.MemoryBytes
	return &link.Balloon{
		Driver: s.Driver, Target: size - min(s.Target, size), Current: size - min(s.Actual, size), Discarded: s.Discarded,
		Total: s.Stats.Total, Free: s.Stats.Free, Available: s.Stats.Available, Caches: s.Stats.Caches,
	}
}

// generation is the VM generation ID with which a guest boots. The pact knows what it depends on: which
// guest of which cluster it is (Created tells it from an earlier one of its name, or a copy in another
// cluster), and the term of the last start from a disk copy that was not known to be current (Rewound),
// which begins another life of the same guest. All else keeps it: a takeover and a switchover, for it is part
// of the machine's state; a restart of the guest; a plain cold start, from the disk that went on last. A disk
// file that is copied behind Pollux's back and put under the same guest is not seen.
func generation(cluster string, a pact.Assignment) (id legacy.GenerationID) {
	h := sha256.New()
	for _, s := range []string{"pollux vm generation", cluster, a.Guest} {
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(s))))
		h.Write([]byte(s))
	}
	h.Write(binary.LittleEndian.AppendUint64(nil, a.Created))
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(a.Rewound)))
	copy(id[:], h.Sum(nil))
	return id
}
