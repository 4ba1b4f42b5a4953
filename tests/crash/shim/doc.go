// Package shim is a file system in memory, mounted through FUSE, for tests of what the product's files
// survive. The product's code runs on it as on any other; nothing in it knows.
//
// It records what is done to it (Tape), it fails on demand (FS.Break), and it makes up what a loss of
// power may leave (Tape.After):
//
//   - what was fsynced is there; of all that came later any part is, operation by operation and, of
//     a write, sector of 512 bytes by sector, in any order; a size may be there without its data
//   - a name is there for sure once its directory was fsynced; fsync of the file is not enough. A rename is
//     there or not, never in part; one between directories is durable when either was fsynced
//
// That is more hostile than ext4 or XFS with their default options.
package shim
