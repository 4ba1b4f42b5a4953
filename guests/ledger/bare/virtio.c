#include "virtio.h"
#include "cpu.h"

// Virtio 1.2, 4.1.4: the structures behind the vendor capabilities.
#define CFG_COMMON 1
#define CFG_NOTIFY 2
#define CFG_DEVICE 4

// struct virtio_pci_common_cfg
#define FEATURE_SELECT 0x00
#define FEATURES 0x04
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURES 0x0c
#define CONFIG_VECTOR 0x10
#define STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_VECTOR 0x1a
#define QUEUE_ENABLE 0x1c
#define QUEUE_NOTIFY 0x1e
#define QUEUE_DESCRIPTORS 0x20
#define QUEUE_AVAILABLE 0x28
#define QUEUE_USED 0x30

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8
#define STATUS_FAILED 128

static volatile u32 *at32(volatile u8 *p, u32 o) { return (volatile u32 *)(p + o); }
static volatile u16 *at16(volatile u8 *p, u32 o) { return (volatile u16 *)(p + o); }

static bool map(struct virtio *v)
{
	for (u8 c = pci_capability(v->pci, 9, 0); c; c = pci_capability(v->pci, 9, c)) {
		u8 kind = pci_read(v->pci, c) >> 24, bar = (u8)pci_read(v->pci, c + 4);
		u32 offset = pci_read(v->pci, c + 8);
		if (kind != CFG_COMMON && kind != CFG_NOTIFY && kind != CFG_DEVICE)
			continue;
		volatile u8 *base = pci_bar(v->pci, bar);
		if (!base)
			continue;
		volatile u8 **to = kind == CFG_COMMON ? &v->common : kind == CFG_NOTIFY ? &v->notify : &v->device;
		if (*to)
			continue; // the first of a kind counts
		*to = base + offset;
		if (kind == CFG_NOTIFY)
			v->notify_multiplier = pci_read(v->pci, c + 16);
	}
	return v->common && v->notify && v->device;
}

bool virtio_open(struct virtio *v, u16 kind, u64 wanted)
{
	v->pci = (struct pci_device){0};
	if (!pci_find(&v->pci, VIRTIO_VENDOR | (u32)kind << 16) || !map(v) || !pci_enable(v->pci, VECTOR_DEVICE))
		return false;
	volatile u8 *status = v->common + STATUS;
	*status = 0;
	while (*status)
		; // 4.1.4.3.2: the reset is over when this reads 0
	*status = STATUS_ACKNOWLEDGE;
	*status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
	u64 offered = 0;
	for (u32 i = 0; i < 2; i++) {
		*at32(v->common, FEATURE_SELECT) = i;
		offered |= (u64)*at32(v->common, FEATURES) << (32 * i);
	}
	v->features = offered & (wanted | VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
	for (u32 i = 0; i < 2; i++) {
		*at32(v->common, DRIVER_FEATURE_SELECT) = i;
		*at32(v->common, DRIVER_FEATURES) = (u32)(v->features >> (32 * i));
	}
	*status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
	if (!(v->features & VIRTIO_F_VERSION_1) || !(*status & STATUS_FEATURES_OK)) {
		*status = STATUS_FAILED;
		return false;
	}
	*at16(v->common, CONFIG_VECTOR) = 0xffff; // configuration changes don't matter
	return true;
}

static void set64(volatile u8 *p, u32 offset, const volatile void *address)
{
	*at32(p, offset) = (u32)(u64)address;
	*at32(p, offset + 4) = (u32)((u64)address >> 32);
}

bool virtio_queue(struct virtio *v, struct queue *q, u16 number, u16 size, struct descriptor *d, u8 *rings)
{
	*at16(v->common, QUEUE_SELECT) = number;
	if (*at16(v->common, QUEUE_SIZE) < size)
		return false;
	*q = (struct queue){
	    .descriptors = d,
	    .available = (volatile u16 *)rings,
	    .used = (volatile u16 *)(rings + AVAILABLE_BYTES(size)),
	    .doorbell = at16(v->notify, *at16(v->common, QUEUE_NOTIFY) * v->notify_multiplier),
	    .size = size,
	    .number = number,
	};
	*at16(v->common, QUEUE_SIZE) = size;
	*at16(v->common, QUEUE_VECTOR) = 0;
	if (*at16(v->common, QUEUE_VECTOR) != 0)
		return false;
	set64(v->common, QUEUE_DESCRIPTORS, d);
	set64(v->common, QUEUE_AVAILABLE, q->available);
	set64(v->common, QUEUE_USED, q->used);
	*at16(v->common, QUEUE_ENABLE) = 1;
	queue_quiet(v, q);
	return true;
}

void virtio_start(struct virtio *v) { v->common[STATUS] |= STATUS_DRIVER_OK; }

void queue_offer(struct queue *q, u16 head)
{
	q->available[2 + q->offered % q->size] = head;
	q->offered++;
}

void queue_notify(struct virtio *v, struct queue *q)
{
	if (q->offered == q->notified)
		return;
	__atomic_thread_fence(__ATOMIC_RELEASE);
	q->available[1] = q->offered;
	fence(); // 2.7.13.4: idx must be out before the device's wish is read
	bool wanted;
	if (v->features & VIRTIO_F_EVENT_IDX) {
		u16 event = q->used[2 + 4 * q->size];
		wanted = (u16)(q->offered - event - 1) < (u16)(q->offered - q->notified); // 2.7.10
	} else {
		wanted = !(q->used[0] & 1);
	}
	q->notified = q->offered;
	if (wanted)
		*q->doorbell = q->number;
}

bool queue_take(struct queue *q, u16 *head, u32 *length)
{
	if (q->used[1] == q->seen)
		return false;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	volatile u16 *element = q->used + 2 + 4 * (q->seen % q->size);
	*head = element[0];
	*length = element[2] | (u32)element[3] << 16;
	q->seen++;
	return true;
}

bool queue_await(struct virtio *v, struct queue *q)
{
	if (v->features & VIRTIO_F_EVENT_IDX)
		q->available[2 + q->size] = q->seen;
	else
		q->available[0] = 0;
	fence();
	return q->used[1] != q->seen;
}

void queue_quiet(struct virtio *v, struct queue *q)
{
	if (v->features & VIRTIO_F_EVENT_IDX)
		q->available[2 + q->size] = (u16)(q->seen - 1); // as far ahead as there is
	else
		q->available[0] = 1;
}
