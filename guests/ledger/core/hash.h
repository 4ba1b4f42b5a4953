#ifndef LEDGER_HASH_H
#define LEDGER_HASH_H

#include "base.h"

// SipHash-2-4 (Aumasson, Bernstein 2012) with a key drawn at boot: the hash table and the
// TCP sequence numbers must not be predictable from outside.
void hash_seed(u64 k0, u64 k1);
u64 hash_bytes(const u8 *p, u32 n);

// CRC-32C (Castagnoli), as SSE4.2 computes it. Start with crc = 0.
u32 crc32c(u32 crc, const void *data, u32 n);
// Lets crc32c use the CPU's instruction.
void crc32c_use_cpu(void);

#endif
