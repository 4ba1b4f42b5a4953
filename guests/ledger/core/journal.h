// The journal: what makes a mutation durable. See README.md for the format on disk.
#ifndef LEDGER_JOURNAL_H
#define LEDGER_JOURNAL_H

#include "base.h"

enum journal_op { JOURNAL_SET = 1, JOURNAL_APPEND, JOURNAL_DELETE, JOURNAL_CLEAR };

enum journal_room {
	ROOM,      // go ahead
	ROOM_WAIT, // not now: the batch is full, or the journal is being compacted
	ROOM_NONE, // the disk is too small for so much data
	ROOM_DEAD, // no disk, or it has failed
};

#define RECORD_HEAD 8u // operation, key and value length
static inline u32 journal_record_size(u32 key, u32 value) { return (RECORD_HEAD + key + value + 7) & ~7u; }

// Reads the journal back into the store. Returns false, and has said why, where there is no usable
// disk; Ledger then serves reads only. volatile_: no disk is wanted, memory is all there is.
bool journal_mount(bool volatile_);

// Is there room for records of so many bytes in all (journal_record_size), growth of which is new?
enum journal_room journal_room(u32 bytes, s64 growth);
// Adds to the open batch. There must be room.
void journal_add(enum journal_op op, struct slice key, struct slice value);

u64 journal_open(void);    // the number of the batch that takes records now
u64 journal_flying(void);  // of the one being written, 0 if none
u64 journal_durable(void); // of the last one that is safe; batches are numbered from 1
bool journal_dead(void);
bool journal_idle(void); // nothing waits to become durable

// Starts a batch on its way if one waits and the disk is idle.
void journal_step(u64 now);
u64 journal_deadline(void); // of a retry
void journal_disk_done(bool ok);

struct journal_counters {
	u64 batches, records, bytes, compactions, replayed, generation, errors;
};
extern struct journal_counters journal_counters;
const char *journal_state(void);

#endif
