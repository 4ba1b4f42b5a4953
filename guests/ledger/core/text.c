#include "text.h"

u32 text_length(const char *s)
{
	u32 n = 0;
	while (s[n])
		n++;
	return n;
}

void text_add(struct text *t, const char *s)
{
	while (*s && t->length + 1 < t->size)
		t->at[t->length++] = *s++;
	t->at[t->length] = 0;
}

u32 format_signed(char *to, s64 v)
{
	char digits[20];
	u32 n = 0, length = 0;
	u64 u = v < 0 ? -(u64)v : (u64)v;
	do
		digits[n++] = (char)('0' + u % 10);
	while (u /= 10);
	if (v < 0)
		to[length++] = '-';
	while (n)
		to[length++] = digits[--n];
	return length;
}

void text_number(struct text *t, u64 v)
{
	char digits[21];
	digits[format_signed(digits, (s64)v)] = 0;
	text_add(t, digits);
}

void text_hex(struct text *t, u64 v)
{
	char digits[19] = "0x";
	u32 n = 2;
	for (int shift = 60; shift >= 0; shift -= 4)
		if (v >> shift || !shift)
			digits[n++] = "0123456789abcdef"[v >> shift & 15];
	digits[n] = 0;
	text_add(t, digits);
}

bool parse_signed(struct slice s, s64 *v)
{
	u32 i = 0;
	bool negative = s.n && s.p[0] == '-';
	if (negative)
		i++;
	if (i == s.n || s.n - i > 19 || (s.p[i] == '0' && (s.n > 1)))
		return false;
	u64 u = 0;
	for (; i < s.n; i++) {
		if (s.p[i] < '0' || s.p[i] > '9')
			return false;
		u = u * 10 + (s.p[i] - '0'); // 19 digits fit
	}
	if (u > (u64)INT64_MAX + negative)
		return false;
	*v = negative ? (s64)-u : (s64)u;
	return true;
}

const char *option(const char *cmdline, const char *name)
{
	for (const char *s = cmdline; *s;) {
		while (*s == ' ')
			s++;
		const char *n = name;
		while (*n && *s == *n)
			s++, n++;
		if (!*n && *s == '=')
			return s + 1;
		while (*s && *s != ' ')
			s++;
	}
	return NULL;
}

bool option_on(const char *cmdline, const char *name)
{
	const char *v = option(cmdline, name);
	return v && *v == '1';
}

bool parse_address(const char *s, u32 *address, u32 *bits)
{
	u32 a = 0;
	for (int i = 0; i < 4; i++) {
		if (i && *s++ != '.')
			return false;
		u32 v = 0, digits = 0;
		for (; *s >= '0' && *s <= '9' && digits < 4; digits++)
			v = v * 10 + (u32)(*s++ - '0');
		if (!digits || v > 255)
			return false;
		a = a << 8 | v;
	}
	if (bits) {
		if (*s++ != '/')
			return false;
		u32 v = 0, digits = 0;
		for (; *s >= '0' && *s <= '9' && digits < 3; digits++)
			v = v * 10 + (u32)(*s++ - '0');
		if (!digits || v > 32)
			return false;
		*bits = v;
	}
	*address = a;
	return *s == 0 || *s == ' ';
}
