// Package watchdog feeds the kernel's watchdog, which resets a host that hangs: its twin has taken its guests over
// by then or is about to, and the reset frees what the host holds. No rule of the design rests on it.
//
// The interface is that of Documentation/watchdog/watchdog-api.rst: opening the device arms it, any write feeds
// it, and closing it right after the character V has been written disarms it, where the driver and its nowayout
// parameter let it. A process that dies leaves it armed.
//
// Invariants. It is armed only while somebody is on the rota. It is fed only from the turns of those who are: all of
// them must have turned since the last time, and at least one must have brought a sign of life from outside the
// daemon. Whoever hangs alone stops the feeding; a single data plane that hangs is its twin's business, and does
// not cost the others their host.
package watchdog
