// What the files of the TCP implementation share.
#ifndef LEDGER_TCP_INTERNAL_H
#define LEDGER_TCP_INTERNAL_H

#include "machine.h"
#include "session.h"
#include "tcp.h"

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10

#define TIMEOUT_FIRST (1 * SECOND)        // RFC 6298, 2.1
#define TIMEOUT_MIN (SECOND / 5)          // as Linux; RFC 6298's full second is made for clocks that tick slowly
#define TIMEOUT_MAX (60 * SECOND)         // RFC 6298, 2.5
#define RETRIES_MAX 12                    // some six minutes
#define RETRIES_SYN 5
#define ACK_DELAY (20000)                 // a reply mostly comes sooner and carries the ACK
#define TIME_WAIT_LENGTH (60 * SECOND)    // 2 MSL
#define FIN_WAIT_LENGTH (60 * SECOND)     // for a peer that never closes
#define KEEPALIVE_IDLE (300 * SECOND)
#define KEEPALIVE_INTERVAL (30 * SECOND)
#define KEEPALIVE_TRIES 6
#define MSS_OURS 1460

struct segment {
	u32 source;
	u16 port;
	u8 flags;
	u32 sequence, ack;
	u32 window; // not yet scaled
	struct slice data;
	// Options of a SYN.
	u16 mss; // 0: none
	s32 shift; // -1: none
	bool sack;
};

static inline bool before(u32 a, u32 b) { return (s32)(a - b) < 0; }
static inline bool after(u32 a, u32 b) { return (s32)(a - b) > 0; }

// tcp.c
void tcp_free(struct conn *c);

// tcp_output.c
void tcp_due(u64 at); // tcp_timers has something to do then
void tcp_arm(u64 *timer, u64 at);
u64 tcp_timeout(const struct conn *c); // with back-off
void tcp_retransmit_one(struct conn *c);
enum ip_result tcp_send_syn(struct conn *c);
void tcp_send_reset(const struct segment *s, u16 from); // for a segment that belongs to no connection
void tcp_expect_retransmission(struct conn *c); // (re)starts the timer, or stops it when all is acknowledged

// tcp_early.c: segments that came out of order
bool early_add(struct conn *c, u32 sequence, struct slice data, bool fin);
// Gives the session what has become in order. Returns true when a FIN was reached.
bool early_deliver(struct conn *c);
void early_free(struct conn *c);
// Writes up to max SACK blocks of 8 bytes, the latest first; returns their number.
u32 early_blocks(const struct conn *c, u8 *to, u32 max);

#endif
