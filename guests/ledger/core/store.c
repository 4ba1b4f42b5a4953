#include "store.h"
#include "hash.h"
#include "journal.h"

// The allocator cuts memory into spans; a span holds blocks of one size class and is free again when
// its last block is. Sizes grow by a quarter at most, so little is lost inside a block.
#define SPAN_BYTES (256 * KIB)
#define BLOCK_MAX 66560u // the longest key and value, with the entry's head
#define CLASSES 48
#define NO_SPAN (~0u)

struct span {
	u32 next, previous; // spans of this class with a free block
	u32 used, capacity, fresh; // blocks; those from fresh on were never used
	void *free; // the block freed last; its first word links to the next
	u8 class_;
	bool listed;
};

struct store_counters store_counters;
static u8 *area;
static struct span *spans;
static u32 span_count, span_fresh, span_free = NO_SPAN;
static u32 class_size[CLASSES], class_count;
static u32 class_spans[CLASSES];
static struct entry **buckets;
static u64 bucket_mask;

void store_init(void *memory, u64 bytes)
{
	u8 *p = memory;
	for (u32 size = 64; class_count < CLASSES; size += size >= 512 ? (size / 4 + 15) & ~15u : 64) {
		class_size[class_count] = min_u32(size, BLOCK_MAX);
		class_spans[class_count++] = NO_SPAN;
		if (size >= BLOCK_MAX)
			break;
	}
	u64 wanted = 1024; // buckets: one for every 128 bytes, fixed, so that growth never rewrites the table
	while (wanted * 128 < bytes)
		wanted *= 2;
	buckets = (struct entry **)p;
	bucket_mask = wanted - 1;
	p += wanted * sizeof *buckets;
	spans = (struct span *)p;
	u64 left = bytes - (u64)(p - (u8 *)memory);
	span_count = (u32)(left / (SPAN_BYTES + sizeof(struct span)));
	p += (u64)span_count * sizeof(struct span);
	area = (u8 *)(((uintptr_t)p + 4095) & ~4095ull);
	if (span_count && area + (u64)span_count * SPAN_BYTES > (u8 *)memory + bytes)
		span_count--;
	check(class_size[class_count - 1] == BLOCK_MAX, "size classes end too early");
	store_counters.bytes_total = (u64)span_count * SPAN_BYTES;
}

static u32 class_of(u32 bytes)
{
	u32 c = 0;
	while (class_size[c] < bytes)
		c++;
	return c;
}

static void list_span(u32 i)
{
	struct span *s = &spans[i];
	s->previous = NO_SPAN;
	s->next = class_spans[s->class_];
	if (s->next != NO_SPAN)
		spans[s->next].previous = i;
	class_spans[s->class_] = i;
	s->listed = true;
}

static void unlist_span(u32 i)
{
	struct span *s = &spans[i];
	if (s->previous != NO_SPAN)
		spans[s->previous].next = s->next;
	else
		class_spans[s->class_] = s->next;
	if (s->next != NO_SPAN)
		spans[s->next].previous = s->previous;
	s->listed = false;
}

static void *allocate(u32 class_)
{
	u32 i = class_spans[class_];
	if (i == NO_SPAN) {
		i = span_free;
		if (i != NO_SPAN)
			span_free = spans[i].next;
		else if (span_fresh < span_count)
			i = span_fresh++;
		else
			return NULL;
		spans[i] = (struct span){.class_ = (u8)class_, .capacity = SPAN_BYTES / class_size[class_]};
		store_counters.bytes_used += SPAN_BYTES;
		list_span(i);
	}
	struct span *s = &spans[i];
	void *block = s->free;
	if (block)
		s->free = *(void **)block;
	else
		block = area + (u64)i * SPAN_BYTES + (u64)s->fresh++ * class_size[class_];
	if (++s->used == s->capacity)
		unlist_span(i);
	return block;
}

static void release(struct entry *e)
{
	u32 i = (u32)(((u8 *)e - area) / SPAN_BYTES);
	struct span *s = &spans[i];
	*(void **)e = s->free;
	s->free = e;
	if (!s->listed)
		list_span(i);
	if (--s->used == 0) {
		unlist_span(i);
		s->next = span_free;
		span_free = i;
		store_counters.bytes_used -= SPAN_BYTES;
	}
}

static struct entry **slot(struct slice key)
{
	struct entry **link = &buckets[hash_bytes(key.p, key.n) & bucket_mask];
	while (*link && ((*link)->key_length != key.n || memcmp((*link)->data, key.p, key.n)))
		link = &(*link)->next;
	return link;
}

struct entry *store_find(struct slice key) { return *slot(key); }

static u32 footprint(u32 key, u32 value) { return (u32)sizeof(struct entry) + key + value; }

struct entry *store_prepare(struct slice key, u32 n)
{
	u32 class_ = class_of(footprint(key.n, n));
	struct entry *e = store_find(key);
	if (e && e->class_ == class_)
		return e;
	e = allocate(class_);
	if (e) {
		e->next = NULL;
		e->batch = 0;
		e->class_ = (u8)class_;
		e->key_length = (u16)key.n;
		e->value_length = 0;
		memcpy(e->data, key.p, key.n);
	}
	return e;
}

void store_commit(struct entry *e, struct slice value, u64 batch)
{
	struct entry **link = slot(entry_key(e)), *old = *link;
	if (old)
		store_counters.journal_bytes -= journal_record_size(old->key_length, old->value_length);
	else
		store_counters.keys++;
	store_counters.journal_bytes += journal_record_size(e->key_length, value.n);
	memcpy(e->data + e->key_length, value.p, value.n);
	e->value_length = value.n;
	e->batch = batch;
	if (old == e)
		return;
	e->next = old ? old->next : NULL;
	*link = e;
	if (old)
		release(old);
}

void store_discard(struct entry *e)
{
	if (*slot(entry_key(e)) != e)
		release(e);
}

struct entry *store_grow(struct entry *old, u32 more)
{
	u32 class_ = class_of(footprint(old->key_length, old->value_length + more));
	if (class_ == old->class_)
		return old;
	struct entry *e = allocate(class_);
	if (!e)
		return NULL;
	struct entry **link = slot(entry_key(old));
	memcpy(e, old, footprint(old->key_length, old->value_length));
	e->class_ = (u8)class_;
	*link = e;
	release(old);
	return e;
}

void store_extend(struct entry *e, struct slice more, u64 batch)
{
	memcpy(e->data + e->key_length + e->value_length, more.p, more.n);
	e->value_length += more.n;
	e->batch = batch;
	store_counters.journal_bytes += journal_record_size(e->key_length, e->value_length) -
	                                journal_record_size(e->key_length, e->value_length - more.n);
}

bool store_delete(struct slice key)
{
	struct entry **link = slot(key), *e = *link;
	if (!e)
		return false;
	*link = e->next;
	store_counters.keys--;
	store_counters.journal_bytes -= journal_record_size(e->key_length, e->value_length);
	release(e);
	return true;
}

void store_clear(void)
{
	for (u64 b = 0; b <= bucket_mask; b++)
		while (buckets[b]) {
			struct entry *e = buckets[b];
			buckets[b] = e->next;
			release(e);
		}
	store_counters.keys = 0;
	store_counters.journal_bytes = 0;
}

struct entry *store_next(struct cursor *c)
{
	if (c->entry)
		c->entry = c->entry->next;
	while (!c->entry && c->bucket <= bucket_mask)
		c->entry = buckets[c->bucket++];
	return c->entry;
}
