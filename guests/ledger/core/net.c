#include "net.h"
#include "machine.h"
#include "tcp.h"
#include "text.h"

#define ETHERNET 14
#define TYPE_IP 0x0800
#define TYPE_ARP 0x0806

u32 net_address;
struct net_counters net_counters;
static u32 netmask, gateway;
static const u8 broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

// The ARP cache. An entry older than ARP_FRESH is still used while the neighbour is asked again;
// after ARP_TRIES unanswered questions it is forgotten. Nothing here needs a timer: an idle guest
// asks nobody.
#define ARP_ENTRIES 64
#define ARP_FRESH (60 * SECOND)
#define ARP_AGAIN (1 * SECOND)
#define ARP_TRIES 3
static struct neighbour {
	u32 address; // 0: unused
	u8 mac[6];
	u8 tries;
	bool known; // mac is valid
	u64 confirmed, asked, used;
} neighbours[ARP_ENTRIES] __attribute__((section(".bss.large")));

static u8 *out_frame; // between ip_begin and ip_send
static u32 out_length;
static u16 ip_id;

u64 checksum_add(u64 sum, const u8 *p, u32 n)
{
	// Sums words in the machine's order: RFC 1071, section 2(B).
	u32 word;
	for (; n >= 4; p += 4, n -= 4) {
		memcpy(&word, p, 4);
		sum += word;
	}
	word = 0;
	memcpy(&word, p, n);
	return sum + word;
}

u16 checksum_end(u64 sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return __builtin_bswap16((u16)~sum);
}

u64 checksum_pseudo(u32 a, u32 b, u8 protocol, u32 length)
{
	u8 pseudo[12];
	put32(pseudo, a);
	put32(pseudo + 4, b);
	pseudo[8] = 0;
	pseudo[9] = protocol;
	put16(pseudo + 10, (u16)length);
	return checksum_add(0, pseudo, 12);
}

bool net_init(const char *cmdline)
{
	u32 bits;
	const char *ip = option(cmdline, "ip"), *gw = option(cmdline, "gw");
	if (!ip || !parse_address(ip, &net_address, &bits)) {
		machine_log("ledger: no network: the command line needs ip=A.B.C.D/BITS\n");
		return false;
	}
	netmask = bits ? ~0u << (32 - bits) : 0;
	if (gw && !parse_address(gw, &gateway, NULL)) {
		machine_log("ledger: gw= is not an address; only the own subnet is reachable\n");
		gateway = 0;
	}
	return true;
}

static bool on_link(u32 a) { return ((a ^ net_address) & netmask) == 0; }

static bool is_station(u32 a) // may a packet come from there?
{
	if (a == 0 || a == net_address || a >> 28 >= 0xe || a >> 24 == 127)
		return false;
	return !on_link(a) || netmask >= 0xfffffffe || ((a & ~netmask) != 0 && (a & ~netmask) != ~netmask);
}

static struct neighbour *find(u32 address)
{
	for (u32 i = 0; i < ARP_ENTRIES; i++)
		if (neighbours[i].address == address)
			return &neighbours[i];
	return NULL;
}

static struct neighbour *find_or_make(u32 address)
{
	struct neighbour *n = find(address);
	if (n)
		return n;
	n = &neighbours[0];
	for (u32 i = 0; i < ARP_ENTRIES; i++) { // a free entry, else the one not used for longest
		if (!neighbours[i].address) {
			n = &neighbours[i];
			break;
		}
		if (neighbours[i].used < n->used)
			n = &neighbours[i];
	}
	memset(n, 0, sizeof *n);
	n->address = address;
	return n;
}

static void learn(struct neighbour *n, const u8 *mac)
{
	if (mac[0] & 1)
		return; // a group address is nobody's
	memcpy(n->mac, mac, 6);
	n->known = true;
	n->tries = 0;
	n->confirmed = machine_now();
}

static u8 *ethernet(const u8 *to, u16 type, u32 length)
{
	u8 *f = nic_buffer(ETHERNET + length);
	if (f) {
		memcpy(f, to, 6);
		memcpy(f + 6, nic_mac, 6);
		put16(f + 12, type);
	}
	return f;
}

static void arp_send(u16 operation, const u8 *to_mac, u32 target, const u8 *target_mac)
{
	u8 *f = ethernet(to_mac, TYPE_ARP, 28);
	if (!f)
		return;
	u8 *a = f + ETHERNET;
	memcpy(a, (const u8[]){0, 1, 8, 0, 6, 4}, 6); // Ethernet, IPv4, address lengths
	put16(a + 6, operation);
	memcpy(a + 8, nic_mac, 6);
	put32(a + 14, net_address);
	memcpy(a + 18, target_mac, 6);
	put32(a + 24, target);
	net_counters.frames_out++;
	nic_transmit(f, ETHERNET + 28);
}

void net_announce(void)
{
	// RFC 5227, section 3: an ARP request for our own address.
	arp_send(1, broadcast, net_address, (const u8[6]){0});
	nic_kick();
}

