// Ledger as a whole: what the machine's event loop drives.
#ifndef LEDGER_LEDGER_H
#define LEDGER_LEDGER_H

#include "base.h"

#define LEDGER_REDIS_VERSION "7.0.15" // the protocol's, for clients that ask

// Takes over memory, mounts the journal, brings the network up. False: there is no network to serve.
bool ledger_init(void *memory, u64 bytes, const char *cmdline);
// After frames and completions have been handed in: timers, journal, output, background work.
void ledger_step(u64 now);
// When ledger_step has something to do without anything coming in; 0: at once.
u64 ledger_deadline(void);
// Once what is written is durable and the replies are out.
void ledger_power_off(void);

#endif
