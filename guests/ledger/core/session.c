#include "session.h"
#include "commands.h"
#include "journal.h"
#include "machine.h"

#define OUT_HIGH (64 * KIB) // replies a peer may leave with us before its requests have to wait
#define SCRATCH (REQUEST_MAX + 64) // a request that is in pieces is put together here
#define STARVED_AFTER (30 * SECOND)

static u8 scratch[SCRATCH] __attribute__((section(".bss.large")));
static struct request request __attribute__((section(".bss.request")));
static u64 last_id;
static struct set gated;                        // connections with replies that wait for the journal
static struct set waiting_pool, waiting_journal; // sessions that session_resume looks at
static bool journal_moved;
static bool starved_in;
static struct set ended; // the peer has closed its side

static u32 out_end(const struct conn *c) { return c->out_sequence + c->out.length; }

// Lets what was written since `from` go once the batch is durable, and not before what precedes it.
static void release_after(struct conn *c, u32 from, u64 batch)
{
	u32 end = out_end(c);
	bool free_before = c->limit == from;
	if (free_before && batch <= journal_durable()) {
		c->limit = c->gate = end;
		return;
	}
	if (free_before) {
		c->gate = from;
		set_add(&gated, tcp_number(c));
	}
	if (c->gate == from && batch <= journal_flying())
		c->gate = end;
}

void session_commit_started(void)
{
	for (u32 i = set_next(&gated, 0); i < SET_MAX; i = set_next(&gated, i + 1))
		tcp_connections[i].gate = out_end(&tcp_connections[i]);
}

void session_commit_done(void)
{
	for (u32 i = set_next(&gated, 0); i < SET_MAX; i = set_next(&gated, i + 1)) {
		struct conn *c = &tcp_connections[i];
		c->limit = c->gate;
		if (c->limit == out_end(c))
			set_remove(&gated, i);
		tcp_touch(c);
	}
	journal_moved = true;
}

void session_commit_failed(void)
{
	// Whether these writes have survived is not known: neither "done" nor "error" would be true.
	for (u32 i = set_next(&gated, 0); i < SET_MAX; i = set_next(&gated, i + 1))
		tcp_abort(&tcp_connections[i]);
	journal_moved = true;
}

void session_open(struct conn *c)
{
	c->session = (struct session){.id = ++last_id, .protocol = 2};
}

void session_close(struct conn *c)
{
	u32 i = tcp_number(c);
	stream_drop(&pool_in, &c->session.in, c->session.in.length);
	command_forget(c);
	set_remove(&gated, i);
	set_remove(&waiting_pool, i);
	set_remove(&waiting_journal, i);
	set_remove(&ended, i);
}

static void wait_for(struct conn *c, enum wait w)
{
	c->session.waiting = (u8)w;
	if (w == WAIT_POOL)
		set_add(&waiting_pool, tcp_number(c));
	if (w == WAIT_JOURNAL)
		set_add(&waiting_journal, tcp_number(c));
}

static bool room_for_reply(struct conn *c)
{
	enum wait w = WAIT_NOT;
	if (c->out.length >= OUT_HIGH)
		w = WAIT_SENT;
	else if (pool_out.available < chunks_for(REPLY_MAX))
		w = WAIT_POOL;
	wait_for(c, w);
	return w == WAIT_NOT;
}

static void tell(struct conn *c, const char *text)
{
	u32 from = out_end(c);
	reply_text(c, text);
	release_after(c, from, 0);
}

// Runs the whole requests in p. Returns how many bytes are dealt with; the rest is incomplete, has to
// wait, or belongs to a request that is skipped.
static u32 run(struct conn *c, const u8 *p, u32 n)
{
	struct session *s = &c->session;
	u32 done = 0;
	s->need = 0;
	while (done < n) {
		if (s->quit)
			return n;
		if (!room_for_reply(c))
			return done;
		switch (resp_parse(p + done, n - done, &request)) {
		case PARSE_MORE:
			s->need = request.need;
			return done;
		case PARSE_SKIP:
			s->skipping = request.skip_reason;
			s->skip_bytes = request.skip_bytes;
			s->skip_arguments = request.skip_arguments;
			return done + request.consumed;
		case PARSE_BROKEN:
			tell(c, request.error);
			s->quit = true;
			break;
		case PARSED:
			if (request.argc) {
				u64 batch;
				u32 from = out_end(c);
				u32 consumed = request.consumed;
				enum wait w = command_run(c, &request, &batch);
				if (w != WAIT_NOT) {
					wait_for(c, w);
					return done;
				}
				if (batch > journal_durable() && journal_dead()) {
					// What was seen will never be durable. Don't tell anybody.
					s->quit = true;
					tcp_doom(c);
					return n;
				}
				release_after(c, from, batch);
				done += consumed;
			} else {
				done += request.consumed;
			}
			break;
		}
		if (s->quit) {
			tcp_close(c);
			return n;
		}
	}
	return done;
}

