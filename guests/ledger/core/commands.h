// What the commands do, and how they answer.
#ifndef LEDGER_COMMANDS_H
#define LEDGER_COMMANDS_H

#include "resp.h"
#include "tcp.h"

// Why a session does not go on now.
enum wait {
	WAIT_NOT,
	WAIT_SENT,    // the peer shall take its replies first
	WAIT_POOL,    // no memory for replies
	WAIT_JOURNAL, // no room in the journal's batch
};

// A whole reply takes at most this much, but for MGET, which asks for more itself.
#define REPLY_MAX (VALUE_MAX + KIB)

// Runs the request. Anything but WAIT_NOT: nothing has happened yet, try again then. *batch becomes the
// journal batch that must be durable before the reply may be seen.
enum wait command_run(struct conn *c, const struct request *r, u64 *batch);
void command_forget(struct conn *c); // the connection is gone

void reply_text(struct conn *c, const char *s);

#endif
