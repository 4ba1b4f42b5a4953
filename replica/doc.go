// Package replica is the twin's side of a guest: it receives checkpoints, commits them, keeps memory
// and disks as of the newest committed epoch, and hands the image over when Raft gives it the guest.
//
// What to do is decided by replica/core, a pure state machine. Side drives it: it owns the streams, the
// silence detector and the image. The order on the guest's critical path is
//
//	receive -> verify -> reserve journal space -> ack -> apply to RAM -> journal -> sync -> disk -> durable
//
// all of it up to the RAM on the one goroutine that reads the stream. Disks are replica/store's.
//
// Invariants beyond those of the core:
//
//   - An epoch that the core has committed is applied, whatever becomes of its stream meanwhile; nobody
//     uses the image before.
//   - Two streams never touch the image at the same time: the next waits for the end of the one before.
package replica
