// What TCP receives: RFC 9293, section 3.10.7, in the order given there.
#include "tcp_internal.h"
#include "hash.h"

#define HASH_SIZE 1024

struct conn tcp_connections[TCP_CONNECTIONS] __attribute__((aligned(4096), section(".bss.large")));
struct set tcp_open;
struct pool pool_in, pool_out;
struct tcp_counters tcp_counters;
static u32 connections_max;
static u16 chains[HASH_SIZE] __attribute__((section(".bss.large"))); // number + 1 of the first connection

// RFC 5961, section 10: challenge ACKs are limited, all connections together.
#define CHALLENGES_PER_SECOND 200
static u64 challenge_second;
static u32 challenges;

void tcp_init(u32 connections) { connections_max = min_u32(connections, TCP_CONNECTIONS); }

static u64 tuple_hash(u32 address, u16 port)
{
	u8 tuple[6];
	put32(tuple, address);
	put16(tuple + 4, port);
	return hash_bytes(tuple, sizeof tuple);
}

static struct conn *lookup(u32 address, u16 port)
{
	for (u32 i = chains[tuple_hash(address, port) % HASH_SIZE]; i; i = tcp_connections[i - 1].hash_next) {
		struct conn *c = &tcp_connections[i - 1];
		if (c->address == address && c->port == port)
			return c;
	}
	return NULL;
}

void tcp_free(struct conn *c)
{
	if (c->state == TCP_CLOSED)
		return;
	session_close(c);
	early_free(c);
	stream_drop(&pool_out, &c->out, c->out.length);
	u16 *link = &chains[tuple_hash(c->address, c->port) % HASH_SIZE];
	while (*link != tcp_number(c) + 1)
		link = &tcp_connections[*link - 1].hash_next;
	*link = c->hash_next;
	c->state = TCP_CLOSED;
	set_remove(&tcp_open, tcp_number(c));
	tcp_counters.connections--;
}

// A free slot; where there is none, that of a connection which is over or has not begun.
static struct conn *take_slot(void)
{
	for (u32 i = 0; i < connections_max; i++) // the lowest: few connections stay in few pages
		if (!set_has(&tcp_open, i))
			return &tcp_connections[i];
	struct conn *victim = NULL;
	for (u32 i = 0; i < connections_max; i++) {
		struct conn *c = &tcp_connections[i];
		if ((c->state == TCP_TIME_WAIT || c->state == TCP_SYN_RECEIVED) &&
		    (!victim || c->heard < victim->heard))
			victim = c;
	}
	if (victim)
		tcp_free(victim);
	return victim;
}

static void accept_syn(const struct segment *s)
{
	struct conn *c = take_slot();
	if (!c) {
		tcp_counters.refused++;
		return; // the client tries again
	}
	u64 now = machine_now();
	u64 h = tuple_hash(s->source, s->port);
	u16 *chain = &chains[h % HASH_SIZE];
	// RFC 9293, 3.4.1: a clock that ticks every 4 us, plus a keyed hash of the tuple.
	u32 initial = (u32)(now / 4) + (u32)(h >> 32);
	*c = (struct conn){
	    .address = s->source,
	    .port = s->port,
	    .hash_next = *chain,
	    .state = TCP_SYN_RECEIVED,
	    .window_shift = s->shift < 0 ? 255 : (u8)s->shift,
	    // A tiny MSS would make us send a storm of tiny segments.
	    .mss = (u16)max_u32(min_u32(s->mss ? s->mss : 536, MSS_OURS), 128),
	    .sack = s->sack,
	    .unacknowledged = initial,
	    .next = initial + 1,
	    .highest = initial + 1,
	    .out_sequence = initial + 1,
	    .limit = initial + 1,
	    .gate = initial + 1,
	    .window = s->window,
	    .window_max = s->window,
	    .window_sequence = s->sequence,
	    .receive_next = s->sequence + 1,
	    .acknowledged = s->sequence + 1,
	    .timeout = TIMEOUT_FIRST,
	    .slow_start_threshold = 1u << 30,
	    .recover = initial,
	    .timing = true,
	    .timing_sequence = initial,
	    .timing_since = now,
	    .retransmit_at = NEVER,
	    .ack_at = NEVER,
	    .heard = now,
	};
	c->congestion_window = 10u * c->mss; // RFC 6928
	*chain = (u16)(tcp_number(c) + 1);
	set_add(&tcp_open, tcp_number(c));
	tcp_counters.connections++;
	session_open(c);
	tcp_send_syn(c);
	tcp_arm(&c->retransmit_at, now + tcp_timeout(c));
}

