// Package virtio models virtio 1.2 devices on PCI: a NIC, a disk, a console and an entropy source.
// Modern (non-transitional) drivers only, split virtqueues, MSI-X or INTx.
//
// Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS Committee Specification 01; sections are
// named where they apply.
//
// # What holds
//
// Everything is guarded by the device lock, constructors included; a disk's worker does file I/O
// without it and takes it for everything else. So a checkpoint that holds the lock sees rings and
// state at rest.
//
// Whatever a guest writes into rings, descriptors and registers is taken as hostile: each value is
// read once, checked, and then used. A ring that makes no sense sets DEVICE_NEEDS_RESET (section
// 2.1.2) and stops the device until the driver resets it. No guest can make a device allocate more
// than a fixed bound, or hold the device lock for longer than one queue's worth of work.
//
// Writes into guest memory go through memory.RAM: data first, then the used element, then the used
// index, each marked dirty after its bytes have landed.
//
// A restored device starts nothing until Activate, which looks at every queue again (a notification
// may have been on its way at the checkpoint) and sends each queue's interrupt once more (the same
// may be true of that; drivers put up with an interrupt too many).
package virtio
