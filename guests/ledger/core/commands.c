#include "commands.h"
#include "journal.h"
#include "ledger.h"
#include "load.h"
#include "machine.h"
#include "session.h"
#include "store.h"
#include "text.h"

#define NAME_MAX 32
#define MGET_MAX (1 * MIB)

struct call {
	struct conn *c;
	u32 argc;
	const struct slice *argv;
	u64 batch; // see command_run
};

static u32 command_count(void);
static char names[TCP_CONNECTIONS][NAME_MAX] __attribute__((section(".bss.large"))); // CLIENT SETNAME; written only when used
static u64 last_delete, last_change;          // journal batches
u64 commands_run;

// ---- replies ----

void reply_text(struct conn *c, const char *s) { tcp_write(c, s, text_length(s)); }

static void reply_head(struct conn *c, char type, s64 n)
{
	char line[24];
	line[0] = type;
	u32 length = 1 + format_signed(line + 1, n);
	line[length++] = '\r';
	line[length++] = '\n';
	tcp_write(c, line, length);
}

static void reply_integer(struct conn *c, s64 v) { reply_head(c, ':', v); }

static void reply_bulk(struct conn *c, struct slice s)
{
	reply_head(c, '$', s.n);
	tcp_write(c, s.p, s.n);
	reply_text(c, "\r\n");
}

static void reply_string(struct conn *c, const char *s)
{
	reply_bulk(c, (struct slice){(const u8 *)s, text_length(s)});
}

static void reply_null(struct conn *c) { reply_text(c, c->session.protocol == 3 ? "_\r\n" : "$-1\r\n"); }

static void reply_map(struct conn *c, u32 pairs)
{
	reply_head(c, c->session.protocol == 3 ? '%' : '*', c->session.protocol == 3 ? pairs : 2 * pairs);
}

static enum wait answer(struct call *k, const char *s)
{
	reply_text(k->c, s);
	return WAIT_NOT;
}

static enum wait wrong_arguments(struct call *k)
{
	return answer(k, "-ERR wrong number of arguments, or a form of this command that Ledger does not have\r\n");
}

// ---- arguments ----

static bool is(struct slice a, const char *upper)
{
	u32 i = 0;
	for (; i < a.n && upper[i]; i++) {
		u8 c = a.p[i];
		if (c >= 'a' && c <= 'z')
			c -= 32;
		if (c != (u8)upper[i])
			return false;
	}
	return i == a.n && !upper[i];
}

// ---- strings ----

// May the mutation go on? Otherwise *w says what to return; a refusal has been answered.
static bool admitted(struct call *k, u32 bytes, s64 growth, enum wait *w)
{
	*w = WAIT_NOT;
	switch (journal_room(bytes, growth)) {
	case ROOM:
		k->batch = last_change = journal_open();
		return true;
	case ROOM_WAIT:
		*w = WAIT_JOURNAL;
		return false;
	case ROOM_NONE:
		reply_text(k->c, "-ERR the journal disk is full\r\n");
		return false;
	case ROOM_DEAD:
		reply_text(k->c, "-ERR there is no usable journal disk: writes are refused\r\n");
		return false;
	}
	return false;
}

static const char out_of_memory[] = "-OOM memory is full\r\n";

static s64 growth_of(const struct entry *old, u32 key, u32 value)
{
	return (s64)journal_record_size(key, value) - (old ? journal_record_size(old->key_length, old->value_length) : 0);
}

// Stores one value, durably. True when done; otherwise as admitted.
static bool put(struct call *k, struct slice key, struct slice value, enum wait *w)
{
	const struct entry *old = store_find(key);
	if (!admitted(k, journal_record_size(key.n, value.n), growth_of(old, key.n, value.n), w))
		return false;
	struct entry *e = store_prepare(key, value.n);
	if (!e) {
		reply_text(k->c, out_of_memory);
		return false;
	}
	journal_add(JOURNAL_SET, key, value);
	store_commit(e, value, k->batch);
	return true;
}

