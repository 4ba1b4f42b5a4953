// The keys and their values: a hash table over a slab allocator. A value that fits into the place
// of its predecessor is written there, so that a hot key stays in one page.
#ifndef LEDGER_STORE_H
#define LEDGER_STORE_H

#include "base.h"

struct entry {
	struct entry *next; // in its bucket
	u64 batch;          // journal batch that holds the last change
	u32 value_length;
	u16 key_length;
	u8 class_;    // of the allocator
	u8 data[];    // the key, then the value
};

static inline struct slice entry_key(const struct entry *e) { return (struct slice){e->data, e->key_length}; }
static inline struct slice entry_value(const struct entry *e)
{
	return (struct slice){e->data + e->key_length, e->value_length};
}

void store_init(void *memory, u64 bytes);
struct entry *store_find(struct slice key);

// An entry with the key and room for n bytes of value, not in the table yet, or null when memory is full.
// Where an entry with that key can take the value in place, prepared is that entry itself.
struct entry *store_prepare(struct slice key, u32 n);
// Makes value the entry's and puts it into the table, in place of an older one with the same key.
void store_commit(struct entry *prepared, struct slice value, u64 batch);
// Gives up an entry that was prepared and not committed.
void store_discard(struct entry *prepared);

// The entry with room for more bytes, possibly in another place, or null when memory is full.
struct entry *store_grow(struct entry *e, u32 more);
// Appends to an entry that has room.
void store_extend(struct entry *e, struct slice more, u64 batch);

bool store_delete(struct slice key);
void store_clear(void);

// Walks all entries; the table must not change meanwhile. Start with a zeroed cursor.
struct cursor {
	u32 bucket;
	struct entry *entry;
};
struct entry *store_next(struct cursor *c);

struct store_counters {
	u64 keys;
	u64 bytes_used, bytes_total; // of the allocator, in whole spans
	u64 journal_bytes; // what all entries take as journal records
};
extern struct store_counters store_counters;

#endif
