// Trials of Ledger's core in one process, on a machine made of arrays: seeded, without a real clock,
// under the sanitizers. Ends with 0, or says which seed went wrong and how.
//
//	ledger-trial packets SEED COUNT   hostile frames: nothing may break, nothing may leak
//	ledger-trial streams SEED COUNT   well-behaved clients on a wire that loses, doubles, swaps and delays:
//	                                  every reply must be the right one
//	ledger-trial splits SEED COUNT    mutated requests, once whole and once in pieces: same replies
//	ledger-trial crashes SEED COUNT   power cuts at any disk request: what was acknowledged is back, and
//	                                  the rest is a prefix of what was asked for
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../core/journal.h"
#include "../core/ledger.h"
#include "../core/net.h"
#include "../core/resp.h"
#include "../core/session.h"
#include "../core/store.h"
#include "../core/tcp.h"
#include "../core/text.h"
#include "hosted.h"

#define MEMORY (24 * MIB)
#define SERVER 0x0a000005u
#define CLIENT 0x0a000001u

static struct noise noise;
static u64 seed_now; // of the round being played
static u64 clock_us = 1000000;

#define FAIL(...)                                                          \
	do {                                                               \
		fprintf(stderr, "seed %llu: ", (unsigned long long)seed_now); \
		fprintf(stderr, __VA_ARGS__);                              \
		fputc('\n', stderr);                                       \
		exit(1);                                                   \
	} while (0)

static u32 pick(u32 below) { return (u32)(noise_next(&noise) % below); }

// ---- the machine ----

u8 nic_mac[6] = {2, 0, 0, 0, 0, 5};
static const u8 client_mac[6] = {2, 0, 0, 0, 0, 1};

void panic(const char *why) { FAIL("panic: %s", why); }
u64 machine_now(void) { return clock_us; }
u64 machine_random(void) { return noise_next(&noise); }
void machine_log(const char *text) { (void)text; }
void machine_poweroff(void) { FAIL("it powered itself off"); }

struct sent {
	u32 length;
	u8 frame[FRAME_MAX];
};
#define SENT_MAX 4096
static struct sent *sent[SENT_MAX]; // frames from Ledger, on the wire
static u32 sent_count;
static u8 *buffer;
static u32 nic_full_percent;

u8 *nic_buffer(u32 size)
{
	check(!buffer, "two transmit buffers at once");
	if (noise_percent(&noise, nic_full_percent))
		return NULL;
	return buffer = malloc(size); // the sanitizer sees what goes beyond
}

void nic_transmit(u8 *frame, u32 length)
{
	check(frame == buffer && length <= FRAME_MAX, "a foreign frame");
	buffer = NULL;
	if (sent_count < SENT_MAX) {
		struct sent *s = malloc(sizeof *s);
		s->length = length;
		memcpy(s->frame, frame, length);
		sent[sent_count++] = s;
	}
	free(frame);
}

void nic_kick(void) {}

// The disk: what a power cut leaves is flushed, plus any part of what was written since.
struct disk {
	u32 sectors;
	u32 error_percent;
	u8 stable[]; // then the cache, of the same size, then one "unflushed" byte a sector
};
static struct disk *disk;
static bool disk_pending, disk_result;
static s32 requests_until_cut = -1; // -1: no cut
static _Noreturn void power_cut(void);

static u8 *cache(void) { return disk->stable + (size_t)disk->sectors * SECTOR; }
static u8 *unflushed(void) { return cache() + (size_t)disk->sectors * SECTOR; }

u64 disk_sectors(void) { return disk ? disk->sectors : 0; }
u32 disk_unit(void) { return SECTOR; }

static bool perform(enum disk_op op, u64 sector, u8 *data, u32 bytes)
{
	bool cut = requests_until_cut >= 0 && requests_until_cut-- == 0;
	bool fails = !cut && noise_percent(&noise, disk->error_percent);
	u32 whole = bytes / SECTOR;
	if (op != DISK_FLUSH)
		check(bytes % SECTOR == 0 && sector + whole <= disk->sectors, "a request beyond the disk");
	for (u32 i = 0; i < whole && op == DISK_WRITE; i++) {
		if ((cut || fails) && noise_next(&noise) % 2)
			continue; // this sector was not reached
		memcpy(cache() + (sector + i) * SECTOR, data + (size_t)i * SECTOR, SECTOR);
		unflushed()[sector + i] = 1;
	}
	if (op == DISK_READ)
		memcpy(data, cache() + sector * SECTOR, bytes);
	if (op == DISK_FLUSH && !cut && !fails)
		for (u32 i = 0; i < disk->sectors; i++)
			if (unflushed()[i]) {
				memcpy(disk->stable + (size_t)i * SECTOR, cache() + (size_t)i * SECTOR, SECTOR);
				unflushed()[i] = 0;
			}
	if (cut)
		power_cut();
	return !fails;
}

