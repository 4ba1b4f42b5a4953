// virtio-net (Virtio 1.2, 5.1). No offloads: every checksum is made and checked here.
//
// Which pages a frame touches is what a checkpoint pays for. A receive buffer is a chain of a small part and a
// large one: requests, which are short, arrive sixteen to a page. Frames to send come from two stacks
// of buffers, short and long, and the one that came back last goes out next.
#include "nic.h"
#include "cpu.h"
#include "../core/machine.h"
#include "../core/net.h"

#define NET_F_MAC (1ull << 5)
#define HEADER 12 // struct virtio_net_hdr, all zeros: no offloads
#define SMALL 256
#define SMALL_FRAME (SMALL - HEADER)
#define REST 1280 // FRAME_MAX - SMALL_FRAME, and some
#define LARGE 1536

struct rings rings __attribute__((aligned(4096), section(".bss.rings")));
u8 nic_mac[6];

static struct virtio nic;
static struct queue rx, tx;
static struct descriptor rx_descriptors[2 * RX_BUFFERS] __attribute__((aligned(4096), section(".bss.pages")));
static u8 rx_small[RX_BUFFERS][SMALL] __attribute__((aligned(4096), section(".bss.pages")));
static u8 tx_small[TX_SMALL][SMALL] __attribute__((aligned(64), section(".bss.transmit"))); // the first behind the rings
static u8 rx_rest[RX_BUFFERS][REST] __attribute__((aligned(4096), section(".bss.large")));
static u8 tx_large[TX_LARGE][LARGE] __attribute__((aligned(4096), section(".bss.large")));
static u8 whole[FRAME_MAX + 2] __attribute__((aligned(64), section(".bss.large"))); // a long frame, put together

static u8 free_small[TX_SMALL], free_large[TX_LARGE]; // stacks of descriptor numbers
static u8 free_small_count, free_large_count;
static bool full; // the last wish for a buffer was refused
static u16 taken; // descriptor of the buffer that was handed out

static u8 *tx_frame(u16 i) { return (i < TX_SMALL ? tx_small[i] : tx_large[i - TX_SMALL]) + HEADER; }

bool nic_open(void)
{
	if (!virtio_open(&nic, VIRTIO_NET, NET_F_MAC) ||
	    !virtio_queue(&nic, &rx, 0, 2 * RX_BUFFERS, rx_descriptors, rings.rx) ||
	    !virtio_queue(&nic, &tx, 1, TX_SMALL + TX_LARGE, rings.tx_descriptors, rings.tx))
		return false;
	if (nic.features & NET_F_MAC)
		for (u32 i = 0; i < 6; i++)
			nic_mac[i] = nic.device[i];
	else
		memcpy(nic_mac, (const u8[]){0x52, 0x54, 0, 0x1e, 0xd6, 0xe2}, 6);
	for (u16 i = 0; i < RX_BUFFERS; i++) {
		rx_descriptors[2 * i] = (struct descriptor){(u64)rx_small[i], SMALL, DESCRIPTOR_WRITE | DESCRIPTOR_NEXT, (u16)(2 * i + 1)};
		rx_descriptors[2 * i + 1] = (struct descriptor){(u64)rx_rest[i], REST, DESCRIPTOR_WRITE, 0};
		queue_offer(&rx, (u16)(2 * i));
	}
	for (u16 i = 0; i < TX_SMALL + TX_LARGE; i++)
		rings.tx_descriptors[i].address = (u64)(tx_frame(i) - HEADER);
	for (u32 i = TX_SMALL; i--;)
		free_small[free_small_count++] = (u8)i;
	for (u32 i = TX_LARGE; i--;)
		free_large[free_large_count++] = (u8)(TX_SMALL + i);
	virtio_start(&nic);
	queue_notify(&nic, &rx);
	return true;
}

bool nic_poll(void)
{
	u16 head;
	u32 length, frames = 0;
	while (frames < RX_BUFFERS && queue_take(&rx, &head, &length)) {
		u32 i = head / 2;
		frames++;
		check(i < RX_BUFFERS, "the NIC returned a buffer that it never had");
		if (length >= HEADER && length <= HEADER + FRAME_MAX) {
			length -= HEADER;
			u8 *frame = rx_small[i] + HEADER;
			if (length > SMALL_FRAME) {
				memcpy(whole, frame, SMALL_FRAME);
				memcpy(whole + SMALL_FRAME, rx_rest[i], length - SMALL_FRAME);
				frame = whole;
			}
			net_input(frame, length);
		}
		queue_offer(&rx, head);
	}
	if (frames)
		queue_notify(&nic, &rx);
	return frames;
}

// While a frame waits for a buffer, a transmitted one is worth an interrupt too.
bool nic_await(void) { return queue_await(&nic, &rx) | (full && queue_await(&nic, &tx)); }

u8 *nic_buffer(u32 size)
{
	u16 head;
	u32 length;
	bool small = size <= SMALL_FRAME;
	while (queue_take(&tx, &head, &length)) {
		if (head < TX_SMALL)
			free_small[free_small_count++] = (u8)head;
		else
			free_large[free_large_count++] = (u8)head;
	}
	if (small && free_small_count)
		taken = free_small[--free_small_count];
	else if (free_large_count)
		taken = free_large[--free_large_count];
	else
		return full = true, NULL;
	full = false;
	return tx_frame(taken);
}

void nic_transmit(u8 *frame, u32 length)
{
	(void)frame;
	rings.tx_descriptors[taken].length = HEADER + length;
	queue_offer(&tx, taken);
}

void nic_kick(void) { queue_notify(&nic, &tx); }