static void challenge(struct conn *c)
{
	u64 second = machine_now() / SECOND;
	if (second != challenge_second) {
		challenge_second = second;
		challenges = 0;
	}
	if (challenges++ < CHALLENGES_PER_SECOND) {
		c->ack_now = true;
		tcp_touch(c);
	}
}

// RFC 6298, section 2; times in microseconds.
static void measured(struct conn *c, u32 r)
{
	if (!c->rtt) {
		c->rtt = max_u32(r, 1);
		c->rtt_variance = r / 2;
	} else {
		u32 difference = c->rtt > r ? c->rtt - r : r - c->rtt;
		c->rtt_variance = (3 * c->rtt_variance + difference) / 4;
		c->rtt = max_u32((u32)((7 * (u64)c->rtt + r) / 8), 1);
	}
	u64 t = c->rtt + max_u32(4 * c->rtt_variance, 1000);
	c->timeout = (u32)min_u64(max_u32((u32)min_u64(t, TIMEOUT_MAX), TIMEOUT_MIN), TIMEOUT_MAX);
}

static void enter_time_wait(struct conn *c)
{
	c->state = TCP_TIME_WAIT;
	c->persisting = false;
	early_free(c);
	tcp_arm(&c->retransmit_at, machine_now() + TIME_WAIT_LENGTH);
}

// An ACK that acknowledges something new.
static void progress(struct conn *c, u32 ack)
{
	u32 end = c->out_sequence + c->out.length;
	u32 acked = ack - c->unacknowledged;
	bool fin = c->close_wanted && after(ack, end);
	if (c->timing && after(ack, c->timing_sequence)) {
		c->timing = false;
		measured(c, (u32)min_u64(machine_now() - c->timing_since, TIMEOUT_MAX));
	}
	u32 data = ack - c->out_sequence - fin;
	stream_drop(&pool_out, &c->out, data);
	c->out_sequence += data;
	c->unacknowledged = ack;
	if (before(c->next, ack))
		c->next = ack;
	c->retries = 0;
	if (c->recovering && before(ack, c->recover)) {
		// A partial ACK: the next hole. RFC 6582, 3.2, step 3.
		tcp_retransmit_one(c);
		c->congestion_window -= min_u32(acked, c->congestion_window - c->mss);
		if (acked >= c->mss)
			c->congestion_window += c->mss;
	} else {
		if (c->recovering) {
			c->recovering = false;
			c->congestion_window = c->slow_start_threshold;
		} else if (c->congestion_window < c->slow_start_threshold) {
			c->congestion_window += min_u32(acked, c->mss);
		} else {
			c->congestion_window += max_u32((u32)c->mss * c->mss / c->congestion_window, 1);
		}
		c->congestion_window = min_u32(c->congestion_window, 1u << 24);
		c->duplicate_acks = 0;
	}
	tcp_expect_retransmission(c);
	if (fin) {
		if (c->state == TCP_FIN_WAIT_1) {
			c->state = TCP_FIN_WAIT_2;
			tcp_arm(&c->retransmit_at, machine_now() + FIN_WAIT_LENGTH);
		} else if (c->state == TCP_CLOSING) {
			enter_time_wait(c);
		} else if (c->state == TCP_LAST_ACK) {
			tcp_free(c);
			return;
		}
	}
	tcp_touch(c);
	if (data)
		session_sent(c);
}

static void duplicate(struct conn *c)
{
	if (c->duplicate_acks < 255)
		c->duplicate_acks++;
	if (c->recovering) {
		c->congestion_window = min_u32(c->congestion_window + c->mss, 1u << 24);
	} else if (c->duplicate_acks == 3 && after(c->unacknowledged, c->recover - 1)) {
		// RFC 5681, 3.2 with RFC 6582's guard against a second reduction for one loss
		c->recovering = true;
		c->recover = c->highest;
		c->slow_start_threshold = max_u32((c->highest - c->unacknowledged) / 2, 2u * c->mss);
		tcp_retransmit_one(c);
		c->congestion_window = c->slow_start_threshold + 3u * c->mss;
		tcp_expect_retransmission(c);
	}
	tcp_touch(c);
}

