// Package confine shuts a data-plane process in: what runs a guest has to expect that the guest gets hold of it.
//
// Apply comes when the process has opened all that it needs from the host (/dev/kvm, taps, disks, journal, sockets)
// and before it hears of anybody. After it
//
//   - it is a user and a group of its own, that no account and no other guest's process is, without any capability, and
//     can gain none;
//   - it sees no files but its guest's directory and the certificates, by a root directory of its own;
//   - the kernel answers only the system calls on a list (policy.go). The others fail, or end the process: see there;
//   - core dumps are off, descriptors and threads are bounded.
//
// What a machine can't do is left out and named (Report); whether a guest may run without is for the caller to decide.
// The measures hold for every thread of the process, those that the Go runtime makes later included, and nothing can
// take them back.
package confine
