// Package bench measures what Pollux costs and how fast it is: one run, one machine, every figure beside
// a baseline that was taken in the same run, because machines differ and are noisy. What counts is the
// ratio. The guests are real guests on KVM, the links are real TCP connections with TLS.
//
// Rows have stable ids: P1 the pause of a checkpoint, P2 throughput, P3 latency, P4 takeovers and
// switchovers, P5 bytes on the wire, P9 the pause as a guest grows. P1, P5 and P9 run in this process, on
// a guest that writes exactly what it is told to (scatter). The others run on a whole cluster in the
// demo's lab, each group in a session of its own, as a child of this process.
package bench
