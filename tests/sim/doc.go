// Package sim runs two hosts in one process: the real decisions (lockstep/core, replica/core, cluster/pact)
// under a seeded scheduler with a hostile network, a slow and forgetful Raft, disks that fail, clocks that run
// apart, processes that die or freeze, operators, and daemons that come and go. The drivers around the decisions
// are small models of lockstep's engine, replica's Side, cmd/pollux/dataplane and the daemon's keeper: what they
// do with each action, without memory, files or sockets.
//
// The checks (checks.go) know nothing of the implementation. They see what leaves the hosts, what Raft has
// committed, what is in the event logs, and of what each copy of the guest consists: a guest is the chain of its
// events, so whether an image contains what somebody outside has seen is a question of ancestry.
//
// A schedule is a function of its seed (plan.go): what goes wrong and when is drawn first, so that it can be left
// out piece by piece where a schedule fails (shrink.go). README.md says how it is used and what it leaves out.
package sim
