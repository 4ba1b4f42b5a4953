// Package store is a guest's disks on this host: the files with their exclusive locks, their marks and
// the journal through which committed writes reach them.
//
// Who writes to a disk file:
//
//	primary     the machine's disk worker, through Disk
//	replica     the store's worker, from the journal, epochs in order
//	being synchronized   the store's worker, without a journal: the disk is marked inconsistent
//
// Invariants: the mark says inconsistent before the first block of a synchronization is written; the
// journal is empty before a machine writes to the disks itself, so that no replay can undo its writes;
// whatever an earlier role left in the page cache is durable before the journal is used on top of it.
package store
