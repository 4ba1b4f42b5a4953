// Package lockstep is the primary's side of a protected guest: when an epoch ends, what output
// waits for it, and what is released. The decisions that safety rests on are made in lockstep/core;
// this package drives the machine, the stream to the replica and the clock by them.
//
// Threads of an Engine, and what each of them does on the way of an epoch:
//
//	vCPU thread   Transmit: hold the frame, ask for a pause   (device lock held)
//	              OnPause: capture, seal, hand over, go on    (device lock held)
//	sender        encode, write to the stream                 woken once an epoch
//	receiver      read the Ack, release the frames itself     woken once by the network
//	pulse         heartbeats, silence, own gap, interval, repeated questions
//	filler        during a synchronization: copy pages and disk blocks beside the guest
//
// One mutex guards the core and the queues; no I/O is done under it. It is taken after the device
// lock, never before.
package lockstep
