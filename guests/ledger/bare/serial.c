// COM1, a 16550. Each byte is an exit: Ledger says little.
#include "cpu.h"
#include "../core/machine.h"

#define COM1 0x3f8

static bool present, silent;

void serial_init(bool quiet)
{
	silent = quiet;
	out8(COM1 + 7, 0x5a); // the scratch register remembers, where there is a UART
	present = in8(COM1 + 7) == 0x5a;
	if (!present)
		return;
	out8(COM1 + 1, 0);    // no interrupts
	out8(COM1 + 3, 0x83); // divisor
	out8(COM1 + 0, 1);    // 115200 baud
	out8(COM1 + 1, 0);
	out8(COM1 + 3, 0x03); // 8N1
	out8(COM1 + 2, 0x07); // FIFO on and empty
	out8(COM1 + 4, 0x03);
}

static void put(u8 c)
{
	for (u32 i = 0; i < 100000 && !(in8(COM1 + 5) & 0x20); i++)
		;
	out8(COM1, c);
}

void serial_write(const char *s)
{
	if (!present)
		return;
	for (; *s; s++) {
		if (*s == '\n')
			put('\r');
		put((u8)*s);
	}
}

void machine_log(const char *text)
{
	if (!silent)
		serial_write(text);
}
