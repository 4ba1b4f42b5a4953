#include "journal.h"
#include "hash.h"
#include "machine.h"
#include "session.h"
#include "store.h"
#include "text.h"

// On disk, little endian: two superblocks, then two halves. One half is active: batches, one after
// another, from its start. Of the superblocks the valid one with the higher generation counts.
#define SUPER_MAGIC 0x315245474445ull // "EDGER1"
#define SUPER_SECTOR(slot) ((u64)(slot) * 8)
#define HALVES_SECTOR 16
#define BATCH_MAGIC 0x4843544c // "LTCH"
#define BATCH_MAX (256 * KIB)
#define HALF_MIN (4 * BATCH_MAX)
#define RETRY_AFTER (SECOND / 5)
#define RETRIES 25

struct superblock { // one sector, which a disk writes whole or not at all
	u64 magic;
	u64 generation;   // 1 and up
	u64 half_sectors; // length of a half
	u64 salt;         // random: no chain of batches of another attempt fits this one
	u32 active;       // 0 or 1
	u32 crc;          // of all before
};

struct batch {
	u32 magic;
	u32 crc;        // of all that follows, and the records
	u64 generation; // of the superblock that it belongs to
	u64 sequence;   // in its half, from 1
	u32 bytes;      // with this head
	u32 previous;   // crc of the batch before, of the first the salt: what a crash left over does not fit
};

struct record {
	u8 operation, zero;
	u16 key_length;
	u32 value_length;
	u8 data[]; // key, value, zeros up to a multiple of 8
};

static u8 buffers[2][BATCH_MAX] __attribute__((aligned(4096), section(".bss.large")));
static u32 filling;       // the buffer that takes records
static u32 filled;        // its length, with the head; just the head: empty
static u32 writing_bytes; // of the batch under way, in whole units

static enum {
	OFF, // volatile
	DEAD,
	IDLE,
	WRITING,
	FLUSHING,
	COPYING, // compaction: the store goes into the other half
	COPY_FLUSHING,
	SWITCHING, // the superblock that makes the other half the active one
	SWITCH_FLUSHING,
} state = DEAD;
static u32 retries;
static u64 retry_at = NEVER;
static struct {
	enum disk_op op;
	u64 sector;
	void *data;
	u32 bytes;
} request;

static struct superblock super, next_super; // next_super: while compacting
static u64 position;      // of the next batch, in sectors from the start of its half
static u64 sequence;      // of the next batch
static u32 previous_crc;
static u64 open_batch = 1, durable_batch, flying_batch;
static u32 unit;
static struct cursor copy_cursor;
static struct entry *copy_next;

struct journal_counters journal_counters;

u64 journal_open(void) { return open_batch; }
u64 journal_flying(void) { return flying_batch; }
u64 journal_durable(void) { return durable_batch; }
bool journal_dead(void) { return state == DEAD; }
bool journal_idle(void) { return state < IDLE || (state == IDLE && filled == sizeof(struct batch)); }
u64 journal_deadline(void) { return retry_at; }

const char *journal_state(void)
{
	static const char *const names[] = {"volatile", "dead", "idle", "writing", "flushing",
	                                    "compacting", "compacting", "compacting", "compacting"};
	return names[state];
}

static u32 whole_units(u32 bytes) { return (bytes + unit - 1) / unit * unit; }
static u64 half_start(u32 half) { return HALVES_SECTOR + half * super.half_sectors; }

// Live data may take this much of a half; the rest is what compaction buys time with.
static u64 live_max(void)
{
	u64 half = super.half_sectors * SECTOR;
	u64 reserve = half / 8 > 2 * BATCH_MAX ? half / 8 : 2 * BATCH_MAX;
	return half - reserve - half / 16; // a sixteenth for heads and for ends of batches that stay empty
}

enum journal_room journal_room(u32 bytes, s64 growth)
{
	switch (state) {
	case OFF:
		return ROOM;
	case DEAD:
		return ROOM_DEAD;
	case COPYING:
	case COPY_FLUSHING:
	case SWITCHING:
	case SWITCH_FLUSHING:
		return ROOM_WAIT; // the store must stand still while it is copied
	default:
		break;
	}
	if (growth > 0 && store_counters.journal_bytes + (u64)growth > live_max())
		return ROOM_NONE;
	return filled + bytes > BATCH_MAX ? ROOM_WAIT : ROOM;
}