bool disk_transfer(enum disk_op op, u64 sector, void *data, u32 bytes) { return perform(op, sector, data, bytes); }

void disk_start(enum disk_op op, u64 sector, void *data, u32 bytes)
{
	check(!disk_pending, "two disk requests at once");
	disk_result = perform(op, sector, data, bytes);
	disk_pending = true;
}

// After a cut, or at random: sectors that were written and not flushed have landed or not.
static void settle(void)
{
	for (u32 i = 0; i < disk->sectors; i++)
		if (unflushed()[i]) {
			unflushed()[i] = 0;
			if (noise_next(&noise) % 2)
				memcpy(disk->stable + (size_t)i * SECTOR, cache() + (size_t)i * SECTOR, SECTOR);
			else
				memcpy(cache() + (size_t)i * SECTOR, disk->stable + (size_t)i * SECTOR, SECTOR);
		}
}

static void step(void)
{
	if (disk_pending && noise_next(&noise) % 3 == 0) {
		disk_pending = false;
		journal_disk_done(disk_result);
	}
	ledger_step(clock_us);
	// Whoever sleeps until the deadline must not sleep through a timer.
	for (u32 i = set_next(&tcp_open, 0); i < SET_MAX; i = set_next(&tcp_open, i + 1)) {
		const struct conn *c = &tcp_connections[i];
		check(tcp_deadline() <= min_u64(c->retransmit_at, c->ack_at), "a timer is later than the deadline");
		check(c->unacknowledged == c->highest || c->retransmit_at != NEVER || nic_full_percent, "data under way and no timer");
		check(!c->session.skipping || !c->session.quit, "a session that has quit skips");
	}
}

// ---- a client ----

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10

struct client {
	u16 port;
	bool open, reset, peer_closed;
	u32 initial;       // our first data byte has sequence number initial + 1
	u32 peer_initial;
	u8 *request;       // the whole of what is to be sent
	u32 request_length;
	u32 acknowledged;  // bytes of it
	u8 *reply;         // received so far
	u32 reply_length, reply_room;
	u16 window;
};

static bool honest = true; // the clients keep to the rules, so Ledger has no excuse

static u32 frame_build(u8 *f, u16 port, u32 sequence, u32 ack, u8 flags, u16 window, const u8 *options, u32 options_length,
                       const u8 *data, u32 n)
{
	u32 tcp = 20 + options_length + n;
	memcpy(f, nic_mac, 6);
	memcpy(f + 6, client_mac, 6);
	put16(f + 12, 0x0800);
	u8 *h = f + 14;
	memset(h, 0, 20);
	h[0] = 0x45;
	put16(h + 2, (u16)(20 + tcp));
	h[8] = 64;
	h[9] = IP_TCP;
	put32(h + 12, CLIENT);
	put32(h + 16, SERVER);
	put16(h + 10, checksum_end(checksum_add(0, h, 20)));
	u8 *t = h + 20;
	memset(t, 0, 20);
	put16(t, port);
	put16(t + 2, TCP_PORT);
	put32(t + 4, sequence);
	put32(t + 8, ack);
	t[12] = (u8)((20 + options_length) / 4 << 4);
	t[13] = flags;
	put16(t + 14, window);
	if (options_length)
		memcpy(t + 20, options, options_length);
	if (n)
		memcpy(t + 20 + options_length, data, n);
	put16(t + 16, checksum_end(checksum_add(checksum_pseudo(CLIENT, SERVER, IP_TCP, tcp), t, tcp)));
	return 34 + tcp;
}

static void repair_checksums(u8 *f, u32 length)
{
	if (length < 54)
		return;
	u8 *h = f + 14, *t = h + 20;
	u32 tcp = length - 34;
	put16(h + 10, 0);
	put16(h + 10, checksum_end(checksum_add(0, h, 20)));
	put16(t + 16, 0);
	put16(t + 16, checksum_end(checksum_add(checksum_pseudo(get32(h + 12), SERVER, IP_TCP, tcp), t, tcp)));
}

static void deliver(const u8 *f, u32 length)
{
	u8 *copy = malloc(length ? length : 1);
	memcpy(copy, f, length);
	net_input(copy, length);
	free(copy);
}