// Returns false where the segment's text must not be looked at any more.
static bool acknowledgement(struct conn *c, const struct segment *s)
{
	u32 window = s->window << (c->window_shift == 255 ? 0 : c->window_shift);
	if (c->state == TCP_SYN_RECEIVED) {
		if (!after(s->ack, c->unacknowledged) || after(s->ack, c->highest)) {
			tcp_send_reset(s, TCP_PORT);
			return false;
		}
		c->state = TCP_ESTABLISHED;
		tcp_counters.accepted++;
		c->window = window;
		c->window_max = window;
		c->window_sequence = s->sequence;
		c->window_ack = s->ack;
		c->unacknowledged = s->ack; // the SYN
		if (c->timing && !c->retries)
			measured(c, (u32)min_u64(machine_now() - c->timing_since, TIMEOUT_MAX));
		c->timing = false;
		c->retries = 0;
		c->retransmit_at = NEVER;
		tcp_due(machine_now() + KEEPALIVE_IDLE);
		return true;
	}
	// RFC 5961, section 5
	if (after(s->ack, c->highest) || before(s->ack, c->unacknowledged - max_u32(c->window_max, TCP_WINDOW))) {
		challenge(c);
		return false;
	}
	bool newer = before(c->window_sequence, s->sequence) ||
	             (c->window_sequence == s->sequence && !after(c->window_ack, s->ack));
	bool same_window = window == c->window, probing = c->persisting;
	if (newer) {
		c->window = window;
		c->window_max = max_u32(c->window_max, window);
		c->window_sequence = s->sequence;
		c->window_ack = s->ack;
		if (!same_window)
			tcp_touch(c);
	}
	if (c->persisting) {
		c->retries = window ? 0 : c->retries;
		if (window) { // output decides whether to persist again
			c->persisting = false;
			c->retransmit_at = NEVER;
		}
		tcp_touch(c);
	}
	if (after(s->ack, c->unacknowledged))
		progress(c, s->ack);
	else if (s->ack == c->unacknowledged && c->unacknowledged != c->highest && same_window && !probing &&
	         !s->data.n && !(s->flags & FIN))
		duplicate(c);
	return c->state != TCP_CLOSED;
}

static void received_fin(struct conn *c)
{
	c->receive_next++;
	c->ack_now = true;
	tcp_touch(c);
	switch (c->state) {
	case TCP_ESTABLISHED:
		c->state = TCP_CLOSE_WAIT;
		session_end(c);
		break;
	case TCP_FIN_WAIT_1:
		c->state = TCP_CLOSING;
		break;
	case TCP_FIN_WAIT_2:
		enter_time_wait(c);
		break;
	}
}

static void text(struct conn *c, struct segment *s)
{
	bool fin = s->flags & FIN;
	if (!s->data.n && !fin)
		return;
	if (c->state != TCP_ESTABLISHED && c->state != TCP_FIN_WAIT_1 && c->state != TCP_FIN_WAIT_2)
		return;
	if (before(s->sequence, c->receive_next)) { // cut off what is here already
		u32 known = c->receive_next - s->sequence;
		if (known > s->data.n + fin)
			return;
		known = min_u32(known, s->data.n);
		s->sequence += known;
		s->data.p += known;
		s->data.n -= known;
	}
	u32 room = c->advertised - s->sequence;
	if (s->data.n > room) { // beyond the window
		s->data.n = room;
		fin = false;
	}
	if (s->sequence != c->receive_next) {
		tcp_counters.out_of_order++;
		early_add(c, s->sequence, s->data, fin);
		c->ack_now = true; // at once: RFC 5681, 4.2
		tcp_touch(c);
		return;
	}
	if (s->data.n) {
		if (!session_receive(c, s->data.p, s->data.n)) {
			c->ack_now = true;
			tcp_touch(c);
			return;
		}
		c->receive_next += s->data.n;
		if (c->early || c->receive_next - c->acknowledged >= 2 * MSS_OURS) {
			c->ack_now = true; // RFC 5681, 4.2: at least every second full segment, and when a hole fills
		} else if (c->ack_at == NEVER) {
			tcp_arm(&c->ack_at, machine_now() + ACK_DELAY);
		}
		tcp_touch(c);
	}
	if (c->early && !fin)
		fin = early_deliver(c);
	if (fin)
		received_fin(c);
}

