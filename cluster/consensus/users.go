package consensus

import (
	"context"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// ChangeAccess makes or removes a user of the API. Its errors are those of Propose.
func (n *Node) ChangeAccess(ctx context.Context, c access.Change) (pact.Verdict, error) {
	return n.submit(ctx, entry{Access: &c})
}

// Users returns the users of the API that this member's own log has led to, by name.
func (n *Node) Users() []access.User {
	n.fsm.mu.RLock()
	defer n.fsm.mu.RUnlock()
	return n.fsm.access.List()
}

// Who finds the user that a token belongs to.
func (n *Node) Who(t access.Token) (access.User, bool) {
	n.fsm.mu.RLock()
	defer n.fsm.mu.RUnlock()
	return n.fsm.access.Who(t)
}