static void client_send(struct client *c, u8 flags, u32 offset, u32 n)
{
	u8 f[FRAME_MAX];
	u32 length = frame_build(f, c->port, c->initial + 1 + offset, c->peer_initial + 1 + c->reply_length + c->peer_closed,
	                         flags, c->window, NULL, 0, c->request + offset, n);
	deliver(f, length);
}

static void client_syn(struct client *c)
{
	u8 f[FRAME_MAX];
	static const u8 options[] = {2, 4, 5, 180, 4, 2, 1, 1, 1, 3, 3, 2};
	u32 n = pick(3) * 4;
	deliver(f, frame_build(f, c->port, c->initial, 0, SYN, c->window, options, n, NULL, 0));
}

// A frame from Ledger reaches the client.
static void client_hear(struct client *c, const u8 *f, u32 length)
{
	const u8 *h = f + 14, *t = h + 20;
	if (length < 54 || get16(f + 12) != 0x0800 || h[9] != IP_TCP || get16(t + 2) != c->port || get32(h + 16) != CLIENT)
		return;
	u32 total = get16(h + 2), tcp = total - 20, header = (t[12] >> 4) * 4u;
	if (total + 14 != length || checksum_end(checksum_add(checksum_pseudo(CLIENT, SERVER, IP_TCP, tcp), t, tcp)))
		FAIL("a frame with a wrong length or checksum");
	u32 sequence = get32(t + 4), ack = get32(t + 8), n = tcp - header;
	u8 flags = t[13];
	if (flags & RST) {
		c->reset = true;
		return;
	}
	if (flags & SYN) {
		if (c->open && c->peer_initial != sequence)
			return; // of an earlier life of this port
		c->open = true;
		c->peer_initial = sequence;
		return;
	}
	if (!c->open)
		return;
	u32 upto = ack - c->initial - 1;
	if (upto > c->request_length + 1 && honest)
		FAIL("it acknowledges what was never sent");
	if ((s32)(upto - c->acknowledged) > 0)
		c->acknowledged = min_u32(upto, c->request_length);
	u32 offset = sequence - (c->peer_initial + 1);
	if ((s32)(offset - c->reply_length) <= 0 && (s32)(offset + n - c->reply_length) > 0) {
		u32 known = c->reply_length - offset;
		u32 more = n - known;
		if (c->reply_length + more > c->reply_room)
			c->reply = realloc(c->reply, c->reply_room = 2 * (c->reply_length + more));
		memcpy(c->reply + c->reply_length, t + header + known, more);
		c->reply_length += more;
	}
	if (flags & FIN && offset + n == c->reply_length)
		c->peer_closed = true;
}

static void client_free(struct client *c)
{
	free(c->request);
	free(c->reply);
}

static void drop_sent(void)
{
	while (sent_count)
		free(sent[--sent_count]);
}

// Takes everything on the wire to the clients, through loss, doubling and swapping.
static void wire(struct client *clients, u32 count, u32 loss)
{
	while (sent_count) {
		u32 i = noise_percent(&noise, 20) ? pick(sent_count) : 0;
		struct sent *s = sent[i];
		memmove(sent + i, sent + i + 1, (sent_count - i - 1) * sizeof *sent);
		sent_count--;
		u32 copies = noise_percent(&noise, loss) ? 0 : 1 + noise_percent(&noise, 5);
		while (copies--)
			for (u32 k = 0; k < count; k++)
				client_hear(&clients[k], s->frame, s->length);
		free(s);
	}
}

static void *memory;

static void boot(const char *cmdline)
{
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!ledger_init(memory, MEMORY, cmdline))
		FAIL("it does not start");
	drop_sent();
}

// All connections gone: is every chunk back?
static void expect_no_leak(void)
{
	for (u32 i = 0; i < 200 && tcp_counters.connections; i++) {
		clock_us += 100 * SECOND;
		step();
		drop_sent();
	}
	if (tcp_counters.connections)
		FAIL("%u connections never end", tcp_counters.connections);
	if (pool_in.available != pool_in.count - 1 || pool_out.available != pool_out.count - 1)
		FAIL("chunks leak: %u of requests, %u of replies", pool_in.count - 1 - pool_in.available,
		     pool_out.count - 1 - pool_out.available);
}

// ---- requests and what to expect ----

struct script {
	u8 *bytes, *expected;
	u32 length, room, expected_length, expected_room;
};

static void put_bytes(u8 **to, u32 *length, u32 *room, const void *p, u32 n)
{
	if (*length + n > *room)
		*to = realloc(*to, *room = 2 * (*length + n) + 256);
	memcpy(*to + *length, p, n);
	*length += n;
}

