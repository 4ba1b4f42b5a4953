// From the PVH entry to the event loop.
#include "cpu.h"
#include "nic.h"
#include "../core/ledger.h"
#include "../core/machine.h"
#include "../core/text.h"

// Xen's public/arch-x86/hvm/start_info.h
#define START_MAGIC 0x336ec578
struct start_info {
	u32 magic, version, flags, modules;
	u64 modules_address, cmdline, rsdp, memory_map; // the last from version 1 on
	u32 memory_map_entries, reserved;
};
struct memory_map_entry {
	u64 address, size;
	u32 type, reserved; // 1: RAM
};

extern u32 boot_info;
extern u8 image_end[];
static char cmdline[1024] __attribute__((section(".bss.large")));

// The end of the RAM that follows our image.
static u64 memory_end(const struct start_info *info)
{
	u64 here = (u64)image_end;
	if (info->version >= 1) {
		const struct memory_map_entry *m = (const struct memory_map_entry *)info->memory_map;
		for (u32 i = 0; i < info->memory_map_entries; i++)
			if (m[i].type == 1 && m[i].address <= here && here - m[i].address < m[i].size)
				return min_u64(m[i].address + m[i].size, 0xc0000000);
	}
	panic("the memory map does not show the memory that Ledger was loaded into");
}

_Noreturn __attribute__((used)) void bare_main(void)
{
	const struct start_info *info = (const struct start_info *)(u64)boot_info;
	bool known = info && info->magic == START_MAGIC;
	if (known && info->cmdline) { // before the memory that it lies in is used
		const char *from = (const char *)info->cmdline;
		for (u32 i = 0; i < sizeof cmdline - 1 && from[i]; i++)
			cmdline[i] = from[i];
	}
	serial_init(option_on(cmdline, "quiet"));
	if (!known)
		panic("no PVH start info");
	cpu_init();
	clock_init();
	timer_init();
	u64 end = memory_end(info);
	if (!option_on(cmdline, "volatile"))
		disk_open();
	bool nic = nic_open();
	if (!nic)
		machine_log("ledger: no virtio-net device: nobody to serve\n");
	else if (ledger_init(image_end, end - (u64)image_end, cmdline))
		machine_log("ledger: ready\n");
	else
		nic = false;
	for (;;) {
		irq_pending = 0;
		bool busy = nic && nic_poll();
		busy |= disk_poll();
		u64 now = machine_now();
		u64 next = NEVER;
		if (nic) {
			ledger_step(now);
			next = ledger_deadline();
		}
		if (busy || next <= now)
			continue;
		// Ask for interrupts, then look once more: what came before the asking raises none.
		if ((nic && nic_await()) || disk_await())
			continue;
		cpu_idle(now, next);
	}
}
