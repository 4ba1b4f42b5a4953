// Package firmware is what UEFI firmware needs of a machine: the flash memory that holds it and its
// variables, and QEMU's firmware configuration device, from which it learns what machine it is on. The
// firmware itself is OVMF as distributions package it, unmodified, in its build with 4 MiB of flash and
// without system management mode.
//
// Sources: QEMU, docs/specs/fw_cfg.rst (the device) and hw/acpi/bios-linker-loader.c's description of
// etc/table-loader; Intel 28F640J3 StrataFlash data sheet (command set 0001h) and JEDEC JESD68 (CFI);
// edk2, OvmfPkg/README and OvmfPkg/QemuFlashFvbServicesRuntimeDxe for which of it OVMF uses.
//
// Everything here is guarded by the device lock, constructors included.
package firmware
