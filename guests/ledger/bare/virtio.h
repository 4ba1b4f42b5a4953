// Virtio 1.x over PCI, split queues, polled with interrupts only when about to sleep.
#ifndef LEDGER_VIRTIO_H
#define LEDGER_VIRTIO_H

#include "pci.h"

#define VIRTIO_VENDOR 0x1af4
#define VIRTIO_NET 0x1041
#define VIRTIO_BLK 0x1042

#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

struct descriptor {
	u64 address;
	u32 length;
	u16 flags, next;
};
#define DESCRIPTOR_NEXT 1
#define DESCRIPTOR_WRITE 2 // by the device

struct queue {
	struct descriptor *descriptors;
	volatile u16 *available; // flags, idx, ring[size], used_event
	volatile u16 *used;      // flags, idx, ring[size] of {u32 id, u32 length}, avail_event
	volatile u16 *doorbell;
	u16 size, number;
	u16 offered;  // our idx in available
	u16 notified; // its value when the device was last told
	u16 seen;     // what of used has been taken
};

// Bytes of the two rings of a queue, and the memory they take with avail before used, used on a cache
// line of its own.
#define AVAILABLE_BYTES(n) ((6 + 2 * (n) + 63) / 64 * 64)
#define USED_BYTES(n) ((6 + 8 * (n) + 63) / 64 * 64)

struct virtio {
	struct pci_device pci;
	volatile u8 *common, *notify, *device;
	u32 notify_multiplier;
	u64 features;
};

// Finds the first device of this kind, resets it and agrees upon features. False: none, or it refuses.
bool virtio_open(struct virtio *v, u16 kind, u64 wanted);
// Sets up a queue over memory for its descriptors and rings. False: the device has no such queue.
bool virtio_queue(struct virtio *v, struct queue *q, u16 number, u16 size, struct descriptor *d, u8 *rings);
void virtio_start(struct virtio *v);

void queue_offer(struct queue *q, u16 head);
// Rings the doorbell if the device wants to know of what was offered.
void queue_notify(struct virtio *v, struct queue *q);
// The next finished chain, its head in *head. False: none.
bool queue_take(struct queue *q, u16 *head, u32 *length);
// Asks for an interrupt when more is finished; true: more has been finished already.
bool queue_await(struct virtio *v, struct queue *q);
// No interrupts from this queue.
void queue_quiet(struct virtio *v, struct queue *q);

#endif
