// The Redis protocol on one connection: from received bytes to requests, replies in order.
#ifndef LEDGER_SESSION_H
#define LEDGER_SESSION_H

#include "tcp.h"

void session_open(struct conn *c);
// In-order bytes. False: no memory now, nothing was taken, the peer shall send them again.
bool session_receive(struct conn *c, const u8 *p, u32 n);
// The peer will send no more.
void session_end(struct conn *c);
void session_close(struct conn *c); // the connection is gone
// Bytes of out were acknowledged.
void session_sent(struct conn *c);
// How many more bytes the session wants to be sent.
u32 session_window(const struct conn *c);

// Tries again the sessions that wait for something that has come about.
void session_resume(void);

// Called by the journal: a batch starts on its way, has become durable, or never will.
void session_commit_started(void);
void session_commit_done(void);
void session_commit_failed(void);

#endif