// What a reader of this key has seen: the batch that must be durable before anybody is told.
static u64 seen(const struct entry *e) { return e ? e->batch : last_delete; }

static void saw(struct call *k, const struct entry *e)
{
	if (seen(e) > k->batch)
		k->batch = seen(e);
}

static void reply_value(struct call *k, const struct entry *e)
{
	saw(k, e);
	if (e)
		reply_bulk(k->c, entry_value(e));
	else
		reply_null(k->c);
}

static enum wait do_get(struct call *k)
{
	reply_value(k, store_find(k->argv[1]));
	return WAIT_NOT;
}

static enum wait do_set(struct call *k)
{
	bool only_new = false, only_old = false, get = false;
	for (u32 i = 3; i < k->argc; i++) {
		struct slice a = k->argv[i];
		if (is(a, "NX") && !only_old)
			only_new = true;
		else if (is(a, "XX") && !only_new)
			only_old = true;
		else if (is(a, "GET"))
			get = true;
		else if (is(a, "EX") || is(a, "PX") || is(a, "EXAT") || is(a, "PXAT") || is(a, "KEEPTTL"))
			return answer(k, "-ERR Ledger keeps what it is given: keys don't expire\r\n");
		else
			return answer(k, "-ERR syntax error\r\n");
	}
	struct slice key = k->argv[1], value = k->argv[2];
	struct entry *old = store_find(key);
	if ((only_new && old) || (only_old && !old)) {
		saw(k, old);
		if (get)
			reply_value(k, old);
		else
			reply_null(k->c);
		return WAIT_NOT;
	}
	enum wait w;
	if (!get)
		return put(k, key, value, &w) ? answer(k, "+OK\r\n") : w;
	// The old value is part of the reply, and gone once the new one is in.
	if (!admitted(k, journal_record_size(key.n, value.n), growth_of(old, key.n, value.n), &w))
		return w;
	struct entry *e = store_prepare(key, value.n);
	if (!e)
		return answer(k, out_of_memory);
	if (old)
		reply_bulk(k->c, entry_value(old));
	else
		reply_null(k->c);
	journal_add(JOURNAL_SET, key, value);
	store_commit(e, value, k->batch);
	return WAIT_NOT;
}

static enum wait do_setnx(struct call *k)
{
	enum wait w;
	struct entry *old = store_find(k->argv[1]);
	if (old) {
		saw(k, old);
		reply_integer(k->c, 0);
		return WAIT_NOT;
	}
	return put(k, k->argv[1], k->argv[2], &w) ? answer(k, ":1\r\n") : w;
}

static enum wait do_getset(struct call *k)
{
	struct slice argv[4] = {k->argv[0], k->argv[1], k->argv[2], {(const u8 *)"GET", 3}};
	const struct slice *kept = k->argv;
	k->argv = argv;
	k->argc = 4;
	enum wait w = do_set(k);
	k->argv = kept;
	return w;
}

// Is pair i of an MSET overruled by a later pair with the same key?
static bool overruled(const struct call *k, u32 i)
{
	struct slice key = k->argv[1 + 2 * i];
	for (u32 j = 3 + 2 * i; j < k->argc; j += 2)
		if (k->argv[j].n == key.n && !memcmp(k->argv[j].p, key.p, key.n))
			return true;
	return false;
}

