// Types and small helpers that every part of Ledger uses. Nothing here needs a libc, so that
// the same files build for the bare machine and, hosted, for the tests.
#ifndef LEDGER_BASE_H
#define LEDGER_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

#define NEVER (~(u64)0) // a point in time that does not come
#define KIB 1024u
#define MIB (1024u * 1024u)
#define SECOND 1000000ull // times are in microseconds

#define countof(a) (sizeof(a) / sizeof((a)[0]))

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int c, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);

// Stops the guest with a message: for states that only a bug in Ledger can lead to.
_Noreturn void panic(const char *why);

static inline void check(bool holds, const char *why)
{
	if (__builtin_expect(!holds, 0))
		panic(why);
}

static inline u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
static inline u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }
static inline u64 min_u64(u64 a, u64 b) { return a < b ? a : b; }

// Network byte order, from and to addresses of any alignment.
static inline u16 get16(const u8 *p) { return (u16)(p[0] << 8 | p[1]); }
static inline u32 get32(const u8 *p) { return (u32)p[0] << 24 | (u32)p[1] << 16 | (u32)p[2] << 8 | p[3]; }
static inline void put16(u8 *p, u16 v) { p[0] = (u8)(v >> 8), p[1] = (u8)v; }
static inline void put32(u8 *p, u32 v) { put16(p, (u16)(v >> 16)), put16(p + 2, (u16)v); }

// A piece of memory that somebody else owns.
struct slice {
	const u8 *p;
	u32 n;
};

// A set of small integers (connection numbers), walked in ascending order.
#define SET_WORDS 16
#define SET_MAX (SET_WORDS * 64)
struct set {
	u64 words[SET_WORDS];
};
static inline void set_add(struct set *s, u32 i) { s->words[i / 64] |= 1ull << (i % 64); }
static inline void set_remove(struct set *s, u32 i) { s->words[i / 64] &= ~(1ull << (i % 64)); }
static inline bool set_has(const struct set *s, u32 i) { return s->words[i / 64] >> (i % 64) & 1; }
// The first member that is at least i, or SET_MAX.
static inline u32 set_next(const struct set *s, u32 i)
{
	for (u32 w = i / 64; w < SET_WORDS; w++) {
		u64 bits = s->words[w];
		if (w == i / 64)
			bits &= ~0ull << (i % 64);
		if (bits)
			return w * 64 + (u32)__builtin_ctzll(bits);
	}
	return SET_MAX;
}

#endif
