// Package pci models bus 0 of a PCI host: configuration space, base address registers that the
// guest may move, INTx lines and MSI-X.
//
// Sources: PCI Local Bus Specification 3.0 (configuration space, chapter 6; MSI-X, section 6.8;
// configuration mechanism #1, section 3.2.2.3.2) and PCI Express Base Specification 3.0, section
// 7.2.2 (ECAM).
//
// Everything here is guarded by the device lock, constructors included.
//
// The chipset is a Q35 with its ICH9 LPC bridge, as far as firmware and drivers look at them (q35.go).
//
// The model plays the firmware's part as well: base address registers have addresses, memory decoding is
// on and ECAM is where the ACPI tables say when the guest starts. Firmware that runs all the same moves
// what it wants to. Bus mastering is not enforced.
package pci
