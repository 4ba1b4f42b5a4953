// Ethernet, ARP (RFC 826), IPv4 (RFC 791) and ICMP echo (RFC 792). One interface, one static
// address. Fragments are not reassembled: TCP never sends any, and path MTU discovery keeps
// others from making them.
#ifndef LEDGER_NET_H
#define LEDGER_NET_H

#include "base.h"

#define IP_TCP 6
#define IP_ICMP 1
#define IP_PAYLOAD_MAX 1480 // of one packet: an MTU of 1500 without the IP header

enum ip_result {
	IP_SENT, // or lost, as packets are: no route, the next hop unknown
	IP_BUSY, // the NIC has no room now: again later
};

struct packet {
	u32 source; // host byte order, as all addresses here
	struct slice payload;
};

// ip=A.B.C.D/BITS and gw=A.B.C.D of the command line. Logs and returns false where they are wrong.
bool net_init(const char *cmdline);
// Says on the wire who has our address.
void net_announce(void);
void net_input(const u8 *frame, u32 length);

// Begins a packet; *payload is where its bytes go, or null where the packet would be lost anyway.
enum ip_result ip_begin(u32 destination, u8 protocol, u32 length, u8 **payload);
void ip_send(void);

// The Internet checksum (RFC 1071) as a running sum, and its end. Parts before the last must be even.
u64 checksum_add(u64 sum, const u8 *p, u32 n);
u16 checksum_end(u64 sum);
// The sum over TCP's pseudo header.
u64 checksum_pseudo(u32 a, u32 b, u8 protocol, u32 length);

extern u32 net_address;
struct net_counters {
	u64 frames_in, frames_out, dropped;
};
extern struct net_counters net_counters;

#endif