static void ask(struct script *s, const void *p, u32 n) { put_bytes(&s->bytes, &s->length, &s->room, p, n); }
static void expect(struct script *s, const void *p, u32 n)
{
	put_bytes(&s->expected, &s->expected_length, &s->expected_room, p, n);
}

static void ask_bulk(struct script *s, const void *p, u32 n)
{
	char head[24];
	ask(s, head, (u32)sprintf(head, "$%u\r\n", n));
	ask(s, p, n);
	ask(s, "\r\n", 2);
}

static void expect_bulk(struct script *s, const void *p, u32 n)
{
	char head[24];
	expect(s, head, (u32)sprintf(head, "$%u\r\n", n));
	expect(s, p, n);
	expect(s, "\r\n", 2);
}

static u32 some_length(void)
{
	switch (pick(8)) {
	case 0:
		return 0;
	case 1:
		return pick(3000);
	case 2:
		return pick(VALUE_MAX + 1);
	default:
		return pick(40);
	}
}

// Requests of one client on keys of its own, with the replies that must come.
static void write_script(struct script *s, u32 client, u32 requests)
{
	static u8 value[2 * VALUE_MAX];
	u8 *kept = malloc(VALUE_MAX);
	s32 kept_length = -1;
	char key[24], line[64];
	u32 key_length = (u32)sprintf(key, "key%u-%u", client, pick(1000000));
	for (u32 i = 0; i < requests; i++) {
		u32 n = some_length();
		for (u32 k = 0; k < n; k++)
			value[k] = (u8)noise_next(&noise);
		switch (pick(8)) {
		case 0:
			ask(s, "*2\r\n$4\r\nECHO\r\n", 14);
			ask_bulk(s, value, n);
			expect_bulk(s, value, n);
			break;
		case 1:
		case 2:
			ask(s, "*3\r\n$3\r\nset\r\n", 13);
			ask_bulk(s, key, key_length);
			ask_bulk(s, value, n);
			expect(s, "+OK\r\n", 5);
			memcpy(kept, value, n);
			kept_length = (s32)n;
			break;
		case 3:
			ask(s, "*2\r\n$3\r\nGET\r\n", 13);
			ask_bulk(s, key, key_length);
			if (kept_length < 0)
				expect(s, "$-1\r\n", 5);
			else
				expect_bulk(s, kept, (u32)kept_length);
			break;
		case 4:
			ask(s, line, (u32)sprintf(line, "STRLEN %s\r\n", key));
			expect(s, line, (u32)sprintf(line, ":%d\r\n", kept_length < 0 ? 0 : kept_length));
			break;
		case 5:
			ask(s, line, (u32)sprintf(line, "DEL \"%s\"\r\n", key));
			expect(s, line, (u32)sprintf(line, ":%d\r\n", kept_length >= 0));
			kept_length = -1;
			break;
		case 6:
			if (n > 200)
				n = 200;
			if (kept_length + (s32)n > (s32)VALUE_MAX)
				break;
			ask(s, "*3\r\n$6\r\nAPPEND\r\n", 16);
			ask_bulk(s, key, key_length);
			ask_bulk(s, value, n);
			if (kept_length < 0)
				kept_length = 0;
			memcpy(kept + kept_length, value, n);
			kept_length += (s32)n;
			expect(s, line, (u32)sprintf(line, ":%d\r\n", kept_length));
			break;
		case 7: // over a limit, then on
			n = VALUE_MAX + 1 + pick(VALUE_MAX - 1);
			ask(s, "*3\r\n$3\r\nSET\r\n", 13);
			ask_bulk(s, key, key_length);
			ask_bulk(s, value, n);
			static const char *why = "-ERR an argument is longer than 65536 bytes\r\n";
			expect(s, why, (u32)strlen(why));
			break;
		}
	}
	free(kept);
}