static enum wait do_mset(struct call *k)
{
	static struct entry *prepared[ARGUMENTS_MAX / 2] __attribute__((section(".bss.large"))); // null: overruled
	if (k->argc % 2 == 0)
		return wrong_arguments(k);
	u32 bytes = 0, n = k->argc / 2;
	s64 growth = 0;
	for (u32 i = 0; i < n; i++) {
		struct slice key = k->argv[1 + 2 * i], value = k->argv[2 + 2 * i];
		if (key.n > KEY_MAX)
			return answer(k, "-ERR the key is longer than 512 bytes\r\n");
		bytes += journal_record_size(key.n, value.n);
		growth += growth_of(store_find(key), key.n, value.n);
	}
	enum wait w;
	if (!admitted(k, bytes, growth, &w))
		return w;
	for (u32 i = 0; i < n; i++) { // all or nothing
		prepared[i] = NULL;
		if (overruled(k, i))
			continue;
		prepared[i] = store_prepare(k->argv[1 + 2 * i], k->argv[2 + 2 * i].n);
		if (!prepared[i]) {
			while (i--)
				if (prepared[i])
					store_discard(prepared[i]);
			return answer(k, out_of_memory);
		}
	}
	for (u32 i = 0; i < n; i++)
		if (prepared[i]) {
			journal_add(JOURNAL_SET, k->argv[1 + 2 * i], k->argv[2 + 2 * i]);
			store_commit(prepared[i], k->argv[2 + 2 * i], k->batch);
		}
	return answer(k, "+OK\r\n");
}

static enum wait do_mget(struct call *k)
{
	u32 bytes = 0;
	for (u32 i = 1; i < k->argc; i++) {
		const struct entry *e = store_find(k->argv[i]);
		bytes += 24 + (e ? e->value_length : 0);
	}
	if (bytes > MGET_MAX)
		return answer(k, "-ERR the values of this MGET are longer than 1 MiB in all\r\n");
	if (pool_out.available < chunks_for(bytes))
		return WAIT_POOL;
	reply_head(k->c, '*', k->argc - 1);
	for (u32 i = 1; i < k->argc; i++)
		reply_value(k, store_find(k->argv[i]));
	return WAIT_NOT;
}

static enum wait add_to(struct call *k, s64 delta)
{
	struct entry *old = store_find(k->argv[1]);
	s64 v = 0;
	if (old && !parse_signed(entry_value(old), &v)) {
		saw(k, old);
		return answer(k, "-ERR value is not an integer or out of range\r\n");
	}
	if (__builtin_add_overflow(v, delta, &v)) {
		saw(k, old);
		return answer(k, "-ERR increment or decrement would overflow\r\n");
	}
	char digits[20];
	enum wait w;
	struct slice value = {(const u8 *)digits, format_signed(digits, v)};
	if (!put(k, k->argv[1], value, &w))
		return w;
	reply_integer(k->c, v);
	return WAIT_NOT;
}

static enum wait do_incr(struct call *k) { return add_to(k, 1); }
static enum wait do_decr(struct call *k) { return add_to(k, -1); }

static enum wait do_incrby(struct call *k)
{
	s64 delta;
	if (!parse_signed(k->argv[2], &delta))
		return answer(k, "-ERR value is not an integer or out of range\r\n");
	return add_to(k, delta);
}

static enum wait do_decrby(struct call *k)
{
	s64 delta;
	if (!parse_signed(k->argv[2], &delta) || delta == INT64_MIN)
		return answer(k, "-ERR value is not an integer or out of range\r\n");
	return add_to(k, -delta);
}

static enum wait do_append(struct call *k)
{
	struct slice key = k->argv[1], more = k->argv[2];
	struct entry *e = store_find(key);
	enum wait w;
	if (!e) {
		if (put(k, key, more, &w))
			reply_integer(k->c, more.n);
		return w;
	}
	if (e->value_length + more.n > VALUE_MAX) {
		saw(k, e);
		return answer(k, "-ERR string exceeds maximum allowed size (65536 bytes)\r\n");
	}
	if (!admitted(k, journal_record_size(key.n, more.n), growth_of(e, key.n, e->value_length + more.n), &w))
		return w;
	e = store_grow(e, more.n);
	if (!e)
		return answer(k, out_of_memory);
	journal_add(JOURNAL_APPEND, key, more);
	store_extend(e, more, k->batch);
	reply_integer(k->c, e->value_length);
	return WAIT_NOT;
}

static enum wait do_strlen(struct call *k)
{
	const struct entry *e = store_find(k->argv[1]);
	saw(k, e);
	reply_integer(k->c, e ? e->value_length : 0);
	return WAIT_NOT;
}

