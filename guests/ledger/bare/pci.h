// PCI configuration space through ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2).
#ifndef LEDGER_PCI_H
#define LEDGER_PCI_H

#include "../core/base.h"

struct pci_device {
	u8 slot, function; // on bus 0
};

u32 pci_read(struct pci_device d, u8 offset); // offset a multiple of 4
void pci_write(struct pci_device d, u8 offset, u32 value);
// The next device from *d on with this vendor and device ID (vendor in the low half). Start with *d = {0}.
bool pci_find(struct pci_device *d, u32 id);
// The offset of the next capability with this ID after `after` (0: from the start), or 0.
u8 pci_capability(struct pci_device d, u8 id, u8 after);
// The address of a memory BAR, or null.
volatile u8 *pci_bar(struct pci_device d, u8 bar);
// Switches the device on, and has its MSI-X vector 0 raise an interrupt here. False: it can't.
bool pci_enable(struct pci_device d, u8 vector);

#endif
