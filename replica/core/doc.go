// Package core decides what the replica's side of a guest does: which stream it accepts, what it
// acknowledges, when it asks Raft for a promotion and when it may begin to run. It is a pure state
// machine: events in, actions out. No I/O, no goroutines, no clock.
//
//	Waiting -> Syncing -> Replica -> Promoting -> Activating -> Primary
//	   ^          |          |           |                        |
//	   +----------+----------+-----------+      Replica <---------+ (switchover)
//	                                            Ended   <---------+ (loser, stop)
//
// Invariants, each of them checked by the random schedules in this package:
//
//   - Acknowledging and promoting are one sequence. From the moment at which it asks for a promotion
//     it acknowledges nothing, until a committed higher term (or a refusal under an unchanged
//     assignment) has settled the question; a promotion goes out from the newest acknowledged epoch.
//   - It asks only where the newest assignment from its own Raft log says protected, names this very
//     process and carries the term that it believes in, and only with an image at or past the base.
//   - An image with damaged pages acknowledges nothing, is never asked for and never runs, until the primary has
//     sent them again. Acknowledged epochs count with the next one that is whole.
//   - Nothing runs before the assignment that names this process as primary has been applied to its
//     own Raft log. A process that was frozen in between asks once more (Confirm).
//   - Streams come from the assignment's primary at the assignment's term, or not at all.
//   - An image that Raft calls entitled is never overwritten. (A primary that does not know what became
//     of its Protect raises the term before it fills the image anew. An image that is filled anew has
//     no right until it is complete again, whatever Raft says.)
//   - The disk copy that the assignment calls current is never overwritten by a synchronization.
package core
