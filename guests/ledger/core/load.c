#include "load.h"

#define PAGE 4096
#define PAGES_AT_ONCE 16
#define BURN_AT_ONCE 16384  // iterations; some 10 us
#define TICK 1000           // microseconds between two bursts of a slow rate
#define BACKLOG (SECOND / 10) // what can't be caught up with is forgotten, not piled up

struct load load;
static u8 *arena;
static u64 since, done; // the pace: pages written since then
static u64 next_page;
static u64 noise = 0x9e3779b97f4a7c15;

void load_init(void *memory, u64 bytes)
{
	arena = (u8 *)(((uintptr_t)memory + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
	u64 lost = (u64)(arena - (u8 *)memory);
	load.pages_max = bytes > lost ? (bytes - lost) / PAGE : 0;
	load.pages = load.pages_max;
}

bool load_dirty(u64 pages_per_second, u64 bytes_per_page, u64 pages)
{
	if (pages_per_second > 10000000 || bytes_per_page > PAGE || pages > load.pages_max)
		return false;
	load.pages_per_second = bytes_per_page ? pages_per_second : 0;
	load.bytes_per_page = bytes_per_page;
	load.pages = pages ? pages : load.pages_max;
	since = 0;
	return load.pages > 0 || !pages_per_second;
}

// Changes bytes_per_page bytes in a row, somewhere in the page; neighbouring epochs hit other places.
static void write_page(u8 *page)
{
	noise ^= noise << 13;
	noise ^= noise >> 7;
	noise ^= noise << 17;
	u64 n = load.bytes_per_page;
	u8 *p = page + noise % (PAGE - n + 1);
	u64 word = noise | 0x0101010101010101; // a byte is never written with what an untouched page holds
	for (; n >= 8; n -= 8, p += 8, word += 0x0f1e2d3c4b5a6978) {
		u64 old;
		memcpy(&old, p, 8);
		old += word | 1;
		memcpy(p, &old, 8);
	}
	for (; n; n--)
		*p++ += (u8)word | 1;
	load.dirtied++;
}

static u64 due(u64 now)
{
	u64 passed = now - since;
	return passed * load.pages_per_second / SECOND;
}

void load_run(u64 now)
{
	if (load.pages_per_second) {
		if (!since || due(now) > done + load.pages_per_second * BACKLOG / SECOND + 1) {
			since = now;
			done = 0;
		}
		u64 target = due(now);
		for (u32 i = 0; i < PAGES_AT_ONCE && done < target; i++, done++) {
			if (next_page >= load.pages)
				next_page = 0;
			write_page(arena + next_page++ * PAGE);
		}
	}
	if (load.burning) {
		u64 n = BURN_AT_ONCE;
		__asm__ volatile("1: dec %0; jnz 1b" : "+r"(n));
		load.count += BURN_AT_ONCE;
	}
}

u64 load_deadline(void)
{
	if (load.burning)
		return 0;
	if (!load.pages_per_second)
		return NEVER;
	u64 next = since + (done + 1) * SECOND / load.pages_per_second;
	u64 tick = since + done * SECOND / load.pages_per_second + TICK;
	return next > tick ? next : tick;
}
