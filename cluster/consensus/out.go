package consensus

import "github.com/pollux-ha/pollux/cluster/pact"

// Out lists the hosts that are kept out, as this member's own log has it.
func (n *Node) Out() []pact.Out { return n.fsm.out() }

func (f *fsm) out() []pact.Out {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.pact.Out()
}
