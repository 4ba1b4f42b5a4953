// A TCP server (RFC 9293): it accepts connections on one port and never opens any. With
// retransmission timing after RFC 6298, NewReno (RFC 5681, 6582) and limited transmit (RFC 3042),
// an out-of-order queue with SACK blocks towards the peer (RFC 2018), zero-window probes,
// keep-alives, and the checks of RFC 5961 against blind resets and injections.
#ifndef LEDGER_TCP_H
#define LEDGER_TCP_H

#include "chunk.h"
#include "net.h"

#define TCP_PORT 6379
#define TCP_CONNECTIONS SET_MAX
#define TCP_WINDOW 65535u // received and not yet digested bytes of a connection, at most

enum tcp_state {
	TCP_CLOSED, // the slot is free
	TCP_SYN_RECEIVED,
	TCP_ESTABLISHED,
	TCP_FIN_WAIT_1,
	TCP_FIN_WAIT_2,
	TCP_CLOSE_WAIT,
	TCP_CLOSING,
	TCP_LAST_ACK,
	TCP_TIME_WAIT,
};

// What the protocol above keeps with each connection. See session.c.
struct session {
	u64 id;
	struct stream in; // received, in order, not yet parsed
	u32 need;         // no use in parsing before in has so many bytes
	u32 skip_arguments;
	u64 skip_bytes;
	u8 skipping; // an enum skip_reason: the rest of an oversized request is dropped
	u8 protocol; // RESP version, 2 or 3
	u8 waiting;  // an enum wait
	bool quit;   // no more requests are taken
};

// A connection. All of it fits in five cache lines, and all that a request touches is together.
struct conn {
	u32 address;
	u16 port;
	u16 hash_next; // number + 1 of the next one in its hash chain
	u8 state;      // an enum tcp_state
	u8 window_shift; // of the peer
	u8 duplicate_acks;
	u8 retries; // timeouts since the last progress
	u16 mss;
	u8 keepalives; // unanswered
	bool sack : 1;
	bool ack_now : 1;
	bool close_wanted : 1; // FIN follows the last byte of out
	bool recovering : 1;   // fast recovery
	bool timing : 1;       // a round trip is being measured
	bool doomed : 1;       // to be aborted
	bool persisting : 1;   // retransmit_at is a zero-window probe's

	// Sending. out begins at sequence number out_sequence. Bytes at limit and beyond wait for
	// the journal, those up to gate for the flush that is on its way.
	u32 unacknowledged, next, highest; // SND.UNA, SND.NXT, the highest SND.NXT ever
	u32 window, window_sequence, window_ack, window_max; // SND.WND, SND.WL1, SND.WL2
	u32 out_sequence, limit, gate;
	struct stream out;
	u32 congestion_window, slow_start_threshold, recover;
	u32 rtt, rtt_variance, timeout; // microseconds; rtt 0: never measured
	u32 timing_sequence;
	u64 timing_since;

	// Receiving.
	u32 receive_next, advertised; // RCV.NXT, the right edge that the peer was told
	u32 acknowledged;             // the last ACK number sent
	u32 early;                    // the out-of-order queue: number of its first header chunk in pool_in
	u32 early_latest;             // sequence number of what came in last
	u16 early_count;

	u64 retransmit_at, ack_at, heard; // NEVER: off; heard: when a valid segment came last
	struct session session;
};

extern struct conn tcp_connections[TCP_CONNECTIONS];
extern struct set tcp_open; // slots in use
static inline u32 tcp_number(const struct conn *c) { return (u32)(c - tcp_connections); }

// Chunks of what was received and of what is to be sent. Apart, so that neither can starve the other.
extern struct pool pool_in, pool_out;

void tcp_init(u32 connections); // at most TCP_CONNECTIONS
void tcp_input(const struct packet *p);
// Runs the timers that are due.
void tcp_timers(u64 now);
// When tcp_timers has something to do; may be too early, never too late.
u64 tcp_deadline(void);
// Sends what can be sent. Where the NIC gets full, the next call goes on.
void tcp_flush(void);

// For the protocol above. Written bytes are sent by the next tcp_flush, up to c->limit.
void tcp_write(struct conn *c, const void *p, u32 n);
void tcp_close(struct conn *c); // after all that was written
void tcp_abort(struct conn *c); // with a reset; c is gone
void tcp_doom(struct conn *c);  // the same, by the next tcp_flush
void tcp_touch(struct conn *c); // something about c changed: look at it in the next tcp_flush

struct tcp_counters {
	u64 accepted, refused, segments_in, segments_out, retransmitted, bad_checksum, out_of_order;
	u32 connections;
};
extern struct tcp_counters tcp_counters;

#endif
