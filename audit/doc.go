// Package audit is the event log: what happened to the guests of a host, in an order and a form that an
// auditor can check. One log a host, written by its daemon and by its data-plane processes.
//
// # Format
//
// A line is a JSON object, with its members in this order and without spaces between them:
//
//	{"seq":7,"time":"2026-01-31T09:00:00.123456789Z","host":"a","kind":"takeover","guest":"db","term":5,
//	 "actor":"daemon","detail":{"reason":"silence"},"prev":"<64 hex digits>","hash":"<64 hex digits>"}
//
// seq counts from 1 without gaps. prev is the hash of the line before, 64 zeros in the first. hash is the
// SHA-256 of the line's bytes before `,"hash":`. guest, term, actor and detail are left out where they
// are empty. Lines are at most MaxLine bytes long and end in a newline.
//
// The log is the file at its path and, with that path and the number of their first line as their names, the
// segments that were closed before (Limits). The chain goes through all of them.
//
// # What holds
//
//   - Append returns nil only after the line is durable (fsync). An error means that the caller must not
//     make the change that it was about to log.
//   - A line that was acknowledged is never cut off by this package. What a crash leaves of an append that
//     was never acknowledged is cut off by the next writer, which keeps the bytes in an event of its own. It is known by
//     its missing end, or by whole sectors of zeros in it.
//   - A closed segment is deleted only after a log-trim event that names its last line, which the first segment that
//     is left continues.
//   - Any other damage stops writing, with an error that names the line: an auditor decides then.
//
// The chain shows that a line was changed, inserted, removed or moved. It can't show that a whole tail
// was cut off at a line's end, nor that somebody with write access computed all hashes anew: for that,
// keep the head (Summary) elsewhere, with another host or in the site's own log collection.
package audit
