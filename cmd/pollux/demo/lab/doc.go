// Package lab puts a whole Pollux cluster onto one machine: hosts and a witness, each with network
// and process namespaces of its own, joined by networks that can be cut; and it does to them what
// happens to real machines.
//
// Everything lives in one session (session.go): a process that is the first in namespaces made for
// it. Nothing that it makes has a name outside, and when it ends, in whatever way, the kernel takes
// down all processes, interfaces and bridges with it. Several sessions don't see each other.
//
//	the session's network namespace: the switches     lan       cluster    repl
//	  machine a: br0 (uplink lan0), cluster0, repl0    |  \        |  |       |
//	  machine b: the same                              a   b ...   a  w       a ...
//	  the witness w: cluster0
//	  clients: lan0
//
// A machine (machine.go) is a process namespace too: its first process is all that the session
// starts, and killing that one kills everything in it at once, as a power cut does.
package lab
