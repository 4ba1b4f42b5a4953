// Work in the background, for measurements: dirtying memory at a given rate, burning CPU.
#ifndef LEDGER_LOAD_H
#define LEDGER_LOAD_H

#include "base.h"

struct load {
	u64 pages_per_second, bytes_per_page;
	u64 pages, pages_max; // of the arena in use, and of what there is
	u64 dirtied, count;   // pages written and loop iterations since boot
	bool burning;
};
extern struct load load;

void load_init(void *arena, u64 bytes);
// pages 0: the whole arena. False: a figure is out of range.
bool load_dirty(u64 pages_per_second, u64 bytes_per_page, u64 pages);
// A short piece of work, some tens of microseconds at most.
void load_run(u64 now);
// When there is work again: 0 now, NEVER when none is ordered.
u64 load_deadline(void);

#endif
