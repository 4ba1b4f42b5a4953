// Byte queues made of small chunks out of a common pool. A connection that waits for nothing
// owns no chunk, a short reply takes a sixteenth of a page, and the pool gives back the chunk
// that was freed last: few pages are written for each request, which is what a checkpoint costs.
#ifndef LEDGER_CHUNK_H
#define LEDGER_CHUNK_H

#include "base.h"

#define CHUNK_BYTES 256
#define CHUNK_DATA (CHUNK_BYTES - 8)

struct chunk {
	u32 next; // number in the pool; 0 is none
	u16 start, end;
	u8 data[CHUNK_DATA];
};

struct pool {
	struct chunk *chunks; // chunks[0] is not used
	u32 count;            // of chunks, with the unused one
	u32 fresh;            // chunks from here on were never used
	u32 free;             // the one freed last
	u32 available;
};

struct stream {
	u32 head, tail, length; // length in bytes
};

void pool_init(struct pool *p, void *memory, u64 bytes);
u32 pool_take(struct pool *p); // 0 when none is left
void pool_give(struct pool *p, u32 chunk);

// The chunks that n bytes need at most.
static inline u32 chunks_for(u32 n) { return n / CHUNK_DATA + 2; }

// Appends n bytes. The caller has seen to it that chunks_for(n) are available.
void stream_append(struct pool *p, struct stream *s, const u8 *from, u32 n);
// Copies n bytes from offset on; they must be there.
void stream_copy(const struct pool *p, const struct stream *s, u32 offset, u8 *to, u32 n);
// Forgets the first n bytes.
void stream_drop(struct pool *p, struct stream *s, u32 n);

#endif
