// Package quorum runs the real Raft library with the pact as its state machine, over a network in memory that
// loses, delays, doubles and cuts, under voters that crash and come back. Where package sim takes Raft by its
// contract, this one looks whether the contract is kept: committed assignments never diverge, nothing that was
// answered is lost, and the pact's rules hold of what was committed.
//
// Threads and true time are real here, so a seed decides the faults and not the whole schedule.
package quorum
