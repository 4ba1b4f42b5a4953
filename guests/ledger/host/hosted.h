// What the hosted programs share: the machine interface over ordinary memory.
#ifndef LEDGER_HOSTED_H
#define LEDGER_HOSTED_H

#include "../core/machine.h"

// Deterministic noise for fault injection.
struct noise {
	u64 state;
};
static inline u64 noise_next(struct noise *n)
{
	u64 z = n->state += 0x9e3779b97f4a7c15; // SplitMix64
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}
static inline bool noise_percent(struct noise *n, u32 percent) { return noise_next(n) % 100 < percent; }

#endif
