// Package consensus runs Raft for one member: the log that orders the pact's commands, the way of a
// proposal to the leader and back, and who belongs to the cluster.
//
// Invariants. A proposal's outcome is one of three things, and they are never mixed up: a verdict (the
// command is committed, and was applied or refused), certainly not submitted (ErrNoQuorum), or unknown
// (ErrUnknown). A timeout and a lost leadership are unknown. A proposal may be sent several times and by
// several ways; the pact knows duplicates, so that a verdict on any copy holds for all of them.
// Every entry is signed by the member that it comes from, and the leader checks that it may say that,
// through however many hands it has come. A voter that lost its log comes back under a new Raft id.
package consensus