static void input(struct conn *c, struct segment *s)
{
	u32 length = s->data.n + !!(s->flags & SYN) + !!(s->flags & FIN);
	u32 window = c->advertised - c->receive_next;

	// A new connection over one in TIME-WAIT: RFC 9293, 3.10.7.4 (RFC 6191)
	if (c->state == TCP_TIME_WAIT && s->flags == SYN && after(s->sequence, c->receive_next)) {
		tcp_free(c);
		accept_syn(s);
		return;
	}
	if (c->state == TCP_SYN_RECEIVED && s->flags == SYN && s->sequence + 1 == c->receive_next) {
		tcp_send_syn(c); // our SYN was lost, the client asks again
		return;
	}
	// First: is any of it in the window?
	u32 last = s->sequence + length - 1;
	bool acceptable;
	if (!length)
		acceptable = window ? s->sequence - c->receive_next < window : s->sequence == c->receive_next;
	else
		acceptable = window && (s->sequence - c->receive_next < window || last - c->receive_next < window);
	if (!acceptable) {
		if (s->flags & RST)
			return;
		if (c->state == TCP_TIME_WAIT && s->flags & FIN)
			enter_time_wait(c); // our last ACK was lost
		c->ack_now = true;
		tcp_touch(c);
		// The ACK field of a segment before the window is still good: a peer that repeats what was
		// lost on the way back, or probes a window that we have shut, may acknowledge as it does so.
		if (!(s->flags & ACK) || s->flags & SYN || c->state == TCP_SYN_RECEIVED)
			return;
		s->data.n = 0;
		s->flags &= (u8)~FIN;
		if (after(s->ack, c->unacknowledged) && !after(s->ack, c->highest))
			progress(c, s->ack);
		return;
	}
	// Second: RST. RFC 5961, section 3.2
	if (s->flags & RST) {
		if (s->sequence == c->receive_next)
			tcp_free(c);
		else
			challenge(c);
		return;
	}
	// Fourth: SYN. RFC 5961, section 4.2
	if (s->flags & SYN) {
		challenge(c);
		return;
	}
	if (!(s->flags & ACK))
		return;
	c->heard = machine_now();
	c->keepalives = 0;
	if (acknowledgement(c, s))
		text(c, s);
}

static void read_options(struct segment *s, const u8 *o, u32 n)
{
	while (n) {
		if (*o == 0)
			return;
		if (*o == 1) {
			o++, n--;
			continue;
		}
		if (n < 2 || o[1] < 2 || o[1] > n)
			return;
		if (o[0] == 2 && o[1] == 4)
			s->mss = get16(o + 2);
		else if (o[0] == 3 && o[1] == 3)
			s->shift = o[2] > 14 ? 14 : o[2];
		else if (o[0] == 4 && o[1] == 2)
			s->sack = true;
		n -= o[1];
		o += o[1];
	}
}

void tcp_input(const struct packet *p)
{
	const u8 *h = p->payload.p;
	u32 n = p->payload.n, header;
	tcp_counters.segments_in++;
	if (n < 20 || (header = (h[12] >> 4) * 4u) < 20 || header > n)
		return;
	u64 sum = checksum_pseudo(p->source, net_address, IP_TCP, n);
	if (checksum_end(checksum_add(sum, h, n))) {
		tcp_counters.bad_checksum++;
		return;
	}
	struct segment s = {
	    .source = p->source,
	    .port = get16(h),
	    .flags = h[13] & (FIN | SYN | RST | PSH | ACK),
	    .sequence = get32(h + 4),
	    .ack = get32(h + 8),
	    .window = get16(h + 14),
	    .data = {h + header, n - header},
	    .shift = -1,
	};
	u16 port = get16(h + 2);
	if (port != TCP_PORT) {
		tcp_send_reset(&s, port);
		return;
	}
	s.flags &= (u8)~PSH;
	struct conn *c = lookup(s.source, s.port);
	if (s.flags & SYN)
		read_options(&s, h + 20, header - 20);
	if (c)
		input(c, &s);
	else if (s.flags == SYN && s.port)
		accept_syn(&s);
	else
		tcp_send_reset(&s, TCP_PORT);
}

void tcp_write(struct conn *c, const void *p, u32 n)
{
	stream_append(&pool_out, &c->out, p, n);
	tcp_touch(c);
}

void tcp_doom(struct conn *c)
{
	c->doomed = true;
	tcp_touch(c);
}

void tcp_close(struct conn *c)
{
	if (c->close_wanted)
		return;
	c->close_wanted = true;
	if (c->state == TCP_ESTABLISHED)
		c->state = TCP_FIN_WAIT_1;
	else if (c->state == TCP_CLOSE_WAIT)
		c->state = TCP_LAST_ACK;
	tcp_touch(c);
}