static void disk_make(u32 bytes)
{
	u32 sectors = bytes / SECTOR;
	disk = mmap(NULL, sizeof *disk + (size_t)sectors * (2 * SECTOR + 1), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	disk->sectors = sectors;
}

// ---- streams ----

static u32 common(const u8 *a, const u8 *b, u32 n)
{
	u32 i = 0;
	while (i < n && a[i] == b[i])
		i++;
	return i;
}

static void stream_round(void)
{
	struct client clients[8] = {0};
	struct script scripts[8] = {0};
	u32 count = 1 + pick(8), loss = pick(4) * 10;
	nic_full_percent = pick(3) * 10;
	for (u32 i = 0; i < count; i++) {
		write_script(&scripts[i], i, 1 + pick(30));
		clients[i] = (struct client){
		    .port = (u16)(1024 + pick(60000)), .initial = (u32)noise_next(&noise), .window = (u16)(pick(2) ? 65535 : 500 + pick(3000))};
		clients[i].request = scripts[i].bytes;
		clients[i].request_length = scripts[i].length;
		for (u32 k = 0; k < i; k++)
			if (clients[k].port == clients[i].port)
				clients[i].port++;
	}
	u64 started = clock_us;
	store_clear(); // memory and disk are not to get full here
	for (u32 done = 0; done < count;) {
		if (clock_us - started > 3600 * SECOND)
			FAIL("an hour, and replies are still missing");
		for (u32 i = 0; i < count; i++) {
			struct client *c = &clients[i];
			if (c->reset)
				FAIL("a reset in the middle");
			if (!c->open) {
				if (!noise_percent(&noise, loss))
					client_syn(c);
				continue;
			}
			u16 window = c->window;
			if (noise_percent(&noise, 10))
				c->window = noise_percent(&noise, 50) ? 0 : (u16)pick(200); // slow to take its replies
			u32 left = c->request_length - c->acknowledged;
			for (u32 segments = pick(6); segments && left; segments--) {
				// Anything within reach, forward or again; segments overlap.
				u32 offset = c->acknowledged + (noise_percent(&noise, 50) ? 0 : pick(min_u32(left, 20000)));
				u32 n = min_u32(c->request_length - offset, 1 + pick(noise_percent(&noise, 50) ? 1460 : 50));
				if (!noise_percent(&noise, loss))
					client_send(c, ACK | PSH, offset, n);
			}
			if (!noise_percent(&noise, loss))
				client_send(c, ACK, c->acknowledged, 0);
			c->window = window;
		}
		clock_us += pick(100) ? pick(3000) : pick(1000000);
		step();
		wire(clients, count, loss);
		done = 0;
		for (u32 i = 0; i < count; i++)
			done += clients[i].open && clients[i].acknowledged == clients[i].request_length &&
			        clients[i].reply_length >= scripts[i].expected_length;
	}
	for (u32 i = 0; i < count; i++) {
		if (clients[i].reply_length != scripts[i].expected_length ||
		    memcmp(clients[i].reply, scripts[i].expected, scripts[i].expected_length))
			FAIL("client %u of %u got other replies than it should: %u bytes for %u, the same up to %u", i, count,
			     clients[i].reply_length, scripts[i].expected_length,
			     common(clients[i].reply, scripts[i].expected, min_u32(clients[i].reply_length, scripts[i].expected_length)));
		if (i % 2) // half of them close in order, half break off
			client_send(&clients[i], ACK | FIN, clients[i].request_length, 0);
		else
			client_send(&clients[i], RST, clients[i].request_length, 0);
		step();
		wire(clients, count, 0);
		free(scripts[i].expected);
		client_free(&clients[i]);
	}
	nic_full_percent = 0;
	expect_no_leak();
}

// ---- packets ----

static void packet_round(void)
{
	struct client clients[4] = {0};
	struct script scripts[4] = {0};
	honest = false;
	nic_full_percent = pick(2) * 10;
	for (u32 i = 0; i < 4; i++) {
		write_script(&scripts[i], i, 1 + pick(10));
		clients[i] = (struct client){.port = (u16)(5000 + i), .initial = (u32)noise_next(&noise), .window = 65535};
		clients[i].request = scripts[i].bytes;
		clients[i].request_length = scripts[i].length;
	}
	for (u32 n = 0; n < 300; n++) {
		struct client *c = &clients[pick(4)];
		u8 f[FRAME_MAX], options[40];
		static const u8 flag_sets[] = {ACK, ACK, ACK, ACK | PSH, SYN, SYN | ACK, ACK | FIN, RST, RST | ACK, FIN, 0, 0xff};
		u32 options_length = pick(4) ? 0 : pick(11) * 4;
		for (u32 i = 0; i < options_length; i++)
			options[i] = (u8)(pick(2) ? pick(12) : noise_next(&noise));
		u32 offset = c->acknowledged, bytes = 0;
		if (c->request_length > offset) {
			offset += pick(2) ? 0 : pick(c->request_length - offset);
			bytes = min_u32(c->request_length - offset, pick(1400));
		}
		u8 flags = flag_sets[pick(countof(flag_sets))];
		if (!c->open && pick(4))
			flags = SYN, bytes = 0;
		u32 sequence = flags == SYN && !c->open ? c->initial : c->initial + 1 + offset;
		u32 ack = c->peer_initial + 1 + c->reply_length;
		if (!pick(8))
			sequence += (u32)noise_next(&noise) >> pick(32);
		if (!pick(8))
			ack += (u32)noise_next(&noise) >> pick(32);
		u16 window = (u16)(pick(3) ? 65535 : pick(3) ? pick(65536) : 0);
		u32 length = frame_build(f, c->port, sequence, ack, flags, window, options, options_length, c->request + offset, bytes);
		if (!pick(4)) { // break it, and half of the time make the checksums fit
			for (u32 k = 1 + pick(4); k; k--)
				f[pick(length)] = (u8)noise_next(&noise);
			if (!pick(4))
				length = pick(length + 1);
			if (pick(2))
				repair_checksums(f, length);
		}
		if (!pick(20)) { // ARP and ICMP
			put16(f + 12, 0x0806);
			memcpy(f + 14, (const u8[]){0, 1, 8, 0, 6, 4, 0, 1}, 8);
			put32(f + 28, CLIENT + pick(300));
			put32(f + 38, SERVER);
		} else if (!pick(20)) {
			f[23] = IP_ICMP;
			f[34] = 8, f[35] = 0;
			put16(f + 36, 0);
			put16(f + 36, checksum_end(checksum_add(0, f + 34, length > 34 ? length - 34 : 0)));
			repair_checksums(f, 0);
			put16(f + 24, 0);
			put16(f + 24, checksum_end(checksum_add(0, f + 14, 20)));
		}
		deliver(f, length);
		clock_us += pick(50) ? pick(2000) : pick(90 * SECOND);
		step();
		while (sent_count) {
			struct sent *s = sent[--sent_count];
			// A hostile client learns what it needs to stay in the conversation.
			if (s->length >= 54 && get16(s->frame + 12) == 0x0800 && pick(5))
				for (u32 i = 0; i < 4; i++) {
					client_hear(&clients[i], s->frame, s->length);
					if (clients[i].reset)
						clients[i].open = clients[i].reset = false;
				}
			free(s);
		}
		for (u32 i = 0; i < 4; i++)
			clients[i].acknowledged = min_u32(clients[i].acknowledged, clients[i].request_length);
	}
	for (u32 i = 0; i < 4; i++) {
		free(scripts[i].expected);
		client_free(&clients[i]);
	}
	nic_full_percent = 0;
	expect_no_leak();
}

// ---- splits ----

// Sends bytes over a fresh connection, in pieces of up to `most`, on a perfect wire; returns the replies.
static void converse(struct client *c, const u8 *bytes, u32 n, u32 most, u16 port)
{
	*c = (struct client){.port = port, .initial = (u32)noise_next(&noise), .window = 65535};
	c->request = malloc(n + 1);
	memcpy(c->request, bytes, n);
	c->request_length = n;
	client_syn(c);
	step();
	wire(c, 1, 0);
	if (!c->open)
		FAIL("no answer to a SYN");
	u32 idle = 0;
	while (idle < 50 && !c->peer_closed && !c->reset) {
		u32 before = c->acknowledged + c->reply_length;
		if (c->acknowledged < n)
			client_send(c, ACK | PSH, c->acknowledged, min_u32(n - c->acknowledged, 1 + pick(min_u32(most, 1460))));
		else
			client_send(c, ACK, n, 0);
		clock_us += 30000;
		step();
		step();
		wire(c, 1, 0);
		idle = c->acknowledged + c->reply_length == before ? idle + 1 : 0;
	}
	if (!c->peer_closed && !c->reset)
		client_send(c, RST, c->acknowledged, 0);
	step();
	drop_sent();
}

static void split_round(void)
{
	struct script s = {0};
	struct client whole, pieces;
	write_script(&s, 9, 1 + pick(6));
	if (s.length > 30000)
		s.length = 30000;
	static const char *const spice[] = {"*", "$", "\r\n", "\n", "-1", "0", "*1\r\n", "$4\r\nPING\r\n", "99999999", "\"", "' ",
	                                    "PING\r\n", "*1025\r\n", "*3\r\n$3\r\nSET\r\n", "$65537\r\n", "$600000000\r\n", "GET",
	                                    "MSET a 1 b 2\r\n", "MGET a b c\r\n", "INCR n\r\n", "CONFIG GET save\r\n"};
	for (u32 k = pick(6); k && s.length; k--) {
		u32 at = pick(s.length);
		if (pick(3)) {
			const char *w = spice[pick(countof(spice))];
			u32 n = (u32)strlen(w);
			if (at + n <= s.length)
				memcpy(s.bytes + at, w, n);
		} else {
			s.bytes[at] = (u8)noise_next(&noise);
		}
	}
	if (pick(2)) // inline text in front
		for (u32 k = 0; k < 3; k++) {
			const char *w = spice[pick(countof(spice))];
			ask(&s, w, (u32)strlen(w));
		}
	store_clear();
	converse(&whole, s.bytes, s.length, 1460, 2000);
	expect_no_leak();
	store_clear();
	converse(&pieces, s.bytes, s.length, 1 + pick(40), 2001);
	expect_no_leak();
	// After a protocol error Ledger closes; what came before must be the same.
	if (whole.reply_length != pieces.reply_length ||
	    (whole.reply_length && memcmp(whole.reply, pieces.reply, whole.reply_length)))
		FAIL("whole: %u bytes of replies, in pieces: %u", whole.reply_length, pieces.reply_length);
	client_free(&whole);
	client_free(&pieces);
	free(s.bytes);
	free(s.expected);
}

// ---- crashes ----

// What all lives share: the order of all operations ever asked for.
#define KEYS 6 // of 64 KiB each: less than the smallest disk takes
#define HISTORY_MAX 60000
struct history {
	u32 asked, acknowledged; // operations
	u64 noise;
	struct operation {
		u8 key, kind; // 0 set, 1 append, 2 delete, 3 clear, 4 mset of two keys
		u16 fill;
		u32 length;
	} operations[HISTORY_MAX];
};
static struct history *history;

static _Noreturn void power_cut(void)
{
	history->noise = noise.state;
	_exit(42);
}

struct model {
	s32 length[KEYS]; // -1: absent
	u8 *value[KEYS];
};

static void fill(u8 *to, u16 with, u32 n)
{
	for (u32 i = 0; i < n; i++)
		to[i] = (u8)(with + i * 7);
}

static void model_apply(struct model *m, const struct operation *o)
{
	u32 twice = o->kind == 4 ? 2 : 1;
	switch (o->kind) {
	case 1:
		if (m->length[o->key] >= 0) {
			if (m->length[o->key] + (s32)o->length <= (s32)VALUE_MAX) {
				fill(m->value[o->key] + m->length[o->key], o->fill, o->length);
				m->length[o->key] += (s32)o->length;
			}
			return;
		}
		// fall through
	case 0:
	case 4:
		for (u32 i = 0; i < twice; i++) {
			u32 k = (o->key + i) % KEYS;
			fill(m->value[k], o->fill, o->length);
			m->length[k] = (s32)o->length;
		}
		return;
	case 2:
		m->length[o->key] = -1;
		return;
	case 3:
		for (u32 i = 0; i < KEYS; i++)
			m->length[i] = -1;
	}
}

static bool model_is_stored(const struct model *m)
{
	u64 present = 0;
	for (u32 i = 0; i < KEYS; i++) {
		char name[8];
		struct slice key = {(u8 *)name, (u32)sprintf(name, "k%u", i)};
		const struct entry *e = store_find(key);
		if ((m->length[i] >= 0) != !!e)
			return false;
		present += !!e;
		if (e && (e->value_length != (u32)m->length[i] || memcmp(entry_value(e).p, m->value[i], e->value_length)))
			return false;
	}
	return present == store_counters.keys;
}

static void operation_ask(struct script *s, const struct operation *o)
{
	static u8 value[VALUE_MAX];
	char name[8], other[8];
	u32 n = (u32)sprintf(name, "k%u", o->key), m = (u32)sprintf(other, "k%u", (o->key + 1) % KEYS);
	fill(value, o->fill, o->length);
	switch (o->kind) {
	case 0:
		ask(s, "*3\r\n$3\r\nSET\r\n", 13);
		ask_bulk(s, name, n);
		ask_bulk(s, value, o->length);
		break;
	case 1:
		ask(s, "*3\r\n$6\r\nAPPEND\r\n", 16);
		ask_bulk(s, name, n);
		ask_bulk(s, value, o->length);
		break;
	case 2:
		ask(s, "*2\r\n$3\r\nDEL\r\n", 13);
		ask_bulk(s, name, n);
		break;
	case 3:
		ask(s, "FLUSHALL\r\n", 10);
		break;
	case 4:
		ask(s, "*5\r\n$4\r\nMSET\r\n", 14);
		ask_bulk(s, name, n);
		ask_bulk(s, value, o->length);
		ask_bulk(s, other, m);
		ask_bulk(s, value, o->length);
		break;
	}
}

static u32 replies_in(const struct client *c)
{
	u32 n = 0;
	for (u32 i = 0; i < c->reply_length; i++)
		n += c->reply[i] == '\n';
	return n;
}

// One life: boot, compare, work until the power fails.
static void life(void)
{
	requests_until_cut = (s32)(pick(10) ? pick(60) : pick(5));
	boot("ip=10.0.0.5/24");
	struct model m;
	for (u32 i = 0; i < KEYS; i++)
		m.length[i] = -1, m.value[i] = malloc(2 * VALUE_MAX);
	u32 prefix = 0;
	while (prefix < history->acknowledged)
		model_apply(&m, &history->operations[prefix++]);
	while (!model_is_stored(&m)) {
		if (prefix == history->asked)
			FAIL("after a power cut: not all that was acknowledged (%u of %u asked for) is back, or more than a prefix",
			     history->acknowledged, history->asked);
		model_apply(&m, &history->operations[prefix++]);
	}
	history->asked = history->acknowledged = prefix;
	if (journal_dead())
		FAIL("the journal can't be mounted");
	u32 room = 0;
	struct client c = {.port = 4000, .initial = (u32)noise_next(&noise), .window = 65535};
	client_syn(&c);
	for (u32 answered = 0; history->asked < HISTORY_MAX - 10;) {
		struct script s = {c.request, NULL, c.request_length, room, 0, 0};
		for (u32 k = pick(4); k && history->asked - history->acknowledged < 40; k--) {
			struct operation *o = &history->operations[history->asked++];
			u32 kind = pick(40);
			*o = (struct operation){.key = (u8)pick(KEYS), .fill = (u16)noise_next(&noise)};
			o->kind = kind < 20 ? 0 : kind < 27 ? 1 : kind < 33 ? 2 : kind < 34 ? 3 : 4;
			o->length = pick(4) ? pick(300) : pick(20000);
			operation_ask(&s, o);
		}
		c.request = s.bytes;
		c.request_length = s.length;
		room = s.room;
		if (c.open)
			while (c.acknowledged < c.request_length) {
				u32 before = c.acknowledged;
				client_send(&c, ACK | PSH, c.acknowledged, min_u32(1460, c.request_length - c.acknowledged));
				step();
				wire(&c, 1, 0);
				if (c.acknowledged == before)
					break;
			}
		if (c.open)
			client_send(&c, ACK, c.acknowledged, 0);
		clock_us += 1000 + (disk->error_percent ? 50000 : 0);
		step();
		wire(&c, 1, 0);
		if (c.reset)
			FAIL("a reset");
		u32 total = replies_in(&c);
		history->acknowledged += total - answered;
		answered = total;
	}
	history->noise = noise.state;
	_exit(42);
}

static void crash_round(void)
{
	disk_make(2 * MIB + 128 * KIB + pick(512) * KIB);
	disk->error_percent = pick(3) ? 0 : 5;
	history = mmap(NULL, sizeof *history, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (u32 lives = 0; lives < 25 && history->asked < HISTORY_MAX / 2; lives++) {
		pid_t child = fork();
		if (!child)
			life();
		int status;
		waitpid(child, &status, 0);
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 42)
			FAIL("life %u ended with %#x", lives, status);
		noise.state = history->noise;
		settle();
	}
	munmap(history, sizeof *history);
	munmap(disk, sizeof *disk + (size_t)disk->sectors * (2 * SECTOR + 1));
	disk = NULL;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: ledger-trial packets|streams|splits|crashes SEED COUNT\n");
		return 2;
	}
	u64 seed = strtoull(argv[2], NULL, 10), count = strtoull(argv[3], NULL, 10);
	seed_now = noise.state = seed;
	void (*round)(void) = !strcmp(argv[1], "packets")   ? packet_round
	                      : !strcmp(argv[1], "streams") ? stream_round
	                      : !strcmp(argv[1], "splits")  ? split_round
	                                                    : crash_round;
	if (round != crash_round) {
		disk_make(8 * MIB);
		boot("ip=10.0.0.5/24");
	}
	for (u64 i = 0; i < count; i++) {
		seed_now = noise.state = seed + i;
		round();
	}
	printf("%llu rounds; %llu connections, %llu segments in, %llu retransmitted, %llu out of order\n",
	       (unsigned long long)count, (unsigned long long)tcp_counters.accepted,
	       (unsigned long long)tcp_counters.segments_in, (unsigned long long)tcp_counters.retransmitted,
	       (unsigned long long)tcp_counters.out_of_order);
	return 0;
}