static enum wait do_exists(struct call *k)
{
	u32 n = 0;
	for (u32 i = 1; i < k->argc; i++) {
		const struct entry *e = store_find(k->argv[i]);
		saw(k, e);
		n += !!e;
	}
	reply_integer(k->c, n);
	return WAIT_NOT;
}

static enum wait do_type(struct call *k)
{
	const struct entry *e = store_find(k->argv[1]);
	saw(k, e);
	return answer(k, e ? "+string\r\n" : "+none\r\n");
}

static enum wait do_ttl(struct call *k)
{
	const struct entry *e = store_find(k->argv[1]);
	saw(k, e);
	reply_integer(k->c, e ? -1 : -2);
	return WAIT_NOT;
}

static enum wait do_del(struct call *k)
{
	u32 bytes = 0, found = 0;
	for (u32 i = 1; i < k->argc; i++)
		if (store_find(k->argv[i]))
			bytes += journal_record_size(k->argv[i].n, 0), found++;
		else
			saw(k, NULL);
	if (found) {
		enum wait w;
		if (!admitted(k, bytes, 0, &w))
			return w;
		found = 0;
		for (u32 i = 1; i < k->argc; i++) // a key named twice is deleted once
			if (store_delete(k->argv[i])) {
				journal_add(JOURNAL_DELETE, k->argv[i], (struct slice){0});
				found++;
			}
		last_delete = k->batch;
	}
	reply_integer(k->c, found);
	return WAIT_NOT;
}

static enum wait do_flush(struct call *k)
{
	enum wait w;
	if (!admitted(k, journal_record_size(0, 0), 0, &w))
		return w;
	journal_add(JOURNAL_CLEAR, (struct slice){0}, (struct slice){0});
	store_clear();
	last_delete = k->batch;
	return answer(k, "+OK\r\n");
}

static enum wait do_dbsize(struct call *k)
{
	k->batch = last_change;
	reply_integer(k->c, (s64)store_counters.keys);
	return WAIT_NOT;
}

// ---- connection and server ----

static enum wait do_ping(struct call *k)
{
	if (k->argc == 1)
		return answer(k, "+PONG\r\n");
	reply_bulk(k->c, k->argv[1]);
	return WAIT_NOT;
}

static enum wait do_echo(struct call *k)
{
	reply_bulk(k->c, k->argv[1]);
	return WAIT_NOT;
}

static enum wait do_quit(struct call *k)
{
	k->c->session.quit = true;
	return answer(k, "+OK\r\n");
}

static enum wait do_select(struct call *k)
{
	return answer(k, is(k->argv[1], "0") ? "+OK\r\n" : "-ERR DB index is out of range\r\n");
}

static bool set_name(struct call *k, struct slice name)
{
	if (name.n >= NAME_MAX) {
		reply_text(k->c, "-ERR a client's name has at most 31 characters\r\n");
		return false;
	}
	for (u32 i = 0; i < name.n; i++)
		if (name.p[i] < '!' || name.p[i] > '~') {
			reply_text(k->c, "-ERR Client names cannot contain spaces, newlines or special characters.\r\n");
			return false;
		}
	char *to = names[tcp_number(k->c)];
	memcpy(to, name.p, name.n);
	to[name.n] = 0;
	return true;
}