static void add_record(u8 *buffer, u32 *at, enum journal_op op, struct slice key, struct slice value)
{
	u32 size = journal_record_size(key.n, value.n);
	check(*at + size <= BATCH_MAX, "a journal batch overflows");
	struct record *r = (struct record *)(buffer + *at);
	*r = (struct record){.operation = (u8)op, .key_length = (u16)key.n, .value_length = value.n};
	if (key.n)
		memcpy(r->data, key.p, key.n);
	if (value.n)
		memcpy(r->data + key.n, value.p, value.n);
	u32 used = RECORD_HEAD + key.n + value.n;
	memset((u8 *)r + used, 0, size - used);
	*at += size;
	journal_counters.records++;
}

void journal_add(enum journal_op op, struct slice key, struct slice value)
{
	if (state != OFF)
		add_record(buffers[filling], &filled, op, key, value);
}

// Writes the head of a batch whose records are in buffer; returns its length on disk.
static u32 seal(u8 *buffer, u32 bytes, u64 generation)
{
	struct batch *b = (struct batch *)buffer;
	*b = (struct batch){
	    .magic = BATCH_MAGIC, .generation = generation, .sequence = sequence++, .bytes = bytes, .previous = previous_crc};
	b->crc = crc32c(0, &b->generation, bytes - 8);
	previous_crc = b->crc;
	u32 whole = whole_units(bytes);
	memset(buffer + bytes, 0, whole - bytes);
	journal_counters.batches++;
	journal_counters.bytes += whole;
	return whole;
}

static void start(enum disk_op op, u64 sector, void *data, u32 bytes)
{
	request.op = op;
	request.sector = sector;
	request.data = data;
	request.bytes = bytes;
	disk_start(op, sector, data, bytes);
}

static void seal_super(struct superblock *s) { s->crc = crc32c(0, s, offsetof(struct superblock, crc)); }

// Fills the idle buffer with what comes next of the store and writes it. False: all is written.
static bool copy_more(void)
{
	if (!copy_next)
		return false;
	u8 *buffer = buffers[filling ^ 1];
	u32 at = sizeof(struct batch);
	while (copy_next && at + journal_record_size(copy_next->key_length, copy_next->value_length) <= BATCH_MAX) {
		add_record(buffer, &at, JOURNAL_SET, entry_key(copy_next), entry_value(copy_next));
		copy_next = store_next(&copy_cursor);
	}
	writing_bytes = seal(buffer, at, next_super.generation);
	start(DISK_WRITE, half_start(next_super.active) + position, buffer, writing_bytes);
	return true;
}

static void copy_begin(void)
{
	next_super = super;
	next_super.generation++;
	next_super.active ^= 1;
	next_super.salt = machine_random();
	seal_super(&next_super);
	sequence = 1;
	previous_crc = (u32)next_super.salt;
	position = 0;
	copy_cursor = (struct cursor){0};
	copy_next = store_next(&copy_cursor);
	state = COPYING;
}

// The active half is full. The store, which has all records of the open batch in it already, is
// written to the other half; one sector then switches over. Until that has happened the old half
// is whole, so a crash at any moment finds one or the other.
static void compact(void)
{
	journal_counters.compactions++;
	copy_begin();
	if (!copy_more()) {
		state = COPY_FLUSHING;
		start(DISK_FLUSH, 0, NULL, 0);
	}
}

static void commit_done(void)
{
	durable_batch = flying_batch;
	flying_batch = 0;
	state = IDLE;
	session_commit_done();
}

void journal_step(u64 now)
{
	if (now >= retry_at) {
		retry_at = NEVER;
		disk_start(request.op, request.sector, request.data, request.bytes);
		return;
	}
	if (state != IDLE || filled == sizeof(struct batch))
		return;
	flying_batch = open_batch++;
	session_commit_started();
	u32 whole = whole_units(filled);
	if ((position + whole / SECTOR) > super.half_sectors) {
		filled = sizeof(struct batch);
		compact();
		return;
	}
	u8 *buffer = buffers[filling];
	writing_bytes = seal(buffer, filled, super.generation);
	filling ^= 1;
	filled = sizeof(struct batch);
	state = WRITING;
	start(DISK_WRITE, half_start(super.active) + position, buffer, writing_bytes);
}

