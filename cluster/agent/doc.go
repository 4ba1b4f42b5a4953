// Package agent is the way to a guest's agent, QEMU's guest agent unmodified: the Unix socket that a
// data-plane process has for the channel, and the client that asks the agent something.
//
// # What holds
//
// What the agent says reaches the socket when the epoch in which it was said is committed, like any other
// output. Nothing is replayed after a takeover: a client's connection ends with the process that it was
// made to, and the next one begins by putting the agent in step.
//
// The agent is part of the guest: what it says is taken as hostile.
package agent
