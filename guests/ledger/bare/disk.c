// virtio-blk (Virtio 1.2, 5.2), one request at a time: the journal does not want more.
#include "cpu.h"
#include "nic.h"
#include "../core/journal.h"
#include "../core/machine.h"

#define BLK_F_RO (1ull << 5)
#define BLK_F_BLK_SIZE (1ull << 6)
#define BLK_F_FLUSH (1ull << 9)

#define REQUEST_IN 0
#define REQUEST_OUT 1
#define REQUEST_FLUSH 4

static struct virtio blk;
static struct queue queue;
static u64 sectors;
static u32 unit = SECTOR;
static struct {
	u32 type, reserved;
	u64 sector;
	volatile u8 status;
} request __attribute__((aligned(32)));
static bool flying, without_device; // without_device: a flush of a disk that caches nothing

bool disk_open(void)
{
	if (!virtio_open(&blk, VIRTIO_BLK, BLK_F_RO | BLK_F_BLK_SIZE | BLK_F_FLUSH) ||
	    !virtio_queue(&blk, &queue, 0, 4, rings.disk_descriptors, rings.disk))
		return false;
	volatile u32 *config = (volatile u32 *)blk.device;
	sectors = config[0] | (u64)config[1] << 32;
	if (blk.features & BLK_F_BLK_SIZE)
		unit = max_u32(config[5], SECTOR);
	if (blk.features & BLK_F_RO) {
		machine_log("ledger: the disk is read-only\n");
		sectors = 0;
	}
	virtio_start(&blk);
	return true;
}

u64 disk_sectors(void) { return sectors; }
u32 disk_unit(void) { return unit; }

void disk_start(enum disk_op op, u64 sector, void *data, u32 bytes)
{
	check(!flying && !without_device, "two disk requests at once");
	if (op == DISK_FLUSH && !(blk.features & BLK_F_FLUSH)) {
		without_device = true;
		return;
	}
	static const u32 types[] = {[DISK_READ] = REQUEST_IN, [DISK_WRITE] = REQUEST_OUT, [DISK_FLUSH] = REQUEST_FLUSH};
	request.type = types[op];
	request.sector = op == DISK_FLUSH ? 0 : sector;
	request.status = 0xff;
	struct descriptor *d = queue.descriptors;
	u16 n = 0;
	d[n++] = (struct descriptor){(u64)&request, 16, DESCRIPTOR_NEXT, 1};
	if (op != DISK_FLUSH) {
		u16 flags = DESCRIPTOR_NEXT | (op == DISK_READ ? DESCRIPTOR_WRITE : 0);
		d[n++] = (struct descriptor){(u64)data, bytes, flags, 2};
	}
	d[n] = (struct descriptor){(u64)&request.status, 1, DESCRIPTOR_WRITE, 0};
	flying = true;
	queue_offer(&queue, 0);
	queue_notify(&blk, &queue);
}

// Has the request ended? *ok says how.
static bool ended(bool *ok)
{
	u16 head;
	u32 length;
	if (without_device) {
		without_device = false;
		*ok = true;
		return true;
	}
	if (!flying || !queue_take(&queue, &head, &length))
		return false;
	flying = false;
	*ok = request.status == 0;
	return true;
}

bool disk_poll(void)
{
	bool ok;
	if (!ended(&ok))
		return false;
	journal_disk_done(ok);
	return true;
}

bool disk_await(void) { return without_device || (flying && queue_await(&blk, &queue)); }

bool disk_transfer(enum disk_op op, u64 sector, void *data, u32 bytes)
{
	bool ok;
	disk_start(op, sector, data, bytes);
	for (;;) {
		irq_pending = 0;
		if (ended(&ok))
			return ok;
		if (!disk_await())
			cpu_idle(machine_now(), NEVER);
	}
}