static void died(void)
{
	machine_log("ledger: the disk has failed for good: no more writes are taken\n");
	state = DEAD;
	flying_batch = 0;
	session_commit_failed();
}

void journal_disk_done(bool ok)
{
	if (!ok) {
		journal_counters.errors++;
		if (++retries > RETRIES) {
			died();
			return;
		}
		if (retries == 1)
			machine_log("ledger: disk error; trying again\n");
		// After a failed flush nobody knows what of the batch has landed: write it once more.
		if (state == FLUSHING) {
			state = WRITING;
			request.op = DISK_WRITE;
			request.sector = half_start(super.active) + position;
			request.data = buffers[filling ^ 1];
			request.bytes = writing_bytes;
		} else if (state == COPY_FLUSHING) {
			copy_begin();
			request.op = DISK_FLUSH; // the copy's first write follows
			request.sector = 0;
			request.data = NULL;
			request.bytes = writing_bytes = 0;
		} else if (state == SWITCH_FLUSHING) {
			state = SWITCHING;
			request.op = DISK_WRITE;
			request.sector = SUPER_SECTOR(next_super.generation & 1);
			request.data = buffers[filling ^ 1];
			request.bytes = unit;
		}
		retry_at = machine_now() + RETRY_AFTER;
		return;
	}
	retries = 0;
	switch (state) {
	case WRITING:
		state = FLUSHING;
		start(DISK_FLUSH, 0, NULL, 0);
		break;
	case FLUSHING:
		position += writing_bytes / SECTOR;
		commit_done();
		break;
	case COPYING:
		position += writing_bytes / SECTOR;
		if (copy_more())
			break;
		state = COPY_FLUSHING;
		start(DISK_FLUSH, 0, NULL, 0);
		break;
	case COPY_FLUSHING: {
		u8 *buffer = buffers[filling ^ 1];
		memset(buffer, 0, unit);
		memcpy(buffer, &next_super, sizeof next_super);
		state = SWITCHING;
		start(DISK_WRITE, SUPER_SECTOR(next_super.generation & 1), buffer, unit);
		break;
	}
	case SWITCHING:
		state = SWITCH_FLUSHING;
		start(DISK_FLUSH, 0, NULL, 0);
		break;
	case SWITCH_FLUSHING:
		super = next_super;
		journal_counters.generation = super.generation;
		commit_done();
		break;
	default:
		break;
	}
}

// ---- reading it back ----

static bool super_valid(const struct superblock *s, u64 sectors)
{
	return s->magic == SUPER_MAGIC && s->crc == crc32c(0, s, offsetof(struct superblock, crc)) && s->active <= 1 &&
	       s->half_sectors * SECTOR >= HALF_MIN && s->half_sectors < 1ull << 40 &&
	       HALVES_SECTOR + 2 * s->half_sectors <= sectors;
}

