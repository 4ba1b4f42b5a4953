// Ledger as an ordinary Linux program, for tests: a tap instead of virtio-net, a file instead of
// virtio-blk, and a wire that loses, doubles and delays frames as it is told.
//
//	ledger-host TAP DISK 'ip=10.0.0.5/24 drop=10 double=5 delay=10 seed=1 memory=64 flush_us=300'
//
// TAP must exist; DISK is a file, or - for none. The percentages hold in each direction.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../core/hash.h"
#include "../core/journal.h"
#include "../core/ledger.h"
#include "../core/net.h"
#include "../core/text.h"
#include "hosted.h"

u8 nic_mac[6] = {0x52, 0x54, 0, 0x1e, 0xd6, 0xe2};
static int tap = -1, disk = -1;
static struct noise noise;
static u32 drop, twice, late, flush_us;
static bool disk_pending, disk_result;
static u64 disk_ready;

void panic(const char *why)
{
	fprintf(stderr, "panic: %s\n", why);
	abort();
}

u64 machine_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * SECOND + (u64)t.tv_nsec / 1000;
}

u64 machine_random(void)
{
	u64 v;
	if (getrandom(&v, sizeof v, 0) != sizeof v)
		panic("getrandom");
	return v;
}

void machine_log(const char *text)
{
	fputs(text, stdout);
	fflush(stdout);
}

void machine_poweroff(void) { exit(0); }

// Frames that are held back for a while come out of order.
#define HELD_MAX 64
struct wire {
	void (*deliver)(const u8 *, u32);
	u32 held;
	struct {
		u64 at;
		u32 length;
		u8 frame[FRAME_MAX];
	} queue[HELD_MAX];
};

static void wire_put(struct wire *w, const u8 *frame, u32 length)
{
	if (noise_percent(&noise, drop))
		return;
	u32 copies = 1 + noise_percent(&noise, twice);
	while (copies--) {
		if (w->held < HELD_MAX && noise_percent(&noise, late)) {
			w->queue[w->held].at = machine_now() + 100 + noise_next(&noise) % 3000;
			w->queue[w->held].length = length;
			memcpy(w->queue[w->held++].frame, frame, length);
		} else {
			w->deliver(frame, length);
		}
	}
}

static u64 wire_run(struct wire *w, u64 now)
{
	u64 next = NEVER;
	for (u32 i = 0; i < w->held;) {
		if (w->queue[i].at <= now) {
			u8 frame[FRAME_MAX];
			u32 length = w->queue[i].length;
			memcpy(frame, w->queue[i].frame, length);
			w->queue[i] = w->queue[--w->held];
			w->deliver(frame, length);
		} else {
			next = min_u64(next, w->queue[i++].at);
		}
	}
	return next;
}

static void to_tap(const u8 *frame, u32 length)
{
	while (write(tap, frame, length) < 0 && errno == EAGAIN)
		poll(&(struct pollfd){.fd = tap, .events = POLLOUT}, 1, 100);
}

// A copy on the heap, so that the address sanitizer sees reads beyond its end.
static void to_ledger(const u8 *frame, u32 length)
{
	u8 *copy = malloc(length);
	memcpy(copy, frame, length);
	net_input(copy, length);
	free(copy);
}

static struct wire out = {to_tap, 0, {{0}}}, in = {to_ledger, 0, {{0}}};
static u8 *transmit_buffer;

u8 *nic_buffer(u32 size)
{
	check(!transmit_buffer, "a transmit buffer was not handed back");
	return transmit_buffer = malloc(size);
}

void nic_transmit(u8 *frame, u32 length)
{
	check(frame == transmit_buffer, "a foreign transmit buffer");
	wire_put(&out, frame, length);
	free(frame);
	transmit_buffer = NULL;
}

void nic_kick(void) {}

u64 disk_sectors(void)
{
	struct stat s;
	return disk < 0 || fstat(disk, &s) ? 0 : (u64)s.st_size / SECTOR;
}

u32 disk_unit(void) { return SECTOR; }

bool disk_transfer(enum disk_op op, u64 sector, void *data, u32 bytes)
{
	switch (op) {
	case DISK_READ:
		return pread(disk, data, bytes, (off_t)(sector * SECTOR)) == (ssize_t)bytes;
	case DISK_WRITE:
		return pwrite(disk, data, bytes, (off_t)(sector * SECTOR)) == (ssize_t)bytes;
	case DISK_FLUSH:
		return fdatasync(disk) == 0;
	}
	return false;
}

void disk_start(enum disk_op op, u64 sector, void *data, u32 bytes)
{
	check(!disk_pending, "two disk requests at once");
	disk_result = disk_transfer(op, sector, data, bytes);
	disk_ready = machine_now() + flush_us;
	disk_pending = true;
}

static u32 number(const char *cmdline, const char *name, u32 otherwise)
{
	const char *v = option(cmdline, name);
	return v ? (u32)strtoul(v, NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: ledger-host TAP DISK CMDLINE\n");
		return 2;
	}
	const char *cmdline = argv[3];
	drop = number(cmdline, "drop", 0);
	twice = number(cmdline, "double", 0);
	late = number(cmdline, "delay", 0);
	flush_us = number(cmdline, "flush_us", 0);
	noise.state = number(cmdline, "seed", 1);
	tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
	if (tap < 0 || ioctl(tap, TUNSETIFF, &request) < 0) {
		perror("tap");
		return 1;
	}
	if (strcmp(argv[2], "-") && (disk = open(argv[2], O_RDWR)) < 0) {
		perror(argv[2]);
		return 1;
	}
	u64 bytes = (u64)number(cmdline, "memory", 64) * MIB;
	if (__builtin_cpu_supports("sse4.2"))
		crc32c_use_cpu();
	if (!ledger_init(calloc(bytes, 1), bytes, cmdline))
		return 1;
	machine_log("ledger: ready\n");
	for (;;) {
		u8 frame[2048];
		ssize_t n;
		for (int i = 0; i < 64 && (n = read(tap, frame, sizeof frame)) > 0; i++)
			if (n <= FRAME_MAX)
				wire_put(&in, frame, (u32)n);
		u64 now = machine_now();
		u64 next = min_u64(wire_run(&in, now), wire_run(&out, now));
		if (disk_pending && now >= disk_ready) {
			disk_pending = false;
			journal_disk_done(disk_result);
		}
		ledger_step(now);
		next = min_u64(next, ledger_deadline());
		if (disk_pending)
			next = min_u64(next, disk_ready);
		now = machine_now();
		struct timespec wait = {0}, *patience = &wait;
		if (next == NEVER)
			patience = NULL;
		else if (next > now)
			wait = (struct timespec){(time_t)((next - now) / SECOND), (long)((next - now) % SECOND * 1000)};
		ppoll(&(struct pollfd){.fd = tap, .events = POLLIN}, 1, patience, NULL);
	}
}