static enum wait do_hello(struct call *k)
{
	u32 i = 1;
	u8 protocol = k->c->session.protocol;
	if (k->argc > 1) {
		if (!is(k->argv[1], "2") && !is(k->argv[1], "3"))
			return answer(k, "-NOPROTO unsupported protocol version\r\n");
		protocol = k->argv[1].p[0] - '0';
		i = 2;
	}
	for (; i < k->argc; i++) {
		if (is(k->argv[i], "SETNAME") && i + 1 < k->argc) {
			if (!set_name(k, k->argv[++i]))
				return WAIT_NOT;
		} else if (is(k->argv[i], "AUTH") && i + 2 < k->argc) {
			return answer(k, "-ERR AUTH <password> called without any password configured\r\n");
		} else {
			return answer(k, "-ERR Syntax error in HELLO\r\n");
		}
	}
	k->c->session.protocol = protocol;
	reply_map(k->c, 7);
	reply_string(k->c, "server");
	reply_string(k->c, "redis");
	reply_string(k->c, "version");
	reply_string(k->c, LEDGER_REDIS_VERSION);
	reply_string(k->c, "proto");
	reply_integer(k->c, protocol);
	reply_string(k->c, "id");
	reply_integer(k->c, (s64)k->c->session.id);
	reply_string(k->c, "mode");
	reply_string(k->c, "standalone");
	reply_string(k->c, "role");
	reply_string(k->c, "master");
	reply_string(k->c, "modules");
	reply_head(k->c, '*', 0);
	return WAIT_NOT;
}

static enum wait do_client(struct call *k)
{
	struct slice sub = k->argv[1];
	char *name = names[tcp_number(k->c)];
	if (is(sub, "ID") && k->argc == 2) {
		reply_integer(k->c, (s64)k->c->session.id);
		return WAIT_NOT;
	}
	if (is(sub, "GETNAME") && k->argc == 2) {
		if (*name)
			reply_string(k->c, name);
		else
			reply_null(k->c);
		return WAIT_NOT;
	}
	if (is(sub, "SETNAME") && k->argc == 3)
		return set_name(k, k->argv[2]) ? answer(k, "+OK\r\n") : WAIT_NOT;
	if ((is(sub, "SETINFO") && k->argc == 4) || is(sub, "NO-EVICT") || is(sub, "NO-TOUCH"))
		return answer(k, "+OK\r\n");
	return answer(k, "-ERR unknown subcommand of CLIENT\r\n");
}

static enum wait do_config(struct call *k)
{
	if (is(k->argv[1], "RESETSTAT"))
		return answer(k, "+OK\r\n");
	if (!is(k->argv[1], "GET") || k->argc != 3)
		return answer(k, "-ERR Ledger is configured on its kernel command line\r\n");
	struct slice what = k->argv[2];
	const char *value = NULL;
	if (is(what, "SAVE"))
		value = "";
	else if (is(what, "APPENDONLY"))
		value = journal_open() ? "yes" : "no";
	else if (is(what, "DATABASES"))
		value = "1";
	reply_map(k->c, !!value);
	if (value) {
		reply_bulk(k->c, what);
		reply_string(k->c, value);
	}
	return WAIT_NOT;
}

static enum wait do_command(struct call *k)
{
	if (k->argc > 1 && is(k->argv[1], "COUNT"))
		reply_integer(k->c, command_count());
	else if (k->argc > 1 && is(k->argv[1], "DOCS"))
		reply_map(k->c, 0);
	else
		reply_head(k->c, '*', 0);
	return WAIT_NOT;
}

static void line(struct text *t, const char *name, u64 value)
{
	text_add(t, name);
	text_add(t, ":");
	text_number(t, value);
	text_add(t, "\r\n");
}

