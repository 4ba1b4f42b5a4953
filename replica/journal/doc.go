// Package journal keeps committed disk writes in a file until they are on the disks, so that a crash
// of the replica's host leaves each disk as of an epoch and never in between.
//
// The file (all integers little endian; blocks of 4,096 bytes, so that no write touches a block that
// already holds something durable):
//
//	block 0, block 1   two header slots, written in turn: magic "PXJH", format, slot number,
//	                   generation, done (the newest record known to be on the disks), CRC32C
//	2 segments         each: one block of segment header (magic "PXJS", generation, number of its
//	                   first record, CRC32C), then records
//	record             magic "PXJR", generation, number, term, epoch, count, length and XXH3-64 of the
//	                   body, CRC32C of the header; body: count x {disk u8, kind u8, offset u64, length
//	                   u64, data}; padded to a block. Kind 1 is a range that became zero, kind 2 the same
//	                   with its space given back; neither has data
//
// A record holds a whole epoch: it is there with its checksum, or the epoch was never journalled.
// This is format 2, which the headers name. In format 1 there was no kind and the length was u32; it is
// still read, and nothing of it is left after the Reset that follows.
//
// Records are numbered without gaps; what follows a gap or a damaged record is cut. A new generation
// makes all that was there void.
//
// Invariants: space for an epoch is reserved before the epoch is acknowledged; a segment is used again
// only after its records are durable on the disks and the header says so, durably.
package journal