// Drops what belongs to a request over our limits. Returns true when something was done.
static bool skip(struct conn *c)
{
	struct session *s = &c->session;
	if (s->skip_bytes) {
		u32 n = (u32)min_u64(s->skip_bytes, s->in.length);
		stream_drop(&pool_in, &s->in, n);
		s->skip_bytes -= n;
		return n;
	}
	if (s->skip_arguments) {
		u8 head[40];
		u32 n = min_u32(s->in.length, sizeof head);
		stream_copy(&pool_in, &s->in, 0, head, n);
		switch (n ? resp_bulk(head, n, &request) : PARSE_MORE) {
		case PARSED:
			stream_drop(&pool_in, &s->in, request.consumed);
			s->skip_bytes = request.skip_bytes + 2;
			s->skip_arguments--;
			return true;
		case PARSE_BROKEN:
			if (!room_for_reply(c))
				return false;
			tell(c, request.error);
			s->skipping = SKIP_NOT;
			s->quit = true;
			tcp_close(c);
			return true;
		default:
			return false;
		}
	}
	if (!room_for_reply(c))
		return false;
	static const char *const why[] = {
	    [SKIP_ARGUMENT] = "-ERR an argument is longer than 65536 bytes\r\n",
	    [SKIP_REQUEST] = "-ERR the request is longer than 196608 bytes\r\n",
	    [SKIP_COUNT] = "-ERR the request has more than 1024 arguments\r\n",
	};
	tell(c, why[s->skipping]);
	s->skipping = SKIP_NOT;
	s->need = 0;
	return true;
}

static void pump(struct conn *c)
{
	struct session *s = &c->session;
	s->waiting = WAIT_NOT;
	for (;;) {
		if (s->quit) {
			stream_drop(&pool_in, &s->in, s->in.length);
			break;
		}
		if (s->skipping) {
			if (!skip(c))
				break;
			continue;
		}
		if (!s->in.length || s->in.length < s->need)
			break;
		u32 n = min_u32(s->in.length, SCRATCH);
		stream_copy(&pool_in, &s->in, 0, scratch, n);
		u32 used = run(c, scratch, n);
		stream_drop(&pool_in, &s->in, used);
		if (s->waiting || (!used && !s->skipping))
			break;
	}
	if (!s->waiting && set_has(&ended, tcp_number(c)))
		tcp_close(c);
}

bool session_receive(struct conn *c, const u8 *p, u32 n)
{
	struct session *s = &c->session;
	if (s->quit)
		return true;
	if (pool_in.available < chunks_for(n)) {
		starved_in = true;
		return false;
	}
	if (!s->in.length && !s->skipping && !s->waiting) {
		u32 used = run(c, p, n);
		p += used;
		n -= used;
	}
	if (n)
		stream_append(&pool_in, &s->in, p, n);
	if (!s->waiting && (s->in.length || s->skipping))
		pump(c);
	return true;
}

void session_end(struct conn *c)
{
	set_add(&ended, tcp_number(c));
	if (!c->session.waiting)
		tcp_close(c); // the rest, if any, is no whole request
}

void session_sent(struct conn *c)
{
	if (c->session.waiting == WAIT_SENT && c->out.length < OUT_HIGH / 2)
		pump(c);
}

u32 session_window(const struct conn *c)
{
	if (!c->session.waiting)
		return TCP_WINDOW;
	return TCP_WINDOW - min_u32(c->session.in.length, TCP_WINDOW);
}

static void resume(struct set *waiters)
{
	struct set these = *waiters;
	*waiters = (struct set){0};
	for (u32 i = set_next(&these, 0); i < SET_MAX; i = set_next(&these, i + 1))
		if (tcp_connections[i].state != TCP_CLOSED) {
			pump(&tcp_connections[i]);
			tcp_touch(&tcp_connections[i]); // its window may have grown
		}
}

// Memory for requests or replies has run out: who holds some and does not move gives it up. RFC 9293,
// 3.8.6.1 leaves that to us: a peer with a shut window may not block all others.
static void reclaim(void)
{
	u64 now = machine_now();
	for (u32 i = set_next(&tcp_open, 0); i < SET_MAX; i = set_next(&tcp_open, i + 1)) {
		struct conn *c = &tcp_connections[i];
		bool deaf = c->persisting && c->retries >= 8 && c->out.length > KIB;
		bool mute = (c->session.in.length > KIB || c->early) && now - c->heard > STARVED_AFTER;
		if (deaf || mute)
			tcp_abort(c);
	}
}

void session_resume(void)
{
	if (journal_moved) {
		journal_moved = false;
		resume(&waiting_journal);
	}
	bool starved_out = set_next(&waiting_pool, 0) < SET_MAX;
	if (starved_out || starved_in) {
		starved_in = false;
		reclaim();
	}
	if (starved_out && pool_out.available >= chunks_for(MIB))
		resume(&waiting_pool);
}
