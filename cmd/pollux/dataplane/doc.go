// Package dataplane is the process that holds one copy of a guest: `pollux dataplane --config FILE`,
// started by the host daemon, alive without it. It joins the machine (vmm), the primary's side
// (lockstep), the replica's side (replica) and the conversation with the daemon (cluster/link); the
// decisions are theirs.
//
//	waiting -> primary                 a Start that names this process
//	waiting -> replica -> primary      synchronized, protected, taken over
//	primary <-> replica                a switchover, as often as one likes; nothing is copied
//	primary -> exit (ExitReplaced)     the guest runs elsewhere: vCPUs stopped, disks drained. The daemon
//	                                   starts a new incarnation, which becomes the next replica
//
// The exit codes are cluster/link's.
package dataplane
