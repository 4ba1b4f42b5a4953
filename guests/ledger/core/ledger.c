#include "ledger.h"
#include "chunk.h"
#include "hash.h"
#include "journal.h"
#include "load.h"
#include "machine.h"
#include "net.h"
#include "session.h"
#include "store.h"
#include "tcp.h"
#include "text.h"

#define POWER_OFF_PATIENCE (SECOND / 10)

static u64 power_off_at = NEVER;

static void *carve(u8 **at, u64 bytes)
{
	void *p = *at;
	*at += bytes;
	return p;
}

bool ledger_init(void *memory, u64 bytes, const char *cmdline)
{
	u8 *at = (u8 *)(((uintptr_t)memory + 4095) & ~(uintptr_t)4095);
	bytes -= (u64)(at - (u8 *)memory);
	bytes &= ~4095ull;
	check(bytes >= 8 * MIB, "16 MiB of memory are needed at least");
	hash_seed(machine_random(), machine_random());
	u64 buffers = min_u64(bytes / 8, 128ull * MIB) & ~4095ull, arena = bytes / 4 & ~4095ull;
	pool_init(&pool_in, carve(&at, buffers), buffers);
	pool_init(&pool_out, carve(&at, buffers), buffers);
	load_init(carve(&at, arena), arena);
	u64 rest = bytes - 2 * buffers - arena;
	store_init(carve(&at, rest), rest);
	tcp_init((u32)min_u64(TCP_CONNECTIONS, bytes / (64 * KIB)));
	journal_mount(option_on(cmdline, "volatile"));
	if (!net_init(cmdline))
		return false;
	net_announce();
	return true;
}

void ledger_power_off(void) { power_off_at = machine_now() + POWER_OFF_PATIENCE; }

void ledger_step(u64 now)
{
	tcp_timers(now);
	session_resume();
	journal_step(now);
	tcp_flush();
	if (now >= power_off_at && (journal_idle() || now - power_off_at > 5 * SECOND))
		machine_poweroff();
	load_run(now);
	nic_kick();
}

u64 ledger_deadline(void)
{
	u64 at = min_u64(min_u64(tcp_deadline(), journal_deadline()), load_deadline());
	return min_u64(at, power_off_at);
}
