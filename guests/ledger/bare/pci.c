#include "pci.h"
#include "cpu.h"

#define COMMAND 0x04
#define HEADER_TYPE 0x0c
#define BARS 0x10
#define CAPABILITIES 0x34
#define CAPABILITY_MSIX 0x11

static u32 address(struct pci_device d, u8 offset)
{
	return 0x80000000u | (u32)d.slot << 11 | (u32)d.function << 8 | (offset & 0xfc);
}

u32 pci_read(struct pci_device d, u8 offset)
{
	out32(0xcf8, address(d, offset));
	return in32(0xcfc);
}

void pci_write(struct pci_device d, u8 offset, u32 value)
{
	out32(0xcf8, address(d, offset));
	out32(0xcfc, value);
}

bool pci_find(struct pci_device *d, u32 id)
{
	for (; d->slot < 32; d->slot++, d->function = 0) {
		for (; d->function < 8; d->function++) {
			u32 found = pci_read(*d, 0);
			if (found == id)
				return true;
			if (!d->function && (found == 0xffffffff || !(pci_read(*d, HEADER_TYPE) >> 16 & 0x80)))
				break; // nobody here, or no more functions
		}
	}
	return false;
}

u8 pci_capability(struct pci_device d, u8 id, u8 after)
{
	if (!(pci_read(d, COMMAND) >> 16 & 0x10))
		return 0;
	u8 at = after ? pci_read(d, after) >> 8 & 0xfc : pci_read(d, CAPABILITIES) & 0xfc;
	for (u32 i = 0; at && i < 48; i++) { // a list that bites its own tail must not hold us
		u32 head = pci_read(d, at);
		if ((u8)head == id)
			return at;
		at = head >> 8 & 0xfc;
	}
	return 0;
}

volatile u8 *pci_bar(struct pci_device d, u8 bar)
{
	if (bar > 5)
		return NULL;
	u32 low = pci_read(d, (u8)(BARS + 4 * bar));
	if (low & 1)
		return NULL; // ports
	u64 base = low & ~0xfu;
	if ((low & 6) == 4 && bar < 5)
		base |= (u64)pci_read(d, (u8)(BARS + 4 * bar + 4)) << 32;
	return base >> 32 ? NULL : (volatile u8 *)base; // above 4 GiB nothing is mapped
}

bool pci_enable(struct pci_device d, u8 vector)
{
	u8 msix = pci_capability(d, CAPABILITY_MSIX, 0);
	if (!msix)
		return false;
	u32 table = pci_read(d, msix + 4);
	volatile u8 *bar = pci_bar(d, table & 7);
	if (!bar)
		return false;
	pci_write(d, COMMAND, (pci_read(d, COMMAND) & 0xffff) | 0x406); // memory, bus master, no INTx
	volatile u32 *entry = (volatile u32 *)(bar + (table & ~7u));
	entry[0] = 0xfee00000 | apic_id() << 12; // Intel SDM 3, 11.11
	entry[1] = 0;
	entry[2] = vector;
	entry[3] = 0; // not masked
	u32 control = pci_read(d, msix);
	pci_write(d, msix, (control & ~0x40000000u) | 0x80000000u); // enabled, function not masked
	return true;
}
