// Package images builds what the lab's guests and clients run: disk images of a stock Debian server with PostgreSQL or
// with Orthanc, and a tree of client tools. Everything comes from Debian's packages.
//
// A recipe is a chain of shell scripts, run by chroot in a tree that debootstrap made. The result lies in the cache under
// the digest of all that went into it, so that a change of a recipe, and nothing else, builds it again. Building needs
// root (it owns files as Debian's packages do), debootstrap, e2fsprogs, fdisk and mtools; no loop device and no mount
// outside of a mount namespace of its own.
//
// A guest's disk has a GPT with an EFI system partition and an ext4 root file system. It boots from plain UEFI firmware
// (EFI/BOOT/BOOTX64.EFI), and by the kernel and initial RAM disk that lie beside it.
package images
