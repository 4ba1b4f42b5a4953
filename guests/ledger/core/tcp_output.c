// What TCP sends, and when: segments, acknowledgements, retransmissions, probes.
#include "tcp_internal.h"

static u64 tcp_next_deadline = NEVER; // no timer is due before
static struct set pending;     // connections that tcp_flush has to look at
static u32 flush_from;         // where it begins: behind the one that was sending when the NIC got full

u64 tcp_deadline(void) { return tcp_next_deadline; }

void tcp_due(u64 at)
{
	if (at < tcp_next_deadline)
		tcp_next_deadline = at;
}

void tcp_arm(u64 *timer, u64 at)
{
	*timer = at;
	tcp_due(at);
}

void tcp_touch(struct conn *c) { set_add(&pending, tcp_number(c)); }

u64 tcp_timeout(const struct conn *c)
{
	u64 t = (u64)c->timeout << min_u32(c->retries, 12);
	return min_u64(t, TIMEOUT_MAX);
}

static u32 window_edge(const struct conn *c)
{
	u32 edge = c->receive_next + session_window(c);
	return before(edge, c->advertised) ? c->advertised : edge; // never taken back: RFC 9293, 3.8.6
}

static void finish(u8 *h, u32 header, u32 length, u32 to)
{
	h[12] = (u8)(header / 4 << 4);
	put16(h + 16, 0);
	put16(h + 18, 0);
	u64 sum = checksum_pseudo(net_address, to, IP_TCP, length);
	put16(h + 16, checksum_end(checksum_add(sum, h, length)));
	tcp_counters.segments_out++;
	ip_send();
}

// Sends a segment with n bytes of out from sequence number on.
static enum ip_result emit(struct conn *c, u32 sequence, u8 flags, u32 n)
{
	u8 *h, blocks[24];
	u32 count = c->early && c->sack ? early_blocks(c, blocks, n + 20 + 28 > IP_PAYLOAD_MAX ? 0 : 3) : 0;
	u32 options = count ? 4 + 8 * count : 0;
	enum ip_result r = ip_begin(c->address, IP_TCP, 20 + options + n, &h);
	if (r == IP_BUSY)
		return r;
	if (h) {
		put16(h, TCP_PORT);
		put16(h + 2, c->port);
		put32(h + 4, sequence);
		put32(h + 8, c->receive_next);
		h[13] = flags;
		u32 edge = window_edge(c);
		put16(h + 14, (u16)(edge - c->receive_next));
		if (count) {
			h[20] = h[21] = 1;
			h[22] = 5;
			h[23] = (u8)(2 + 8 * count);
			memcpy(h + 24, blocks, 8 * count);
		}
		if (n)
			stream_copy(&pool_out, &c->out, sequence - c->out_sequence, h + 20 + options, n);
		finish(h, 20 + options, 20 + options + n, c->address);
		c->advertised = edge;
	}
	// Lost on its way out or not: the peer has been told.
	c->acknowledged = c->receive_next;
	c->ack_now = false;
	c->ack_at = NEVER;
	return IP_SENT;
}

enum ip_result tcp_send_syn(struct conn *c)
{
	u8 *h;
	u32 options = 4 + (c->window_shift != 255 ? 4 : 0) + (c->sack ? 4 : 0);
	enum ip_result r = ip_begin(c->address, IP_TCP, 20 + options, &h);
	if (r == IP_BUSY || !h)
		return r;
	put16(h, TCP_PORT);
	put16(h + 2, c->port);
	put32(h + 4, c->unacknowledged);
	put32(h + 8, c->receive_next);
	h[13] = SYN | ACK;
	put16(h + 14, TCP_WINDOW);
	u8 *o = h + 20;
	*o++ = 2, *o++ = 4; // maximum segment size
	put16(o, MSS_OURS);
	o += 2;
	if (c->window_shift != 255) { // RFC 7323: the peer's scale holds only if we send one too
		*o++ = 1, *o++ = 3, *o++ = 3, *o++ = 0;
	}
	if (c->sack) {
		*o++ = 1, *o++ = 1, *o++ = 4, *o++ = 2;
	}
	c->advertised = c->receive_next + TCP_WINDOW;
	finish(h, 20 + options, 20 + options, c->address);
	return IP_SENT;
}

