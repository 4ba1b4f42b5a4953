// Package core decides for a primary: whether its guest runs, what of the guest's output may leave
// the host, and what to ask of Raft. It is a pure state machine: Step takes an event and returns what
// to do. No I/O, no goroutines, no clock; time only enters as an event that says "ask again".
//
// The core keeps facts (the newest assignment, the stream, what was captured and acknowledged, what
// was asked in this term) and derives three things from them after every event: the gate for output,
// whether the vCPUs run, and the questions to Raft. Actions are the differences. A fact that is
// forgotten in one place can therefore not leave the gate open in another.
//
// Invariants. The tests check each of them on random schedules.
//
//  1. The gate is open (output leaves at once) only while the newest assignment says solo, names this
//     process as the primary, nothing was sealed and no Protect was asked in its term.
//  2. Otherwise output of an epoch leaves only after the one replica that may be entitled has
//     acknowledged that epoch. This holds from the end of epoch k on, before Protect is asked, and
//     until a higher term settles the question: an unknown outcome is treated as "protected".
//     It is safe in every outcome: had Protect been committed, the replica would go on from k or later
//     and from the newest epoch that it acknowledged; had it not, nobody but this host may run.
//  3. In one term at most one Protect is ever asked: one k, one replica. After it was refused, or its
//     stream was lost, the term has to rise (GoSolo) before anything is sealed again.
//  4. A question that could raise the term is never withdrawn. It is put again, under the same ID
//     (under a new one once it was refused in an unchanged term), until an assignment with a higher
//     term has been applied by this host's own Raft log, or replaced by another that raises the
//     term. Verdicts and the words of others stop this host or hold its output; they never let it
//     go on. Only Confirm, which changes no assignment, is settled by its verdict.
//  5. After a word of a term higher than its assignment's the guest stands still and nothing leaves,
//     until an assignment of that term says who runs it, or a Confirm asked after the word is applied.
//     After an own gap (the process did not run for the detection time) nothing leaves until a
//     Confirm asked after the gap is applied.
//  6. Once the final epoch is captured the vCPUs stand still for as long as the term lasts. A
//     switchover that was given up (Cancel) or whose stream was lost (GoSolo) is never asked for first
//     time afterwards. What the final epoch still holds leaves here only after a higher term says that
//     this host stays the primary.
//  7. Nothing leaves before the marker of this primacy is durable.
//  8. A higher term with another primary ends it: the vCPUs stop for good, what is held is dropped.
//     There is no way back; the next right comes to another incarnation.
//  9. A faulty primary asks Surrender and never GoSolo; its vCPUs do not run again.
//  10. A damaged page is mended only with what it held at the newest captured epoch, from a replica that holds
//     that epoch whole. One that was written since, or that nobody can supply, is a fault.
package core
