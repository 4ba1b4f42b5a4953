// Segments that came out of order, sorted by sequence number, disjoint. Each is a stream whose
// first chunk is a header. Bounded by the window, by a count, and by the pool: what finds no room is
// not acknowledged, so the peer sends it again.
#include "tcp_internal.h"

#define EARLY_MAX 48

struct early {
	u32 sequence;
	u32 following; // number of the next header chunk, 0 at the end
	struct stream data;
	bool fin; // a FIN follows the data
};

static struct early *at(u32 i) { return (struct early *)pool_in.chunks[i].data; }

static u32 end_of(const struct early *e) { return e->sequence + e->data.length; }

static u32 release(u32 i)
{
	struct early *e = at(i);
	u32 following = e->following;
	stream_drop(&pool_in, &e->data, e->data.length);
	pool_give(&pool_in, i);
	return following;
}

bool early_add(struct conn *c, u32 sequence, struct slice data, bool fin)
{
	u32 *link = &c->early;
	c->early_latest = sequence;
	while (*link && !after(at(*link)->sequence, sequence)) {
		struct early *e = at(*link);
		if (before(sequence, end_of(e))) { // its beginning is here already
			u32 overlap = min_u32(end_of(e) - sequence, data.n);
			sequence += overlap;
			data.p += overlap;
			data.n -= overlap;
		}
		if (!data.n) {
			if (fin && sequence == end_of(e))
				e->fin = true;
			return true;
		}
		link = &e->following;
	}
	while (*link && !after(end_of(at(*link)), sequence + data.n)) { // those it covers
		fin |= at(*link)->fin && end_of(at(*link)) == sequence + data.n;
		*link = release(*link);
		c->early_count--;
	}
	if (*link && before(at(*link)->sequence, sequence + data.n)) { // its end is here already
		data.n = at(*link)->sequence - sequence;
		fin = false;
	}
	if (c->early_count == EARLY_MAX || pool_in.available < 1 + chunks_for(data.n))
		return false;
	u32 i = pool_take(&pool_in);
	struct early *e = at(i);
	*e = (struct early){.sequence = sequence, .following = *link, .fin = fin};
	stream_append(&pool_in, &e->data, data.p, data.n);
	*link = i;
	c->early_count++;
	return true;
}

bool early_deliver(struct conn *c)
{
	while (c->early && !after(at(c->early)->sequence, c->receive_next)) {
		struct early *e = at(c->early);
		u32 known = min_u32(c->receive_next - e->sequence, e->data.length);
		stream_drop(&pool_in, &e->data, known);
		e->sequence += known;
		while (e->data.length) {
			struct chunk *k = &pool_in.chunks[e->data.head];
			u32 n = k->end - k->start;
			if (!session_receive(c, k->data + k->start, n))
				return false;
			c->receive_next += n;
			e->sequence += n;
			stream_drop(&pool_in, &e->data, n);
		}
		bool fin = e->fin && e->sequence == c->receive_next;
		c->early = release(c->early);
		c->early_count--;
		if (fin)
			return true;
	}
	return false;
}

void early_free(struct conn *c)
{
	while (c->early)
		c->early = release(c->early);
	c->early_count = 0;
}

u32 early_blocks(const struct conn *c, u8 *to, u32 max)
{
	u32 n = 0;
	struct {
		u32 from, until;
	} found[EARLY_MAX];
	u32 count = 0, latest = 0;
	for (u32 i = c->early; i; i = at(i)->following) { // join neighbours
		const struct early *e = at(i);
		if (count && found[count - 1].until == e->sequence)
			found[count - 1].until = end_of(e);
		else
			found[count].from = e->sequence, found[count++].until = end_of(e);
		if (!before(c->early_latest, e->sequence) && before(c->early_latest, end_of(e)))
			latest = count - 1;
	}
	for (u32 k = 0; k < count && n < max; k++) { // RFC 2018, section 4: the one just received comes first
		u32 i = (latest + k) % count;
		put32(to + 8 * n, found[i].from);
		put32(to + 8 * n + 4, found[i].until);
		n++;
	}
	return n;
}
