#ifndef LEDGER_NIC_H
#define LEDGER_NIC_H

#include "virtio.h"

bool nic_open(void);
bool nic_poll(void);  // hands received frames to the network; true: there were some
bool nic_await(void); // before sleeping; true: don't, something has come

bool disk_open(void);
bool disk_poll(void);
bool disk_await(void);

// All rings that are written all the time share one page, which a checkpoint carries.
#define RX_BUFFERS 64 // each two descriptors
#define TX_SMALL 32
#define TX_LARGE 32
struct rings {
	u8 rx[AVAILABLE_BYTES(2 * RX_BUFFERS) + USED_BYTES(2 * RX_BUFFERS)];
	u8 tx[AVAILABLE_BYTES(TX_SMALL + TX_LARGE) + USED_BYTES(TX_SMALL + TX_LARGE)];
	u8 disk[AVAILABLE_BYTES(4) + USED_BYTES(4)];
	struct descriptor tx_descriptors[TX_SMALL + TX_LARGE];
	struct descriptor disk_descriptors[4];
};
_Static_assert(sizeof(struct rings) <= 4096, "the rings need more than a page");
extern struct rings rings;

#endif