static void arp_input(const u8 *a, u32 length)
{
	if (length < 28 || memcmp(a, (const u8[]){0, 1, 8, 0, 6, 4}, 6))
		return;
	u16 operation = get16(a + 6);
	u32 sender = get32(a + 14), target = get32(a + 24);
	if (!is_station(sender) || !on_link(sender))
		return;
	struct neighbour *n = find(sender); // "merge": known senders are updated by any ARP packet
	if (!n && target == net_address)
		n = find_or_make(sender);
	if (n)
		learn(n, a + 8);
	if (operation == 1 && target == net_address)
		arp_send(2, a + 8, sender, a + 8);
}

static void ask(struct neighbour *n, u64 now)
{
	if (n->asked && now - n->asked < ARP_AGAIN)
		return;
	if (n->tries >= ARP_TRIES && n->known)
		n->known = false;
	n->asked = now;
	if (n->tries < 255)
		n->tries++;
	arp_send(1, broadcast, n->address, (const u8[6]){0});
}

enum ip_result ip_begin(u32 destination, u8 protocol, u32 length, u8 **payload)
{
	*payload = NULL;
	u32 hop = on_link(destination) ? destination : gateway;
	if (!hop || length > IP_PAYLOAD_MAX)
		return IP_SENT;
	u64 now = machine_now();
	struct neighbour *n = find_or_make(hop);
	if (now - n->used > SECOND || !n->used)
		n->used = now; // coarse, so that a busy neighbour's entry is not written for each packet
	if (!n->known || now - n->confirmed > ARP_FRESH)
		ask(n, now);
	if (!n->known)
		return IP_SENT;
	u8 *f = ethernet(n->mac, TYPE_IP, 20 + length);
	if (!f)
		return IP_BUSY;
	u8 *h = f + ETHERNET;
	h[0] = 0x45;
	h[1] = 0;
	put16(h + 2, (u16)(20 + length));
	put16(h + 4, ip_id++);
	put16(h + 6, 0x4000); // don't fragment
	h[8] = 64;
	h[9] = protocol;
	put16(h + 10, 0);
	put32(h + 12, net_address);
	put32(h + 16, destination);
	put16(h + 10, checksum_end(checksum_add(0, h, 20)));
	out_frame = f;
	out_length = ETHERNET + 20 + length;
	*payload = h + 20;
	return IP_SENT;
}

void ip_send(void)
{
	net_counters.frames_out++;
	nic_transmit(out_frame, out_length);
}

static void icmp_input(const struct packet *p)
{
	struct slice m = p->payload;
	u8 *reply;
	if (m.n < 8 || checksum_end(checksum_add(0, m.p, m.n)) || m.p[0] != 8 || m.p[1] != 0)
		return;
	if (ip_begin(p->source, IP_ICMP, m.n, &reply) == IP_BUSY || !reply)
		return;
	memcpy(reply, m.p, m.n);
	reply[0] = 0; // echo reply
	put16(reply + 2, 0);
	put16(reply + 2, checksum_end(checksum_add(0, reply, m.n)));
	ip_send();
}

static void ip_input(const u8 *h, u32 length, const u8 *from)
{
	u32 header, total;
	if (length < 20 || h[0] >> 4 != 4 || (header = (h[0] & 15) * 4u) < 20 || (total = get16(h + 2)) > length ||
	    total < header || checksum_end(checksum_add(0, h, header))) {
		net_counters.dropped++;
		return;
	}
	struct packet p = {get32(h + 12), {h + header, total - header}};
	if (get32(h + 16) != net_address || get16(h + 6) & 0x3fff || !is_station(p.source)) {
		net_counters.dropped++;
		return;
	}
	// Whoever sends us a packet can be answered at once, without asking for an address that the
	// frame has just shown. Only where nothing is known: ARP's own word counts for more. And a neighbour
	// that goes on sending from where we think it is need not be asked.
	u32 hop = on_link(p.source) ? p.source : gateway;
	if (hop) {
		struct neighbour *n = find_or_make(hop);
		u64 now = machine_now();
		if (!n->known) {
			learn(n, from);
			n->used = now;
		} else if (now - n->confirmed > ARP_FRESH / 2 && !memcmp(n->mac, from, 6)) {
			n->confirmed = now;
			n->tries = 0;
		}
	}
	if (h[9] == IP_TCP)
		tcp_input(&p);
	else if (h[9] == IP_ICMP)
		icmp_input(&p);
}

void net_input(const u8 *frame, u32 length)
{
	net_counters.frames_in++;
	if (length < ETHERNET || (!(frame[0] & 1) && memcmp(frame, nic_mac, 6)))
		return;
	u16 type = get16(frame + 12);
	if (type == TYPE_ARP)
		arp_input(frame + ETHERNET, length - ETHERNET);
	else if (type == TYPE_IP && !(frame[0] & 1)) // nothing here answers to a broadcast
		ip_input(frame + ETHERNET, length - ETHERNET, frame + 6);
}
