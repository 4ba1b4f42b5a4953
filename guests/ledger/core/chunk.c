#include "chunk.h"

void pool_init(struct pool *p, void *memory, u64 bytes)
{
	p->chunks = memory;
	p->count = (u32)min_u64(bytes / CHUNK_BYTES, 1u << 24);
	p->fresh = 1;
	p->free = 0;
	p->available = p->count - 1;
}

u32 pool_take(struct pool *p)
{
	u32 i = p->free;
	if (i)
		p->free = p->chunks[i].next;
	else if (p->fresh < p->count)
		i = p->fresh++;
	else
		return 0;
	p->available--;
	p->chunks[i].next = 0;
	p->chunks[i].start = p->chunks[i].end = 0;
	return i;
}

void pool_give(struct pool *p, u32 i)
{
	p->chunks[i].next = p->free;
	p->free = i;
	p->available++;
}

void stream_append(struct pool *p, struct stream *s, const u8 *from, u32 n)
{
	s->length += n;
	while (n) {
		struct chunk *c = &p->chunks[s->tail];
		if (!s->tail || c->end == CHUNK_DATA) {
			u32 i = pool_take(p);
			check(i, "a chunk pool is empty though room was reserved");
			if (s->tail)
				p->chunks[s->tail].next = i;
			else
				s->head = i;
			s->tail = i;
			c = &p->chunks[i];
		}
		u32 part = min_u32(n, CHUNK_DATA - c->end);
		memcpy(c->data + c->end, from, part);
		c->end = (u16)(c->end + part);
		from += part;
		n -= part;
	}
}

void stream_copy(const struct pool *p, const struct stream *s, u32 offset, u8 *to, u32 n)
{
	check(offset + n <= s->length, "copy beyond the end of a stream");
	for (u32 i = s->head; n; i = p->chunks[i].next) {
		const struct chunk *c = &p->chunks[i];
		u32 here = c->end - c->start;
		if (offset >= here) {
			offset -= here;
			continue;
		}
		u32 part = min_u32(n, here - offset);
		memcpy(to, c->data + c->start + offset, part);
		offset = 0;
		to += part;
		n -= part;
	}
}

void stream_drop(struct pool *p, struct stream *s, u32 n)
{
	check(n <= s->length, "drop beyond the end of a stream");
	s->length -= n;
	while (s->head) {
		struct chunk *c = &p->chunks[s->head];
		u32 part = min_u32(n, c->end - c->start);
		c->start = (u16)(c->start + part);
		n -= part;
		if (c->start < c->end)
			return;
		u32 next = c->next;
		pool_give(p, s->head);
		s->head = next;
	}
	s->tail = 0;
}