void tcp_send_reset(const struct segment *s, u16 from)
{
	u8 *h;
	if (s->flags & RST || ip_begin(s->source, IP_TCP, 20, &h) == IP_BUSY || !h)
		return;
	// RFC 9293, 3.10.7.1
	put16(h, from);
	put16(h + 2, s->port);
	put16(h + 14, 0);
	if (s->flags & ACK) {
		put32(h + 4, s->ack);
		put32(h + 8, 0);
		h[13] = RST;
	} else {
		put32(h + 4, 0);
		put32(h + 8, s->sequence + s->data.n + !!(s->flags & SYN) + !!(s->flags & FIN));
		h[13] = RST | ACK;
	}
	finish(h, 20, 20, s->source);
}

void tcp_abort(struct conn *c)
{
	if (c->state != TCP_TIME_WAIT && c->state != TCP_CLOSED)
		emit(c, c->next, RST | ACK, 0);
	tcp_free(c);
}

void tcp_expect_retransmission(struct conn *c)
{
	c->persisting = false;
	if (c->unacknowledged == c->highest)
		c->retransmit_at = NEVER;
	else
		tcp_arm(&c->retransmit_at, machine_now() + tcp_timeout(c));
}

// The first segment that is not acknowledged, again.
void tcp_retransmit_one(struct conn *c)
{
	u32 end = c->out_sequence + c->out.length;
	u32 n = min_u32(c->highest - c->unacknowledged, c->mss);
	bool fin = false;
	if (before(end, c->unacknowledged + n)) { // the FIN is in it
		n = end - c->unacknowledged;
		fin = true;
	}
	if (emit(c, c->unacknowledged, ACK | (fin ? FIN : PSH), n) == IP_BUSY)
		tcp_touch(c); // the timer will do it
	c->timing = false; // Karn: RFC 6298, section 3
	tcp_counters.retransmitted++;
}

// Sends new data as far as the windows go, else an ACK if one is due. False: the NIC is full.
static bool output(struct conn *c)
{
	if (c->state == TCP_SYN_RECEIVED || c->state == TCP_TIME_WAIT)
		goto acknowledge;
	u32 window = min_u32(c->window, c->congestion_window + (c->duplicate_acks < 3 ? c->duplicate_acks * c->mss : 0u));
	for (;;) {
		u32 end = c->out_sequence + c->out.length;
		s32 left = (s32)(c->limit - c->next);
		s32 room = (s32)(c->unacknowledged + window - c->next);
		u32 n = 0;
		bool fin = false;
		if (left > 0) {
			n = min_u32((u32)left, c->mss);
			// Silly window avoidance: less than a segment only if it is at least half of what
			// the peer ever offered, and nothing is under way. RFC 9293, 3.8.6.2.1.
			if (room < (s32)n) {
				if (room <= 0 || c->next != c->unacknowledged || (u32)room < c->window_max / 2)
					break;
				n = (u32)room;
			}
		}
		fin = c->close_wanted && c->next + n == end && c->limit == end;
		if (!n && !fin)
			break;
		u8 flags = ACK | (n && n == (u32)left ? PSH : 0) | (fin ? FIN : 0);
		if (emit(c, c->next, flags, n) == IP_BUSY)
			return false;
		if (c->next != c->highest)
			tcp_counters.retransmitted++;
		else if (!c->timing) {
			c->timing = true;
			c->timing_sequence = c->next;
			c->timing_since = machine_now();
		}
		c->next += n + fin;
		if (after(c->next, c->highest))
			c->highest = c->next;
		if (c->retransmit_at == NEVER || c->persisting)
			tcp_expect_retransmission(c);
	}
	// Something to send, nothing under way that would evoke an ACK: the peer's window is shut, and the
	// word that it opens may get lost.
	if (after(c->limit, c->next) && c->next == c->unacknowledged && c->retransmit_at == NEVER) {
		c->persisting = true;
		tcp_arm(&c->retransmit_at, machine_now() + tcp_timeout(c));
	}
acknowledge:
	// A window that has been small and has grown is worth a segment of its own.
	if (c->state == TCP_ESTABLISHED && c->advertised - c->receive_next < TCP_WINDOW / 2 &&
	    window_edge(c) - c->advertised >= 2 * MSS_OURS)
		c->ack_now = true;
	if (c->ack_now && c->state != TCP_SYN_RECEIVED)
		return emit(c, c->next, ACK, 0) != IP_BUSY;
	return true;
}

