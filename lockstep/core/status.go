package core

import "github.com/pollux-ha/pollux/cluster/pact"

// Term is the term of the newest assignment that was applied.
func (c *Core) Term() pact.Term { return c.a.Term }

// Assignment is the newest that was applied.
func (c *Core) Assignment() pact.Assignment { return c.a }

// Over reports that this process is not the primary any more.
func (c *Core) Over() bool { return c.over }

// Captured and Acked are the newest epochs of either kind.
func (c *Core) Captured() pact.Epoch { return c.captured }

// Acked is the newest epoch that the stream's replica has acknowledged.
func (c *Core) Acked() pact.Epoch { return c.acked }

// Gated reports that output waits for acknowledgements, so that an epoch's end is worth asking for.
func (c *Core) Gated() bool { return c.begun && !c.over && c.gated() }

// Asking reports that a question is open: Retry is due from time to time.
func (c *Core) Asking() bool { return c.begun && !c.over && c.asking }

// Mode names what the primary is doing, in the words of link.Status.
func (c *Core) Mode() string {
	switch {
	case !c.begun || c.over:
		return "stopped"
	case c.asked.goSolo || c.doubtful() || c.fault != "" || c.killed != "" || c.power != "":
		return "deciding"
	case c.switching || c.final != 0:
		return "switching"
	case c.a.Mode == pact.Protected && c.stream.state == streamDown:
		return "deciding"
	case c.a.Mode == pact.Protected:
		return "protected"
	case c.stream.state == streamUp:
		return "syncing"
	}
	return "solo"
}

// Detail says why, for people.
func (c *Core) Detail() string { return c.detail }

// Blocked reports that nothing may leave at all for now, not even what was released or has been
// acknowledged: a doubt is open, the disk marker is not durable, or the guest is being killed.
func (c *Core) Blocked() bool {
	return !c.begun || c.over || c.marker < c.since || c.doubtful() || c.killed != ""
}

// Entitled is the only party that may be entitled to take over, or nobody.
func (c *Core) Entitled() pact.Party { return c.entitled() }
