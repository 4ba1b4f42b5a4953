// What the portable core asks of the machine under it. The bare machine implements it with
// virtio and the TSC, the hosted build (host/) with a tap, a file and the system's clock.
#ifndef LEDGER_MACHINE_H
#define LEDGER_MACHINE_H

#include "base.h"

#define FRAME_MAX 1514 // an Ethernet frame without its checksum
#define SECTOR 512

enum disk_op { DISK_READ, DISK_WRITE, DISK_FLUSH };

u64 machine_now(void);              // microseconds since some moment at boot; never runs backwards
u64 machine_random(void);           // hard to guess, not for long-lived keys
void machine_log(const char *text); // to the console, no newline added
_Noreturn void machine_poweroff(void);

// A buffer for a frame of up to size bytes, or null while all are on their way; the event loop then runs
// ledger_step when one comes back. A buffer that was taken must be handed back with nic_transmit before
// the next one is taken.
u8 *nic_buffer(u32 size);
void nic_transmit(u8 *frame, u32 length);
// Tells the device of the frames handed over since the last call: one exit for a whole batch.
void nic_kick(void);
extern u8 nic_mac[6];

// The disk's size in sectors; 0 where there is none. Its smallest write is disk_unit bytes.
u64 disk_sectors(void);
u32 disk_unit(void);
// Starts a request. One at a time; journal_disk_done reports its end, never before this
// returns. data stays untouched until then.
void disk_start(enum disk_op op, u64 sector, void *data, u32 bytes);
// The same, waiting for the end. Only before the event loop runs.
bool disk_transfer(enum disk_op op, u64 sector, void *data, u32 bytes);

#endif
