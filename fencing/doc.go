// Package fencing notices that something is gone, or that this process itself was: silence on a stream,
// and stretches of time in which the process did not run. What it notices makes somebody ask Raft; it
// decides nothing itself. No right ever rests on one of these clocks.
//
// Time comes from CLOCK_BOOTTIME, which goes on while the host is suspended and knows of no wall clock.
package fencing