// Sends for the pending connections from `from` on, below `until`. False: the NIC got full.
static bool flush_range(u32 from, u32 until)
{
	for (u32 i = set_next(&pending, from); i < until; i = set_next(&pending, i + 1)) {
		struct conn *c = &tcp_connections[i];
		if (c->state != TCP_CLOSED && c->doomed)
			tcp_abort(c);
		if (c->state != TCP_CLOSED && !output(c)) {
			flush_from = i + 1 < SET_MAX ? i + 1 : 0;
			return false;
		}
		set_remove(&pending, i);
	}
	return true;
}

void tcp_flush(void)
{
	u32 from = flush_from;
	if (flush_range(from, SET_MAX))
		flush_range(0, from);
}

static void probe(struct conn *c)
{
	// One byte that the peer has already acknowledged (an empty segment before the window): any TCP
	// answers it with an ACK that carries its window.
	if (c->window && c->limit != c->next) {
		// The window is open but silly: after this wait, send what fits. RFC 9293, 3.8.6.2.1, (4).
		u32 n = min_u32(min_u32(c->limit - c->next, c->window), c->mss);
		if (emit(c, c->next, ACK | PSH, n) == IP_SENT) {
			c->next += n;
			if (after(c->next, c->highest))
				c->highest = c->next;
			tcp_expect_retransmission(c);
			return;
		}
	} else {
		emit(c, c->unacknowledged - 1, ACK, 0);
	}
	if (c->retries < 12)
		c->retries++;
	tcp_arm(&c->retransmit_at, machine_now() + tcp_timeout(c));
}

static void timed_out(struct conn *c)
{
	u64 now = machine_now();
	c->retransmit_at = NEVER;
	switch (c->state) {
	case TCP_TIME_WAIT:
	case TCP_FIN_WAIT_2:
		tcp_free(c);
		return;
	case TCP_SYN_RECEIVED:
		if (c->retries++ >= RETRIES_SYN) {
			tcp_free(c);
			return;
		}
		tcp_send_syn(c);
		tcp_counters.retransmitted++;
		tcp_arm(&c->retransmit_at, now + tcp_timeout(c));
		return;
	}
	if (c->persisting) {
		if (now - c->heard > 2 * TIMEOUT_MAX + 5 * SECOND && c->retries >= 6)
			tcp_abort(c); // nobody has answered any probe
		else
			probe(c);
		return;
	}
	if (!c->window && before(c->unacknowledged, c->out_sequence + c->out.length)) {
		// The peer took its window back while data were under way. It lives, and answers probes.
		c->next = c->unacknowledged;
		c->persisting = true;
		probe(c);
		return;
	}
	if (c->retries++ >= RETRIES_MAX) {
		tcp_abort(c);
		return;
	}
	// RFC 5681, 3.1 and RFC 6582, section 4
	u32 flight = c->highest - c->unacknowledged;
	if (c->retries == 1)
		c->slow_start_threshold = max_u32(flight / 2, 2u * c->mss);
	c->congestion_window = c->mss;
	c->recover = c->highest;
	c->recovering = false;
	c->duplicate_acks = 0;
	c->timing = false;
	c->next = c->unacknowledged;
	tcp_touch(c);
	tcp_arm(&c->retransmit_at, now + tcp_timeout(c));
}

static void keep_alive(struct conn *c)
{
	if (c->keepalives >= KEEPALIVE_TRIES) {
		tcp_abort(c);
		return;
	}
	c->keepalives++;
	emit(c, c->unacknowledged - 1, ACK, 0); // tcp_timers looks when the next one is due
}

static u64 keep_alive_at(const struct conn *c)
{
	if (c->state != TCP_ESTABLISHED)
		return NEVER;
	return c->heard + KEEPALIVE_IDLE + c->keepalives * (u64)KEEPALIVE_INTERVAL;
}

void tcp_timers(u64 now)
{
	if (now < tcp_next_deadline)
		return;
	tcp_next_deadline = NEVER;
	for (u32 i = set_next(&tcp_open, 0); i < SET_MAX; i = set_next(&tcp_open, i + 1)) {
		struct conn *c = &tcp_connections[i];
		if (c->ack_at <= now) {
			c->ack_at = NEVER;
			c->ack_now = true;
			tcp_touch(c);
		}
		if (c->retransmit_at <= now)
			timed_out(c);
		if (c->state != TCP_CLOSED && keep_alive_at(c) <= now)
			keep_alive(c);
		if (c->state != TCP_CLOSED) {
			u64 at = min_u64(min_u64(c->retransmit_at, c->ack_at), keep_alive_at(c));
			tcp_next_deadline = min_u64(tcp_next_deadline, at);
		}
	}
}