static enum wait do_info(struct call *k)
{
	TEXT(t, 4096);
	k->batch = last_change; // it tells of the number of keys
	text_add(&t, "# Server\r\nredis_version:" LEDGER_REDIS_VERSION "\r\nredis_mode:standalone\r\nserver_name:ledger\r\n");
	line(&t, "tcp_port", TCP_PORT);
	line(&t, "uptime_in_seconds", machine_now() / SECOND);
	text_add(&t, "\r\n# Clients\r\n");
	line(&t, "connected_clients", tcp_counters.connections);
	text_add(&t, "\r\n# Memory\r\n");
	line(&t, "used_memory", store_counters.bytes_used);
	line(&t, "maxmemory", store_counters.bytes_total);
	line(&t, "reply_chunks_free", pool_out.available);
	line(&t, "request_chunks_free", pool_in.available);
	text_add(&t, "\r\n# Persistence\r\njournal_state:");
	text_add(&t, journal_state());
	text_add(&t, "\r\n");
	line(&t, "journal_generation", journal_counters.generation);
	line(&t, "journal_batches", journal_counters.batches);
	line(&t, "journal_records", journal_counters.records);
	line(&t, "journal_bytes", journal_counters.bytes);
	line(&t, "journal_compactions", journal_counters.compactions);
	line(&t, "journal_replayed_records", journal_counters.replayed);
	line(&t, "journal_errors", journal_counters.errors);
	line(&t, "journal_live_bytes", store_counters.journal_bytes);
	text_add(&t, "\r\n# Stats\r\n");
	line(&t, "total_connections_received", tcp_counters.accepted);
	line(&t, "total_commands_processed", commands_run);
	line(&t, "rejected_connections", tcp_counters.refused);
	line(&t, "frames_in", net_counters.frames_in);
	line(&t, "frames_out", net_counters.frames_out);
	line(&t, "frames_dropped", net_counters.dropped);
	line(&t, "tcp_segments_retransmitted", tcp_counters.retransmitted);
	line(&t, "tcp_segments_out_of_order", tcp_counters.out_of_order);
	line(&t, "tcp_bad_checksums", tcp_counters.bad_checksum);
	text_add(&t, "\r\n# Replication\r\nrole:master\r\nconnected_slaves:0\r\n");
	text_add(&t, "\r\n# Load (LEDGER.DIRTY pages_per_second bytes_per_page [pages]; LEDGER.BURN 0|1; LEDGER.COUNT; LEDGER.TIME; LEDGER.POWEROFF)\r\n");
	line(&t, "ledger_dirty_pages_per_second", load.pages_per_second);
	line(&t, "ledger_dirty_bytes_per_page", load.bytes_per_page);
	line(&t, "ledger_dirty_arena_pages", load.pages);
	line(&t, "ledger_dirty_arena_pages_max", load.pages_max);
	line(&t, "ledger_dirtied_pages", load.dirtied);
	line(&t, "ledger_burning", load.burning);
	line(&t, "ledger_burn_count", load.count);
	text_add(&t, "\r\n# Keyspace\r\n");
	if (store_counters.keys) {
		text_add(&t, "db0:keys=");
		text_number(&t, store_counters.keys);
		text_add(&t, ",expires=0,avg_ttl=0\r\n");
	}
	reply_string(k->c, t.at);
	return WAIT_NOT;
}

// ---- for measurements ----

static enum wait do_dirty(struct call *k)
{
	s64 rate, bytes, pages = 0;
	if (!parse_signed(k->argv[1], &rate) || !parse_signed(k->argv[2], &bytes) ||
	    (k->argc == 4 && !parse_signed(k->argv[3], &pages)) || rate < 0 || bytes < 0 || pages < 0 ||
	    !load_dirty((u64)rate, (u64)bytes, (u64)pages))
		return answer(k, "-ERR LEDGER.DIRTY pages_per_second(0 to 10000000) changed_bytes_per_page(0 to 4096) "
		                 "[pages of the arena, see INFO]\r\n");
	return answer(k, "+OK\r\n");
}

static enum wait do_burn(struct call *k)
{
	if (!is(k->argv[1], "0") && !is(k->argv[1], "1"))
		return answer(k, "-ERR LEDGER.BURN 0|1\r\n");
	load.burning = k->argv[1].p[0] == '1';
	return answer(k, "+OK\r\n");
}

static enum wait do_count(struct call *k)
{
	reply_integer(k->c, (s64)load.count);
	return WAIT_NOT;
}

static enum wait do_time(struct call *k)
{
	reply_integer(k->c, (s64)machine_now());
	return WAIT_NOT;
}

static enum wait do_poweroff(struct call *k)
{
	ledger_power_off();
	return answer(k, "+OK\r\n");
}

// ---- dispatch ----

