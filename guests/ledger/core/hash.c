#include "hash.h"

static u64 key0, key1;

void hash_seed(u64 k0, u64 k1) { key0 = k0, key1 = k1; }

static inline u64 rotate(u64 x, int b) { return x << b | x >> (64 - b); }

#define ROUND                                                    \
	do {                                                     \
		a += b, b = rotate(b, 13) ^ a, a = rotate(a, 32); \
		c += d, d = rotate(d, 16) ^ c;                    \
		a += d, d = rotate(d, 21) ^ a;                    \
		c += b, b = rotate(b, 17) ^ c, c = rotate(c, 32); \
	} while (0)

u64 hash_bytes(const u8 *p, u32 n)
{
	u64 a = key0 ^ 0x736f6d6570736575, b = key1 ^ 0x646f72616e646f6d;
	u64 c = key0 ^ 0x6c7967656e657261, d = key1 ^ 0x7465646279746573;
	u64 last = (u64)n << 56, word;
	for (; n >= 8; p += 8, n -= 8) {
		memcpy(&word, p, 8);
		d ^= word;
		ROUND;
		ROUND;
		a ^= word;
	}
	for (u32 i = 0; i < n; i++)
		last |= (u64)p[i] << (8 * i);
	d ^= last;
	ROUND;
	ROUND;
	a ^= last;
	c ^= 0xff;
	ROUND;
	ROUND;
	ROUND;
	ROUND;
	return a ^ b ^ c ^ d;
}

static bool cpu_has_crc;

void crc32c_use_cpu(void) { cpu_has_crc = true; }

u32 crc32c(u32 crc, const void *data, u32 n)
{
	const u8 *p = data;
	crc = ~crc;
	if (cpu_has_crc) {
		u64 wide = crc, word;
		for (; n >= 8; p += 8, n -= 8) {
			memcpy(&word, p, 8);
			__asm__("crc32q %1, %0" : "+r"(wide) : "r"(word));
		}
		crc = (u32)wide;
		for (; n; n--)
			__asm__("crc32b %1, %0" : "+r"(crc) : "r"(*p++));
		return ~crc;
	}
	// Half a byte at a time: 64 bytes of table are enough for the rare CPU without the instruction.
	static const u32 table[16] = {
	    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
	    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
	};
	for (; n; n--) {
		crc ^= *p++;
		crc = crc >> 4 ^ table[crc & 15];
		crc = crc >> 4 ^ table[crc & 15];
	}
	return ~crc;
}
