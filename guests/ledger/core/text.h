// Building short texts without a libc: console messages, INFO.
#ifndef LEDGER_TEXT_H
#define LEDGER_TEXT_H

#include "base.h"

struct text {
	u32 length, size; // text is cut at size-1 and always ends with a zero
	char *at;
};

#define TEXT(name, bytes)           \
	char name##_room[bytes] = ""; \
	struct text name = {0, bytes, name##_room}

void text_add(struct text *t, const char *s);
void text_number(struct text *t, u64 v);
void text_hex(struct text *t, u64 v);
u32 text_length(const char *s);

// Writes v in decimal without a terminating zero and returns the number of characters, at most 20.
u32 format_signed(char *to, s64 v);
// Reads a whole decimal number as Redis does: no spaces, no leading plus or zeros.
bool parse_signed(struct slice s, s64 *v);

// The value of name= on the kernel command line, or null. It ends at a space or a zero.
const char *option(const char *cmdline, const char *name);
bool option_on(const char *cmdline, const char *name);
// a.b.c.d, with /bits if bits is not null. Host byte order.
bool parse_address(const char *s, u32 *address, u32 *bits);

#endif