static const struct command {
	const char *name;
	enum wait (*run)(struct call *);
	u16 arguments, most; // with the name itself
	u16 key;             // the key's place, 0: none
} commands[] = {
    {"GET", do_get, 2, 2, 1},
    {"SET", do_set, 3, 7, 1},
    {"PING", do_ping, 1, 2, 0},
    {"INCR", do_incr, 2, 2, 1},
    {"DECR", do_decr, 2, 2, 1},
    {"INCRBY", do_incrby, 3, 3, 1},
    {"DECRBY", do_decrby, 3, 3, 1},
    {"MSET", do_mset, 3, ARGUMENTS_MAX, 1},
    {"MGET", do_mget, 2, ARGUMENTS_MAX, 1},
    {"DEL", do_del, 2, ARGUMENTS_MAX, 1},
    {"UNLINK", do_del, 2, ARGUMENTS_MAX, 1},
    {"EXISTS", do_exists, 2, ARGUMENTS_MAX, 1},
    {"APPEND", do_append, 3, 3, 1},
    {"STRLEN", do_strlen, 2, 2, 1},
    {"SETNX", do_setnx, 3, 3, 1},
    {"GETSET", do_getset, 3, 3, 1},
    {"TYPE", do_type, 2, 2, 1},
    {"TTL", do_ttl, 2, 2, 1},
    {"PTTL", do_ttl, 2, 2, 1},
    {"ECHO", do_echo, 2, 2, 0},
    {"DBSIZE", do_dbsize, 1, 1, 0},
    {"INFO", do_info, 1, ARGUMENTS_MAX, 0},
    {"CONFIG", do_config, 2, ARGUMENTS_MAX, 0},
    {"COMMAND", do_command, 1, ARGUMENTS_MAX, 0},
    {"HELLO", do_hello, 1, 8, 0},
    {"CLIENT", do_client, 2, ARGUMENTS_MAX, 0},
    {"SELECT", do_select, 2, 2, 0},
    {"FLUSHALL", do_flush, 1, 2, 0},
    {"FLUSHDB", do_flush, 1, 2, 0},
    {"QUIT", do_quit, 1, ARGUMENTS_MAX, 0},
    {"LEDGER.DIRTY", do_dirty, 3, 4, 0},
    {"LEDGER.BURN", do_burn, 2, 2, 0},
    {"LEDGER.COUNT", do_count, 1, 1, 0},
    {"LEDGER.TIME", do_time, 1, 1, 0},
    {"LEDGER.POWEROFF", do_poweroff, 1, 1, 0},
};

static u32 command_count(void) { return countof(commands); }

static enum wait unknown(struct call *k)
{
	TEXT(t, 128);
	char name[33];
	u32 n = min_u32(k->argv[0].n, 32);
	for (u32 i = 0; i < n; i++) {
		u8 c = k->argv[0].p[i];
		name[i] = c >= ' ' && c <= '~' ? (char)c : '?';
	}
	name[n] = 0;
	text_add(&t, "-ERR unknown command '");
	text_add(&t, name);
	text_add(&t, "'\r\n");
	return answer(k, t.at);
}

enum wait command_run(struct conn *c, const struct request *r, u64 *batch)
{
	struct call k = {c, r->argc, r->argv, 0};
	enum wait w = WAIT_NOT;
	const struct command *found = NULL;
	for (u32 i = 0; i < countof(commands) && !found; i++)
		if (is(r->argv[0], commands[i].name))
			found = &commands[i];
	if (!found)
		w = unknown(&k);
	else if (r->argc < found->arguments || r->argc > found->most)
		w = wrong_arguments(&k);
	else if (found->key && r->argv[found->key].n > KEY_MAX)
		w = answer(&k, "-ERR the key is longer than 512 bytes\r\n");
	else
		w = found->run(&k);
	if (w == WAIT_NOT)
		commands_run++;
	*batch = k.batch;
	return w;
}

void command_forget(struct conn *c)
{
	char *name = names[tcp_number(c)];
	if (*name)
		*name = 0;
}
