// Package diskimage brings disk images of other hypervisors into Pollux, and Pollux's disks out. Inside,
// a disk is a raw file; qemu-img (Debian's qemu-utils) knows the other formats.
//
// Images come from strangers: one that names further files of this machine (a backing file, an external
// data file, an extent elsewhere) is refused, since a conversion would read them into the guest's disk.
package diskimage