static bool blank(const u8 *p, u32 n)
{
	for (u32 i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

static bool refuse(const char *why)
{
	machine_log("ledger: ");
	machine_log(why);
	machine_log("; writes are refused\n");
	return false;
}

// While mounting there is nobody to wait for, but a disk may have its bad moments.
static bool transfer(enum disk_op op, u64 sector, void *data, u32 bytes)
{
	for (u32 tries = 0; tries < 8; tries++) {
		if (disk_transfer(op, sector, data, bytes))
			return true;
		journal_counters.errors++;
	}
	return false;
}

static bool format(u64 sectors)
{
	super = (struct superblock){.magic = SUPER_MAGIC, .generation = 1, .salt = machine_random()};
	super.half_sectors = (sectors - HALVES_SECTOR) / 2 / 8 * 8;
	seal_super(&super);
	memset(buffers[0], 0, unit);
	memcpy(buffers[0], &super, sizeof super);
	return transfer(DISK_WRITE, SUPER_SECTOR(1), buffers[0], unit) && transfer(DISK_FLUSH, 0, NULL, 0);
}

static bool load_super(u64 sectors)
{
	struct superblock found[2];
	bool empty = true;
	for (u32 i = 0; i < 2; i++) {
		if (!transfer(DISK_READ, SUPER_SECTOR(i), buffers[0], unit))
			return refuse("the disk can't be read");
		memcpy(&found[i], buffers[0], sizeof found[i]);
		empty &= blank(buffers[0], unit);
	}
	bool valid[2] = {super_valid(&found[0], sectors), super_valid(&found[1], sectors)};
	if (valid[0] || valid[1]) {
		super = found[valid[1] && (!valid[0] || found[1].generation > found[0].generation)];
		return true;
	}
	if (!empty)
		return refuse("the disk holds something else, or a damaged journal; give an empty one");
	return format(sectors) || refuse("the disk can't be written");
}

// Puts the records of a batch that is known to be whole into the store.
static bool apply(const u8 *p, u32 bytes)
{
	u32 at = sizeof(struct batch);
	while (at + RECORD_HEAD <= bytes) {
		const struct record *r = (const struct record *)(p + at);
		u32 size = journal_record_size(r->key_length, r->value_length);
		if (r->value_length > BATCH_MAX || size > bytes - at)
			return false;
		struct slice key = {r->data, r->key_length}, value = {r->data + r->key_length, r->value_length};
		struct entry *e = NULL;
		switch (r->operation) {
		case JOURNAL_SET:
			e = store_prepare(key, value.n);
			if (!e)
				return false;
			store_commit(e, value, 0);
			break;
		case JOURNAL_APPEND: {
			struct entry *old = store_find(key);
			e = old ? store_grow(old, value.n) : store_prepare(key, value.n);
			if (!e)
				return false;
			if (old)
				store_extend(e, value, 0);
			else
				store_commit(e, value, 0);
			break;
		}
		case JOURNAL_DELETE:
			store_delete(key);
			break;
		case JOURNAL_CLEAR:
			store_clear();
			break;
		default:
			return false;
		}
		journal_counters.replayed++;
		at += size;
	}
	return at == bytes;
}

static bool replay(void)
{
	u8 *window = buffers[0]; // both buffers, as one
	u64 window_start = 0;
	u32 window_bytes = 0;
	sequence = 1;
	previous_crc = (u32)super.salt;
	for (;;) {
		u64 left = (super.half_sectors - position) * SECTOR;
		u32 want = (u32)min_u64(left, BATCH_MAX);
		u32 offset = (u32)((position - window_start) * SECTOR);
		if (offset + want > window_bytes) {
			window_start = position;
			offset = 0;
			window_bytes = (u32)min_u64(left, sizeof buffers) / unit * unit;
			if (window_bytes < sizeof(struct batch))
				break;
			if (!transfer(DISK_READ, half_start(super.active) + position, window, window_bytes))
				return refuse("the disk can't be read");
		}
		const struct batch *b = (const struct batch *)(window + offset);
		if (b->magic != BATCH_MAGIC || b->generation != super.generation || b->sequence != sequence ||
		    b->previous != previous_crc || b->bytes > BATCH_MAX || b->bytes > window_bytes - offset ||
		    b->bytes < sizeof *b || b->crc != crc32c(0, &b->generation, b->bytes - 8))
			break; // the end, or what a crash has torn: that was never acknowledged
		if (!apply((const u8 *)b, b->bytes))
			return refuse("the journal does not fit into memory, or is from a newer version");
		previous_crc = b->crc;
		sequence++;
		position += whole_units(b->bytes) / SECTOR;
	}
	return true;
}

bool journal_mount(bool volatile_)
{
	if (volatile_) {
		state = OFF;
		open_batch = 0; // nothing ever waits
		return true;
	}
	u64 sectors = disk_sectors();
	unit = disk_unit();
	if (!sectors)
		return refuse("no disk (volatile=1 does without)");
	if (unit > 4096 || sectors < HALVES_SECTOR + 2 * HALF_MIN / SECTOR + 16)
		return refuse("the disk is too small: 2 MiB and 16 KiB at least");
	if (!load_super(sectors) || !replay())
		return false;
	// What was read may still be in a cache of the host only. It becomes visible now, so it must be durable.
	if (!transfer(DISK_FLUSH, 0, NULL, 0))
		return refuse("the disk can't be flushed");
	journal_counters.generation = super.generation;
	filled = sizeof(struct batch);
	state = IDLE;
	TEXT(t, 160);
	text_add(&t, "ledger: journal generation ");
	text_number(&t, super.generation);
	text_add(&t, ", ");
	text_number(&t, journal_counters.replayed);
	text_add(&t, " records, ");
	text_number(&t, store_counters.keys);
	text_add(&t, " keys\n");
	machine_log(t.at);
	return true;
}
