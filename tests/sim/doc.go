// Package sim runs two hosts in one process: the real decisions (lockstep/core, replica/core, cluster/pact)
// under a seeded scheduler with a hostile network, a slow and forgetful Raft, processes that die or freeze,
// and daemons that come and go. The drivers around the decisions are small models of lockstep's engine,
// replica's Side, cmd/pollux/dataplane and the daemon's keeper: what they do with each action, without
// memory, disks or sockets.
//
// The checks (checks.go) know nothing of the implementation. They see what leaves the hosts, what Raft has
// committed, and of what each copy of the guest consists: a guest is the chain of its events, so whether
// an image contains what somebody outside has seen is a question of ancestry.
//
// A schedule is a function of its seed:
//
//	go test ./tests/sim -run TestSchedules -seed 42 -story -v
//
// Not modelled: what the bytes are (memory, deltas, checksums), disk errors, a replica's journal after a
// crash, elections, more than two hosts, more than one guest, orders to start from a stale disk.
package sim
